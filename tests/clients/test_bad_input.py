"""Whatever is wrong around a command: one line that says what and what to do, and nothing lost.

Each case breaks one thing in a good home, runs one real command line and looks at exit code, words
and at every file of the home afterwards. What the importer finds inside of tables is tested in
test_sources.py and test_cli_data.py; here is what a person meets at the shell.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import json
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.cli.main import call
from clients.home import Home
from clients.store import Store
from federation.api import Health
from federation.codes import code_for_row
from federation.objects import utc_text
from federation.package import package_sha256

CODES = code_for_row(1, np.arange(60)).astype(str)
OWN = code_for_row(2, np.arange(3)).astype("S18").astype(str)
CANARY = "金丝雀公司"
REGISTRY = "\n".join(CODES[:50]) + "\n"
TABLE = "code,paid\n" + "".join(f"{code},{i}.5\n" for i, code in enumerate(CODES[:50]))
DRAFT = """job = "a-job"
[bank]
org = "tax"
dataset = "payments"
[[department]]
org = "court"
dataset = "cases"
[limits]
customers_max = 900
customers_min = 800
"""
JOB_SUBMIT = ("job", "submit", "{}/job.toml")
DATA_ADD = ("data", "add", "more", "--file", "{}/table.csv", "--key", "code")


@dataclass(frozen=True)
class Trouble:
    """What is broken, which command meets it, and what a person then reads."""

    name: str
    harm: Callable[[Path], object]  # given the folder with `tax` (the home) and the input files
    command: tuple[str, ...]  # {} stands for the folder
    code: int
    says: str  # both are searched for in the one line on stderr
    todo: str


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def append(name: str, text: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return harm


def reconfigure(home: Path, old: str, new: str) -> None:
    config = home / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def mode(name: str, bits: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).chmod(bits)


def gone(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return harm


def truncated_parquet(folder: Path) -> None:
    whole = folder / "whole.parquet"
    pd.DataFrame({"code": CODES[:50], "paid": range(50)}).to_parquet(whole)
    (folder / "table.parquet").write_bytes(whole.read_bytes()[:-700])


def truncated_gzip(folder: Path) -> None:
    (folder / "table.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:-40])


def no_harm(folder: Path) -> None:
    pass


def cells(old: str, new: str) -> Callable[[Path], None]:
    return write("table.csv", TABLE.replace(old, new))


TROUBLES = [
    # --- the home
    Trouble("no home", gone("tax"), ("org", "show"), 5, "no home at", "`lianmo init`"),
    Trouble(
        *("home is a file", lambda f: [harm(f) for harm in (gone("tax"), write("tax", "x"))]),
        *(("org", "show"), 5, "no home at", "`lianmo init`"),
    ),
    Trouble(
        *("a charter that is not there", no_harm, ("network", "sign", "{}/charter.json", "--yes")),
        *(2, "there is no file", "signs a charter, given as its file"),
    ),
    Trouble(
        *("no signed object", write("card.json", "{}"), ("org", "trust", "{}/card.json", "--yes")),
        *(4, "card.json: not an envelope", "the right file"),
    ),
    Trouble("key 0644", mode("tax/keys/run.pem", 0o644), ("org", "show"), 3, "0644", "chmod 0600"),
    Trouble("keys 0755", mode("tax/keys", 0o755), ("org", "show"), 3, "0755", "chmod 0700"),
    Trouble("home 0777", mode("tax", 0o777), ("org", "show"), 3, "0777", "chmod 0700"),
    Trouble(
        *("key is none", write("tax/keys/log.pem", "-----BEGIN NOTHING-----\n"), DATA_ADD),
        *(4, "log key", "backup"),
    ),
    Trouble(
        *("key of another", lambda f: shutil.copy(f / "tax/keys/run.pem", f / "tax/keys/log.pem")),
        *(DATA_ADD, 4, r"log\.pem", "backup"),
    ),
    Trouble("no card", gone("tax/card.json"), ("org", "show"), 5, r"card\.json", "`lianmo init`"),
    Trouble("card damaged", write("tax/card.json", "{"), ("org", "show"), 4, "card.json", "backup"),
    Trouble(
        *("trusted card damaged", write("tax/trust/platform.json", "[]"), ("org", "list"), 4),
        *(r"platform\.json", "backup"),
    ),
    Trouble(
        *("certificate damaged", write("tax/tls.crt", "not a certificate"), ("job", "list"), 4),
        *(r"tls\.crt", "backup"),
    ),
    # --- settings
    Trouble(
        *("config is no TOML", append("tax/config.toml", "x = [\n"), ("org", "show"), 2),
        *("not valid TOML", "correct it"),
    ),
    Trouble(
        *("config is no text", write("tax/config.toml", b"\xff\xfe\x00"), ("org", "show"), 2),
        *("not valid TOML", "correct it"),
    ),
    Trouble(
        *("unknown setting", append("tax/config.toml", "peer_timeout = 3\n"), ("org", "show"), 2),
        *("setting peer_timeout: ", "correct it in"),
    ),
    Trouble(
        *("setting out of range", append("tax/config.toml", "workers = 0\n"), ("org", "show"), 2),
        *("setting workers: ", "correct it in"),
    ),
    # --- the database
    Trouble(
        *("database URL means nothing", append("tax/config.toml", 'database_url = "state"\n')),
        *(("data", "list"), 2, "database URL cannot be used", "sqlite:////var"),
    ),
    Trouble(
        *("database of another kind", append("tax/config.toml", 'database_url = "mysql://x/y"\n')),
        *(("data", "list"), 2, "database URL|SQLite or PostgreSQL", "sqlite:////var"),
    ),
    Trouble(
        "database away",
        append("tax/config.toml", 'database_url = "postgresql+psycopg://u:pa55@127.0.0.1:1/x"\n'),
        *(("data", "list"), 7, "cannot be opened", "`database_url`"),
    ),
    Trouble(
        "database folder missing",
        append("tax/config.toml", 'database_url = "sqlite:////no/such/folder/state.db"\n'),
        *(("data", "list"), 7, "cannot be opened", "`database_url`"),
    ),
    Trouble(
        *("database is none", write("tax/state.db", b"not a database, " * 500), ("data", "list")),
        *(4, "database", "backup"),
    ),
    Trouble(
        *("database cut off", lambda f: os.truncate(f / "tax/state.db", 5000), ("data", "list")),
        *(4, "database", "backup"),
    ),
    # --- the coordinator
    Trouble("coordinator away", no_harm, ("job", "list"), 7, "cannot be reached", "lianmo doctor"),
    Trouble(
        *("node: coordinator not named", append("tax/config.toml", ""), ("coordinator", "status")),
        *(2, "not a platform's", "home of the platform"),
    ),
    Trouble(
        *("no platform trusted", gone("tax/trust/platform.json"), ("job", "list"), 5),
        *("no platform is trusted", "`lianmo org trust CARD`"),
    ),
    # --- tables
    Trouble("no such file", gone("table.csv"), DATA_ADD, 2, "table.csv", "no such file"),
    Trouble(
        *("a folder for a file", lambda f: (gone("table.csv")(f), (f / "table.csv").mkdir())[1]),
        *(DATA_ADD, 2, "table.csv", "directory|file"),
    ),
    Trouble("empty file", write("table.csv", ""), DATA_ADD, 2, "no column code", "first line"),
    Trouble(
        *("wrong columns", cells("code,paid", "id,paid"), DATA_ADD, 2),
        *("no column code", "first line"),
    ),
    Trouble(
        *("bad code", cells(CODES[7], CODES[7][:17]), DATA_ADD, 2),
        *("1 problem", "row 9, column code"),
    ),
    Trouble(
        *("a word for a number", cells(",7.5", f",{CANARY}"), DATA_ADD, 2),
        *("1 problem", "row 9, column paid"),
    ),
    Trouble(
        *("binary garbage", write("table.csv", bytes(range(256)) * 50), DATA_ADD, 2),
        *("table.csv", "utf-8 or gb18030|first line"),
    ),
    Trouble(
        *("a huge field", cells(",7.5", "," + "9" * 5_000_000), DATA_ADD, 2),
        *("table.csv", "row 9|longer"),
    ),
    Trouble(
        *("Parquet truncated", truncated_parquet),
        *(("data", "add", "more", "--file", "{}/table.parquet", "--key", "code"), 2),
        *("table.parquet", "damaged"),
    ),
    Trouble(
        *("gzip truncated", truncated_gzip),
        *(("data", "add", "more", "--file", "{}/table.csv.gz", "--key", "code"), 2),
        *("table.csv.gz", "damaged"),
    ),
    Trouble(
        *("no such dataset", no_harm, ("data", "refresh", "nothing"), 5),
        *("no dataset nothing", "`lianmo data list`"),
    ),
    Trouble(
        *("source of a dataset gone", gone("payments.csv"), ("data", "refresh", "payments"), 2),
        *("payments.csv", "no such file"),
    ),
    # --- registry, jobs, receipts
    Trouble(
        *("registry with a wrong code", write("registry.txt", REGISTRY + "91X\n")),
        *(("registry", "add", "{}/registry.txt", "--as-of", "2026-11-01"), 2, "registry", "row 51"),
    ),
    Trouble("no draft", gone("job.toml"), JOB_SUBMIT, 2, "job.toml", "no such file"),
    Trouble("draft is no TOML", write("job.toml", "job ="), JOB_SUBMIT, 2, "not valid TOML", "job"),
    Trouble(
        *("draft with a word too much", append("job.toml", "customers = 3\n"), JOB_SUBMIT, 2),
        *(r"limits\.customers", "lianmo job new --help"),
    ),
    Trouble(
        *("draft is binary", write("job.toml", b"\xff\x00\xfe"), JOB_SUBMIT, 2),
        *("not valid TOML|not text", "job"),
    ),
    Trouble(
        *("receipt is none", write("receipt.json", "{}"), ("receipt", "verify", "{}/receipt.json")),
        *(4, "receipt", ""),
    ),
    Trouble(
        *("receipt gone", no_harm, ("receipt", "verify", "{}/receipt.json"), 2),
        *("receipt.json", "no such file"),
    ),
    Trouble(
        *("a question that is no JSON", write("asked.jsonl", '\n{"op": "exists"\n')),
        *(("verify", "batch", "{}/asked.jsonl"), 2, "line 2 is not a question", ""),
    ),
    Trouble(
        *("an applicant that is no object", write("asked.jsonl", "3\n")),
        *(("model", "batch", "{}/asked.jsonl"), 2, "line 1 is not a score", ""),
    ),
    # --- files to write
    *(
        Trouble(f"no folder for {words[0]} {words[1]}", no_harm, words, 2, "no folder", "make it")
        for words in (
            ("org", "card", "--out", "{}/none/card.json"),
            ("audit", "receipt", "0", "--out", "{}/none/entry.receipt"),
            ("grant", "page", "--out", "{}/none/page.html"),
            ("network", "found", "Demo", "--founder", "tax", "--out", "{}/none/charter.json"),
        )
    ),
    Trouble(
        *("a folder for a card", no_harm, ("org", "card", "--out", "{}/tax"), 2),
        *("is a folder", "name a file"),
    ),
    Trouble(
        *("a name that is too long", no_harm, ("org", "card", "--out", "{}/" + "x" * 300), 2),
        *("cannot write", "too long"),
    ),
]


def home_of(folder: Path, org: str, kind: str, code: str, port: int = 1) -> Home:
    return Home.create(
        folder / org,
        org=org,
        kind=kind,
        name=org,
        uscc=code,
        region="厦门",
        coordinator_url=f"https://127.0.0.1:{port}",
        relay_address=f"127.0.0.1:{port}",
        hosts=("127.0.0.1",) if kind == "platform" else (),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good home with a registry and a table, made once and copied for each case."""
    folder = tmp_path_factory.mktemp("made")
    tax, platform = (
        home_of(folder, "tax", "department", OWN[0]),
        home_of(folder, "platform", "platform", OWN[1]),
    )
    home_of(folder, "impostor", "platform", OWN[2])
    tax.trust_card(platform.card())
    platform.trust_card(tax.card())
    (folder / "registry.txt").write_text(REGISTRY)
    for name in ("table.csv", "payments.csv"):
        (folder / name).write_text(TABLE)
    (folder / "job.toml").write_text(DRAFT)
    home = ("--home", str(tax.path))
    assert call([*home, "registry", "add", str(folder / "registry.txt"), *AS_OF]) == 0
    payments = (*DATA_ADD[:2], "payments", "--file", str(folder / "payments.csv"), "--key", "code")
    assert call([*home, *payments]) == 0
    Store.open(tax.database_url).forget_journal()
    return folder


AS_OF = ("--as-of", "2026-10-31")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy; a dataset's source stands in the database with its path, so that one stays."""
    copy = Path(shutil.copytree(made, tmp_path / "x"))
    link = made / "payments.csv"
    link.write_text(TABLE)
    return copy


def state(folder: Path) -> dict[str, str]:
    """Every file by its content; locks and the journals of an open database aside."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not re.search(r"(\.lock|-wal|-shm)$", file.name)
    }


def one_line(err: str) -> str:
    assert "Traceback" not in err
    assert CANARY not in err
    assert not [code for code in CODES if code in err]
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert re.match(r"error: \S", lines[0])
    return err


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda item: item.name.replace(" ", "-"))
def test_a_command_says_what_is_wrong_and_what_to_do(
    trouble: Trouble, folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble.harm(made if trouble.command[:2] == ("data", "refresh") else folder)
    before = state(folder)
    capsys.readouterr()
    words = [word.format(folder) for word in trouble.command]
    code = call(["--home", str(folder / "tax"), *words])
    out, err = capsys.readouterr()
    said = one_line(err)
    assert (code, out) == (trouble.code, ""), said
    assert re.search(trouble.says, said), said
    assert re.search(trouble.todo, said), said
    assert "pa55" not in said
    assert state(folder) == before


# --- what needs a process or a server of its own --------------------------------------------------


def lianmo(home: Path, *words: str, limit_bytes: int | None = None) -> tuple[int, str]:
    """The program as its operator runs it; on a disk where no file can pass `limit_bytes`."""

    def small_disk() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "clients.cli.main", *words],
        env=os.environ | {"LIANMO_HOME": str(home), "NUMBA_CACHE_DIR": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=small_disk,
        check=False,
    )
    return done.returncode, done.stderr


@contextlib.contextmanager
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_a_port_in_use_is_named_with_its_setting(folder: Path) -> None:
    with taken() as port:
        reconfigure(folder / "platform", "127.0.0.1:1", f"127.0.0.1:{port}")
        code, err = lianmo(folder / "platform", "coordinator", "start", "--no-relay")
    assert code == 7, err
    assert f"cannot listen on 127.0.0.1:{port}" in one_line(err)
    assert "set another `port`" in err


def test_a_relay_that_cannot_have_its_port_is_named(folder: Path) -> None:
    with taken() as port:
        append("platform/config.toml", "[coordinator]\nport = 0\nruntime_port = 0\n")(folder)
        relay = 'relay_address = "127.0.0.1:{}"'
        reconfigure(folder / "platform", relay.format(1), relay.format(port))
        code, err = lianmo(folder / "platform", "coordinator", "start")
    assert code == 7, err
    assert f"the relay did not start on 127.0.0.1:{port}" in one_line(err)
    assert "relay_port" in err


@pytest.mark.parametrize("words", [DATA_ADD, ("org", "card", "--out", "{}/card.json")])
def test_a_full_disk_is_said_and_costs_nothing(folder: Path, words: tuple[str, ...]) -> None:
    before = state(folder / "tax")
    told = [word.format(folder) for word in words]
    code, err = lianmo(folder / "tax", *told, limit_bytes=700)
    assert code == 7, err
    assert re.search("room", one_line(err))
    assert {k: v for k, v in state(folder / "tax").items() if k in before} == before
    code, err = lianmo(folder / "tax", *told)
    assert code == 0, err


class _Answer(http.server.BaseHTTPRequestHandler):
    """A coordinator that says its health, and whatever time it likes."""

    ahead = timedelta()

    def do_GET(self) -> None:
        now = datetime.now(UTC) + self.ahead
        body = Health(
            platform="platform", version="0", package_sha256=package_sha256(), time=utc_text(now)
        ).model_dump_json()
        self.send_response(200 if self.path.endswith("/health") else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def answering(home: Path, ahead: timedelta = timedelta()) -> Iterator[int]:
    """A TLS server with that home's certificate; its port."""
    handler = type("Answer", (_Answer,), {"ahead": ahead})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "tls.crt", home / "keys" / "tls.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    capsys.readouterr()
    assert call(["--home", str(home), "doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return {item["check"]: item for item in json.loads(out)}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor does not wait long for the relay, which is not there."""
    monkeypatch.setattr("clients.doctor.RELAY_S", 0.3)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("words", [("job", "list"), ("catalogue", "list")])
def test_who_answers_with_another_certificate_gets_nothing(
    folder: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(folder / "tax" / "trust")
    with answering(folder / "impostor") as port:
        reconfigure(folder / "tax", "https://127.0.0.1:1", f"https://127.0.0.1:{port}")
        capsys.readouterr()
        assert call(["--home", str(folder / "tax"), *words]) == 4
        err = one_line(capsys.readouterr().err)
        found = doctor(folder / "tax", capsys)["coordinator"]
    assert "not the trusted platform" in err
    assert "fingerprint" in err
    assert found["state"] == "failed"
    assert "fingerprint" in found["todo"]
    assert state(folder / "tax" / "trust") == before


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_off_by_an_hour_is_found_by_the_doctor(
    folder: Path, hours: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(folder / "platform", timedelta(hours=-hours)) as port:
        reconfigure(folder / "tax", "https://127.0.0.1:1", f"https://127.0.0.1:{port}")
        found = doctor(folder / "tax", capsys)["clock"]
    assert found["state"] == "failed"
    assert "ahead" if hours > 0 else "behind" in found["text"]
    assert "NTP" in found["todo"]
