"""registry, data and catalogue as a person uses them: what is printed, and what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import datasets
from clients.cli import main
from clients.home import Home
from clients.sources import Source
from clients.store import Store, opened
from federation.catalogue import CATALOGUE_USAGE, Dataset
from federation.codes import code_for_row
from federation.envelope import Envelope
from federation.errors import Conflict, UsageError
from federation.identity import PrivateKey
from tests.clients.persons import certified

NOW = datetime.now(UTC)
CODES = code_for_row(1, np.arange(30)).astype(str)
CANARY = "金丝雀公司"


class Shell:
    """The command line in one home."""

    def __init__(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys
        self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        self._capsys.readouterr()
        found = main.call([str(argument) for argument in arguments])
        out, self.err = self._capsys.readouterr()
        assert found == code, self.err
        return out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))

    def files(self) -> set[str]:
        """What lies in data/, the lock and the registry aside."""
        folder = self.home.path / "data"
        return {p.name for p in folder.iterdir() if not p.name.startswith(("registry-", ".lock"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new home, made once and copied for each test."""
    home = Home.create(
        tmp_path_factory.mktemp("made") / "tax",
        org="tax",
        kind="department",
        name="税务局",
        uscc="91310115Y71126484T",
        region="济宁市",
    )
    Store.open(home.database_url).close()
    return home.path


@pytest.fixture
def lianmo(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    home = Home.open(Path(shutil.copytree(made, tmp_path / "tax")), environment={})
    monkeypatch.setenv("LIANMO_HOME", str(home.path))
    return Shell(home, capsys)


@pytest.fixture
def registered(lianmo: Shell, tmp_path: Path) -> Shell:
    """With a registry of 25 enterprises."""
    path = tmp_path / "registry.txt"
    path.write_text("\n".join(CODES[:25]) + "\n")
    lianmo("registry", "add", path, "--as-of", "2026-10-31")
    return lianmo


def table(folder: Path, *more: str, name: str = "paid.csv") -> Path:
    lines = [f"{c},{i * 1.5},{i % 3},{CANARY}" for i, c in enumerate(CODES)]
    path = folder / name
    path.write_text("\n".join(["uscc,paid,sector,name", *lines, *more]) + "\n")
    return path


def test_a_registry_is_kept_shown_and_checked(lianmo: Shell, tmp_path: Path) -> None:
    path = tmp_path / "registry.csv"
    path.write_text("uscc,since\n" + "".join(f"{c},2020\n" for c in CODES))
    args = ("registry", "add", path, "--column", "uscc", "--as-of", "2026-10-31")
    added = lianmo.json(*args)
    assert (added["rows"], added["region"], added["as_of"]) == (30, "济宁市", "2026-10-31")
    assert lianmo.json("registry", "show")["digest"] == added["digest"]
    assert lianmo.json("registry", "check")["digest"] == added["digest"]
    assert lianmo.json(*args)["digest"] == added["digest"]
    kept = lianmo.home.path / "data" / added["file"]
    copy = tmp_path / "from-the-platform"
    copy.write_bytes(kept.read_bytes())
    assert lianmo.json("registry", "add", copy)["digest"] == added["digest"]
    kept.write_bytes(kept.read_bytes()[:-9])
    lianmo("registry", "check", code=4)


def test_a_registry_with_a_wrong_code_is_refused_by_row(lianmo: Shell, tmp_path: Path) -> None:
    path = tmp_path / "registry.txt"
    path.write_text("\n".join([*CODES[:5], CODES[5][:17] + "?"]))
    lianmo("registry", "add", path, code=2)
    assert "row 6" in lianmo.err
    assert CODES[5][:17] not in lianmo.err
    lianmo("registry", "show", code=5)
    assert "lianmo registry add" in lianmo.err
    lianmo("registry", "add", path, "--as-of", "31.10.2026", code=2)


def test_a_table_is_added_listed_shown_refreshed_and_removed(
    registered: Shell, tmp_path: Path
) -> None:
    path = table(tmp_path)
    args = ("--file", path, "--key", "uscc", "--category", "sector", "--drop", "name")
    added = registered.json("data", "add", "payments", *args, "--as-of", "2026-10-30")
    assert (added["rows"], added["unknown"]) == (25, 5)
    assert "5 rows of enterprises not in the registry are left out" in registered.err
    assert {c["name"]: c["type"] for c in added["columns"]} == {
        "uscc": "key",
        "paid": "number",
        "sector": "category",
    }
    (kept,) = registered.files()
    assert (registered.home.path / "data" / kept).stat().st_mode & 0o777 == 0o600
    assert [d["name"] for d in registered.json("data", "list")] == ["payments"]
    assert registered.json("data", "show", "payments") == added
    registered("data", "add", "payments", *args, code=6)
    path.write_text(path.read_text().replace(",1.5,", ",2.5,"))
    again = registered.json("data", "refresh", "payments")
    assert again["snapshot"] != added["snapshot"]
    assert len(registered.files()) == 1
    registered("data", "remove", "payments")
    assert registered.files() == set()
    registered("data", "show", "payments", code=5)


def test_a_bad_table_leaves_nothing_and_says_no_value(registered: Shell, tmp_path: Path) -> None:
    path = table(tmp_path, f"{CODES[3]},1,1,x", f"{CODES[4][:17]},{CANARY},1,x")
    registered("data", "add", "payments", "--file", path, "--key", "uscc", code=2)
    assert "3 problems in paid.csv" in registered.err
    assert "row 32, column uscc: the code stands in an earlier row" in registered.err
    assert "row 33, column paid: not a number" in registered.err
    assert CANARY not in registered.err
    assert not any(code[:17] in registered.err for code in CODES)
    assert registered.files() == set()
    assert registered.json("data", "list") == []


def test_a_refresh_that_fails_keeps_what_was_there(registered: Shell, tmp_path: Path) -> None:
    path = table(tmp_path)
    registered("data", "add", "payments", "--file", path, "--key", "uscc")
    before = registered.json("data", "show", "payments")
    path.write_text(path.read_text().replace("paid", "salary"))
    registered("data", "refresh", "payments", code=2)
    assert "column paid: there is no such column" in registered.err
    assert registered.json("data", "show", "payments") == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--key", "uscc"), 2),
        (("--key", "uscc", "--file", "no-such-file.csv"), 2),
        (("--key", "uscc", "--file", "x.csv", "--url", "sqlite:///x", "--query", "q"), 2),
        (("--key", "uscc", "--url", "sqlite:///x"), 2),
        (("--key", "uscc", "--file", "x.csv", "--rename", "a"), 2),
        (("--key", "uscc", "--file", "x.csv", "--number", "a", "--category", "a"), 2),
        (("--key", "uscc", "--file", "x.csv", "--as-of", "yesterday"), 2),
    ],
)
def test_wrong_options_are_named(registered: Shell, options: tuple[str, ...], code: int) -> None:
    registered("data", "add", "payments", *options, code=code)
    assert registered.err.startswith("error: ")
    assert "Traceback" not in registered.err


def test_a_password_in_a_url_is_never_shown(registered: Shell) -> None:
    url = "postgresql+psycopg://u:pa55word@/x?host=/no/such/folder"
    args = ("--url", url, "--query", "SELECT 1", "--key", "uscc")
    registered("data", "add", "payments", *args, code=7)
    assert "pa55word" not in registered.err


def test_there_is_no_data_without_a_registry(lianmo: Shell, tmp_path: Path) -> None:
    lianmo("data", "add", "payments", "--file", table(tmp_path), "--key", "uscc", code=5)
    assert "registry" in lianmo.err


# --- crashes --------------------------------------------------------------------------------------

CRASH = """
import os, sys
from clients import datasets, sources
from clients.cli import main
module, name = sys.argv[1].split(".")
setattr({"datasets": datasets, "sources": sources}[module], name, lambda *_: os._exit(9))
main.call(sys.argv[2:])
"""


@pytest.mark.parametrize("place", ["sources._file_digest", "datasets._flush_folder"])
def test_a_process_killed_in_the_middle_leaves_nothing_after_the_next_command(
    registered: Shell, tmp_path: Path, place: str
) -> None:
    args = ["data", "add", "payments", "--file", str(table(tmp_path)), "--key", "uscc"]
    command = [sys.executable, "-c", CRASH, place, *args]
    environment = os.environ | {"LIANMO_HOME": str(registered.home.path)}
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert registered.files() != set()
    assert registered.json("data", "list") == []
    registered(*args)
    assert len(registered.files()) == 1


def test_two_commands_do_not_change_the_data_at_once(registered: Shell, tmp_path: Path) -> None:
    home = registered.home
    source = Source(file=str(table(tmp_path)), key="uscc")
    with opened(home.database_url) as store:
        with datasets._alone(home, store), pytest.raises(Conflict, match="another command"):
            datasets.register(home, store, "payments", source, NOW)
        datasets.register(home, store, "payments", source, NOW)


# --- catalogue ------------------------------------------------------------------------------------


@pytest.fixture
def payments(registered: Shell, tmp_path: Path) -> Shell:
    registered("data", "add", "payments", "--file", table(tmp_path), "--key", "uscc")
    return registered


def sign(lianmo: Shell) -> Dataset:
    with opened(lianmo.home.database_url) as store:
        now = datetime.now(UTC)
        envelope = datasets.sign_entry(lianmo.home, store, "payments", now)
        if not datasets.is_in_force(store, envelope):  # fields are of level L3 if nobody said less
            name = f"Person {len(lianmo.home.own().keys)}"
            key = certified(lianmo.home, store, name, now)
            envelope = datasets.sign_entry(lianmo.home, store, "payments", now, key)
    trust = lianmo.home.trust()
    return trust.verify(envelope, Dataset, CATALOGUE_USAGE, datetime.now(UTC), "tax").object


def words(lianmo: Shell) -> None:
    lianmo(
        *("catalogue", "set", "payments", "--title", "Tax paid (纳税)"),
        *("--legal-basis", "tax collection law", "--update-frequency", "monthly"),
        *("--provenance", "golden tax system", "--as-of", "2026-10-31"),
    )


def test_an_entry_is_signed_by_the_owner_with_what_was_said(payments: Shell) -> None:
    with pytest.raises(UsageError, match="has no legal basis, update frequency, provenance"):
        sign(payments)
    words(payments)
    payments("catalogue", "set", "payments", "--level", "name=L5", "--trade-secret", "sector=no")
    entry = sign(payments)
    assert (entry.rows, entry.region, entry.as_of) == (25, "济宁市", "2026-10-31")
    assert entry.field("name").level == "L5"
    assert entry.field("paid").level == "L3"
    assert entry.field("paid").trade_secret
    assert not entry.field("sector").trade_secret
    shown = payments("catalogue", "show", "payments")
    assert entry.digest() in shown
    assert payments.json("catalogue", "show", "payments")["digest"] == entry.digest()


def test_a_person_whose_key_is_younger_than_the_first_signature_signs_anew(payments: Shell) -> None:
    """And the first one once more: else nobody could publish before somebody changes a word."""
    words(payments)
    begun = datetime.now(UTC)
    with opened(payments.home.database_url) as store:

        def signed(seconds: int, key: PrivateKey | None = None) -> Envelope:
            now = begun + timedelta(seconds=seconds)
            return datasets.sign_entry(payments.home, store, "payments", now, key)

        first = signed(0)
        key = certified(payments.home, store, "Li Na", begun + timedelta(seconds=10))
        second = signed(20, key)
        assert not datasets.is_in_force(store, second)
        assert [item.keyid for item in second.signatures] == [key.key_id]
        third = signed(30)
        assert datasets.is_in_force(store, third)
        assert len(third.signatures) == 2
        assert third.unverified(Dataset).digest() != first.unverified(Dataset).digest()


def test_what_a_second_person_signs_is_shown_with_its_questions(
    payments: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text(
        '[fields.paid]\nops = ["verify"]\ndescription = "上月缴纳税额"\n'
        'enquiry = { ops = ["compare"], grid = ["100", "5000"], bits_budget = 7 }\n'
    )
    payments("catalogue", "set", "payments", "--file", file)
    shown = payments("catalogue", "show", "payments")
    assert "paid: 上月缴纳税额" in shown
    line = next(line for line in shown.splitlines() if line.startswith("paid may be asked"))
    assert all(words in line for words in ("ops compare", "grid 100, 5000", "bits budget 7"))


def test_an_entry_is_signed_anew_only_when_it_says_something_else(payments: Shell) -> None:
    words(payments)
    first = sign(payments)
    assert sign(payments) == first
    payments("catalogue", "set", "payments", "--unit", "paid=CNY")
    second = sign(payments)
    assert (second.previous, second.field("paid").unit) == (first.digest(), "CNY")
    assert sign(payments) == second


def test_a_file_describes_a_dataset_like_the_options(payments: Shell, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text(
        'title = "Tax paid"\nlegal_basis = "law"\nupdate_frequency = "monthly"\n'
        'provenance = "golden tax"\n[fields.paid]\nlevel = "L2"\nmin_cohort = 80\n'
        'ops = ["train", "verify"]\n'
    )
    payments("catalogue", "set", "payments", "--file", file)
    field = sign(payments).field("paid")
    assert (field.level, field.min_cohort, list(field.ops)) == ("L2", 80, ["train", "verify"])
    file.write_text(file.read_text() + 'colour = "red"\n[fields.nowhere]\nlevel = "L2"\n')
    assert tomllib.loads(file.read_text())
    payments("catalogue", "set", "payments", "--file", file, code=2)


@pytest.mark.parametrize(
    "options",
    [
        ("--level", "paid=L6"),
        ("--level", "nowhere=L3"),
        ("--level", "paid"),
        ("--min-cohort", "paid=1"),
        ("--trade-secret", "paid=perhaps"),
    ],
)
def test_a_wrong_description_changes_nothing(payments: Shell, options: tuple[str, str]) -> None:
    before = payments.json("catalogue", "show", "payments")
    payments("catalogue", "set", "payments", "--title", "other", *options, code=2)
    assert payments.json("catalogue", "show", "payments") == before


def test_refreshed_data_keep_the_description(payments: Shell, tmp_path: Path) -> None:
    words(payments)
    payments("catalogue", "set", "payments", "--level", "paid=L2")
    before = payments.json("data", "show", "payments")["columns"]
    path = table(tmp_path)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"new,{header}", *(f"1,{row}" for row in rows)]))
    payments("data", "refresh", "payments")
    assert "column new is new: left out" in payments.err
    assert payments.json("data", "show", "payments")["columns"] == before
    payments("data", "refresh", "payments", "--as-of", "2026-11-20")
    entry = sign(payments)
    assert (entry.field("paid").level, entry.as_of) == ("L2", "2026-11-20")


def test_publishing_without_a_platform_says_what_to_do(payments: Shell) -> None:
    words(payments)
    assert payments("catalogue", "publish", "payments", code=5) == ""
    assert "`lianmo org trust CARD`" in payments.err
    assert payments.json("catalogue", "show", "payments")["digest"] is None


def test_the_signed_envelope_is_the_one_that_is_kept(payments: Shell) -> None:
    words(payments)
    entry = sign(payments)
    with opened(payments.home.database_url) as store:
        kept = store.entries.get("payments")
    assert kept.envelope is not None
    assert Envelope.from_json(kept.envelope).unverified(Dataset) == entry
