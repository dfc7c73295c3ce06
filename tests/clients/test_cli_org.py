"""The command line: what goes where, which exit code, and nothing trusted unasked."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from clients.cli import common, main
from clients.cli.main import NOUNS, call, group
from clients.home import Home
from federation.envelope import Envelope
from federation.errors import Conflict, IntegrityError, NotFound, Refused, Unavailable, UsageError
from federation.objects import Card
from protocols.errors import ProtocolError
from tests.federation.parties import CODES, NOW, make_org

COURT = make_org("court", code=1)


def init(org: str = "tax", kind: str = "department", *more: str) -> list[str]:
    words = ["--org", org, "--kind", kind, "--name", "税务局", "--uscc", CODES[0]]
    return ["init", *words, "--region", "厦门", *more]


@pytest.fixture
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    path = tmp_path / "tax"
    monkeypatch.setenv("LIANMO_HOME", str(path))
    assert call(init()) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def card(tmp_path: Path) -> Path:
    file = tmp_path / "court.json"
    file.write_bytes(COURT.envelope.to_json())
    return file


# --- the whole tree -------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    waiting = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    while waiting:
        name, command = waiting.pop()
        assert command is not None, name
        if isinstance(command, click.Group):
            waiting += [(f"{name} {verb}", inner) for verb, inner in command.commands.items()]
        else:
            yield name, command


@pytest.fixture(scope="module")
def tree() -> dict[str, click.Command]:
    return dict(commands())


def test_every_command_has_one_sentence_of_help(tree: dict[str, click.Command]) -> None:
    assert {"init", "org card", "org trust", "org list", "org show"} <= tree.keys()
    for name, command in tree.items():
        first = (command.help or "").strip().split("\n\n")[0]
        assert re.fullmatch(r"[A-Z][^\n]{10,110}\.", " ".join(first.split())), name


def test_every_option_and_argument_has_help(tree: dict[str, click.Command]) -> None:
    for name, command in tree.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) or hasattr(parameter, "help"):
                assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


RESIDENT = {"node start", "node run", "coordinator start", "coordinator run", "coordinator relay"}
RESIDENT |= {"grant page"}


def test_every_command_that_ends_has_json(tree: dict[str, click.Command]) -> None:
    for name, command in tree.items():
        if name not in RESIDENT:
            options = {option for p in command.params for option in p.opts}
            assert "--json" in options, name


def test_the_help_of_every_command_is_plain_text(
    tree: dict[str, click.Command], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in tree:
        assert call([*name.split(), "--help"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"Usage: lianmo {name}"), name
        assert "\x1b" not in out + err


def test_the_top_level_names_every_installed_noun(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    out = capsys.readouterr().out
    for noun in group.list_commands(click.Context(group)):
        assert re.search(rf"^  {noun} +[A-Z]", out, re.MULTILINE), noun
    for _, sentence in NOUNS.values():
        assert sentence.endswith(".")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"]) == 0
    assert re.fullmatch(r"lianmo \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["org", "list", "--json"]])
def test_starting_imports_no_heavy_library(home: Path, arguments: list[str]) -> None:
    program = (
        "import sys\nfrom clients.cli.main import call\n"
        f"code = call({arguments!r})\n"
        "heavy = {'torch', 'flwr', 'pandas', 'numba', 'numpy', 'sklearn', 'scipy', 'pyarrow',"
        " 'sqlalchemy', 'fastapi', 'grpc', 'plotly', 'httpx'}\n"
        "print(code, sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stderr.splitlines()[-1] == "0 []"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (Refused("x"), 3),
        (IntegrityError("x"), 4),
        (NotFound("x"), 5),
        (Conflict("x"), 6),
        (Unavailable("x"), 7),
        (ProtocolError("x"), 4),
        (KeyError("canary"), 1),
        (OSError(28, "No space left on device", "/secret/place/file"), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert common.run(fail) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert not re.search("Traceback|canary|secret/place", err)


def test_an_unknown_word_says_where_help_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["nonsense"],
        ["org", "nonsense"],
        ["org", "list", "--nonsense"],
        ["org", "trust"],
    ):
        assert call(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.search(r"^error: [a-z].*; see `lianmo.* --help`\n$", err), err


def test_a_reader_who_has_seen_enough_gets_no_complaint(home: Path) -> None:
    command = f"{sys.executable} -m clients.cli.main org show | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert run.stderr == ""


# --- init -----------------------------------------------------------------------------------------


def test_init_makes_a_home_and_prints_its_fingerprint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "bank")
    more = ["--coordinator", "https://city.example:8443", "--relay", "city.example:8444"]
    assert call(["--home", place, *init("bank-a", "bank", *more, "--json")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    home = Home.open(tmp_path / "bank")
    assert found == {"org": "bank-a", "home": place, "fingerprint": home.own().fingerprint()}
    assert home.config.coordinator_url == "https://city.example:8443"
    assert home.config.relay_address == "city.example:8444"
    assert "lianmo org card" in err
    assert "PRIVATE" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        init("Tax"),
        init("tax", "ministry"),
        init("tax", "department", "--host", "localhost"),
        init("city", "platform"),
        ["init", "--org", "tax"],
        init("tax", "department", "--coordinator", "ftp://x"),
    ],
)
def test_a_wrong_init_leaves_nothing(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LIANMO_HOME", str(tmp_path / "below" / "home"))
    assert call(arguments) == 2
    assert not any(tmp_path.iterdir())
    assert CODES[0] not in capsys.readouterr().err


def test_the_home_of_one_command_line_is_not_that_of_the_next(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["--home", str(tmp_path / "nowhere"), "org", "show"]) == 5
    assert call(["org", "show"]) == 0
    assert os.environ["LIANMO_HOME"] == str(home)


def test_a_second_init_is_a_conflict(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Home.open(home).own()
    assert call(init()) == 6
    assert Home.open(home).own() == before


# --- org ------------------------------------------------------------------------------------------


def test_a_card_goes_out_as_it_was_signed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["org", "card"]) == 0
    out, err = capsys.readouterr()
    own = Home.open(home)
    assert Envelope.from_json(out.encode()) == own.card()
    assert own.own().fingerprint() in err
    assert call(["org", "card", "--out", str(tmp_path / "tax.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == own.own().fingerprint()
    assert Envelope.from_json((tmp_path / "tax.json").read_bytes()) == own.card()
    assert call(["org", "card", "--out", str(tmp_path / "none" / "tax.json")]) == 2


def trusted(home: Path) -> list[str]:
    return list(Home.open(home).trust())


def test_nobody_is_trusted_without_a_fingerprint(
    home: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["org", "trust", str(card)]) == 2
    err = capsys.readouterr().err
    assert "--fingerprint" in err
    assert COURT.card.fingerprint() in err
    wrong = make_org("tax", now=NOW).card.fingerprint()
    assert call(["org", "trust", str(card), "--fingerprint", wrong]) == 4
    assert call(["org", "trust", str(card), "--yes", "--fingerprint", wrong]) == 4
    assert call(["org", "trust", str(card), "--fingerprint", ""]) == 4
    assert trusted(home) == ["tax"]


def test_the_right_fingerprint_is_enough(
    home: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = COURT.card.fingerprint().upper().replace("-", " ")
    assert call(["org", "trust", str(card), "--fingerprint", text, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["org"] == "court"
    assert trusted(home) == ["court", "tax"]


def test_a_newer_card_needs_no_new_fingerprint_and_an_impostor_gets_nowhere(
    home: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["org", "trust", str(card), "--yes"]) == 0
    newer = tmp_path / "newer.json"
    newer.write_bytes(COURT.newer(name="法院").envelope.to_json())
    assert call(["org", "trust", str(newer)]) == 0
    assert call(["org", "trust", str(card)]) == 6
    impostor = make_org("court", now=NOW).newer(serial=9)
    newer.write_bytes(impostor.envelope.to_json())
    assert call(["org", "trust", str(newer), "--yes"]) == 6
    assert "another admin key" in capsys.readouterr().err
    assert Home.open(home).trust().card("court").name == "法院"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 2_000_000])
def test_what_is_no_card_is_refused(home: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    assert call(["org", "trust", str(tmp_path / "bad.json"), "--yes"]) == 4
    assert call(["org", "trust", str(tmp_path / "missing.json"), "--yes"]) == 2
    assert call(["org", "trust", str(tmp_path), "--yes"]) == 2
    assert trusted(home) == ["tax"]


def on_a_terminal(arguments: list[str], answer: str) -> tuple[int, str]:
    """Run the program with a terminal for stdin and stderr, and answer its question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.cli.main", *arguments],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs)
    seen, deadline = "", time.monotonic() + 30
    while "?" not in seen and time.monotonic() < deadline:
        seen += os.read(ours, 4096).decode()
    os.write(ours, answer.encode() + b"\n")
    code = process.wait(timeout=30)
    os.close(ours)
    return code, seen


@pytest.mark.parametrize(("answer", "code"), [("n", 3), ("", 3), ("y", 0)])
def test_a_person_at_a_terminal_is_asked(home: Path, card: Path, answer: str, code: int) -> None:
    found, seen = on_a_terminal(["org", "trust", str(card)], answer)
    assert found == code
    assert COURT.card.fingerprint() in seen
    assert trusted(home) == (["court", "tax"] if code == 0 else ["tax"])


def test_list_and_show_print_data_on_stdout_alone(
    home: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["org", "trust", str(card), "--yes"]) == 0
    capsys.readouterr()
    results: dict[str, Any] = {}
    for arguments in (["org", "list"], ["org", "show"], ["org", "show", "court"]):
        assert call([*arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        results[" ".join(arguments)] = json.loads(out)
        assert call(arguments) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert COURT.card.fingerprint() in out or "tax" in out
        assert "\x1b" not in out
    assert [row["org"] for row in results["org list"]] == ["court", "tax"]
    assert [row["self"] for row in results["org list"]] == [False, True]
    assert results["org show court"]["fingerprint"] == COURT.card.fingerprint()
    assert {key["usage"] for key in results["org show"]["keys"]} >= {"admin", "tls", "mask"}
    assert call(["org", "show", "nobody"]) == 5


def test_columns_stay_in_line_under_chinese_text() -> None:
    text = common.table(["name", "kind"], [["税务局", "department"], ["court", "bank"]])
    lines = text.splitlines()
    places = [
        common.display_width(line[: line.index(word)])
        for line, word in zip(lines, ["KIND", "department", "bank"], strict=True)
    ]
    assert len(set(places)) == 1


def test_a_result_is_printed_for_machines_and_people(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"path": Path("/x"), "ok": True, "none": None, "list": [1, "b"], "n": 3}
    common.emit(data, True)
    assert json.loads(capsys.readouterr().out) == {**data, "path": "/x"}
    common.emit(data, False)
    assert capsys.readouterr().out.splitlines() == [
        "path  /x", "ok    yes", "none  -", "list  1, b", "n     3",
    ]  # fmt: skip
    common.emit([{"a": 1}, {"a": 22}], False)
    assert capsys.readouterr().out.splitlines() == ["A", "1", "22"]
    common.emit([], False)
    common.emit(COURT.card, True)
    assert json.loads(capsys.readouterr().out)["org"] == "court"
    assert isinstance(COURT.card, Card)
    assert main.group.name == "lianmo"
