"""What a node remembers survives, on SQLite and on PostgreSQL, and is written once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import create_engine

import clients.round_book
import clients.witness_book  # noqa: F401 - the same
from clients import store as module
from clients.store import Base, Reservation, Store, StoredDataset, StoredRegistry
from federation.errors import Conflict, NotFound, Unavailable, UsageError
from protocols import set_oprf
from protocols.books import AnswerBook, BatchId, SpentBook, StoredAnswer
from protocols.errors import ParameterError, ProtocolError
from protocols.row_key_books import (
    Attempt,
    AttemptBook,
    MemoryAttemptBook,
    MemoryReplyBook,
    ReplyBook,
    StoredReply,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SALT = bytes(32)


def _absent(what: str) -> NoReturn:
    """Skip on a person's machine; in CI a test that cannot run has failed."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; CI has to install it (see .ci/run)")
    pytest.skip(what)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A server of its own on a Unix socket; skipped where PostgreSQL is not installed."""
    control, become = shutil.which("pg_ctl"), shutil.which("runuser")
    if control is None or (os.geteuid() == 0 and become is None):
        _absent("needs PostgreSQL's pg_ctl, and runuser where the tests run as root")
    with tempfile.TemporaryDirectory(
        prefix="lianmo-pg-", dir="/tmp"
    ) as folder:  # a socket's path has at most 107 bytes
        run = [control, "-D", f"{folder}/db", "-s", "-w"]
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            try:
                shutil.chown(folder, "postgres")
            except LookupError:
                _absent("there is no user postgres")
            run = [str(become), "-u", "postgres", "--", *run]
        subprocess.run([*run, "init", "-o", "-A trust -U lianmo"], check=True, capture_output=True)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        subprocess.run([*run, "-l", f"{folder}/log", "-o", options, "start"], check=True)
        try:
            yield f"postgresql+psycopg://lianmo@/postgres?host={folder}"
        finally:
            subprocess.run([*run, "-m", "immediate", "stop"], check=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state.db'}"
        return
    url: str = request.getfixturevalue("postgresql")
    yield url
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store.open(url)
    yield store
    store.close()


def dataset(name: str = "payments", file: str = "payments.a.parquet") -> StoredDataset:
    return StoredDataset(
        name=name,
        source={"file": "payments.csv"},
        columns=(("credit_code", "key"), ("paid", "number")),
        rows=10,
        unknown=1,
        checked_against="0" * 64,
        snapshot="1" * 64,
        file=file,
        added="2026-11-23T12:00:00Z",
    )


def reservation(attempt: int = 0, tokens: int = 30, manifest: str = "a" * 64) -> Reservation:
    return Reservation(manifest, attempt, "bank_a", "payments", tokens, 1000, SALT)


def test_the_migrations_make_exactly_the_model(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.reading() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == module.HEAD


def test_head_is_the_newest_script() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == module.HEAD


def test_four_processes_may_open_a_new_store_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for opened in list(pool.map(Store.open, [url] * 4)):
            assert opened.datasets.all() == ()
            opened.close()


def test_a_store_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    Store.open(url).close()
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(Conflict, match="newer release"):
        Store.open(url)


def test_the_file_is_private_and_commits_are_flushed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store.open(f"sqlite:///{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    with store.reading() as session:
        connection = session.connection()
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    store.close()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("no url", UsageError),
        ("oracle://db", UsageError),
        ("nonsense://user:pa55word@db/x", UsageError),
        ("sqlite:////no/such/folder/state.db", Unavailable),
        ("postgresql+psycopg://user:pa55word@/x?host=/no/such/folder", Unavailable),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        Store.open(url)
    assert "pa55word" not in str(raised.value)


def test_what_was_written_is_there_after_a_restart(url: str) -> None:
    first = Store.open(url)
    first.registries.put(StoredRegistry("2" * 64, "济宁市", "2026-10-31", 7, "r", "now"))
    first.datasets.put(dataset(), {"title": "Tax paid (纳税)"}, replace=False)
    first.entries.set_signed("payments", b"envelope", "3" * 64, NOW)
    first.jobs.put("4" * 64, "job-1", b"manifest", NOW)
    first.jobs.put_approval("5" * 64, "4" * 64, "tax", b"approval", NOW)
    first.jobs.set_decision("4" * 64, "approve")
    first.close()
    second = Store.open(url)
    assert second.registries.current().region == "济宁市"
    assert second.datasets.get("payments") == dataset()
    assert second.entries.get("payments").draft == {"title": "Tax paid (纳税)"}
    assert second.entries.get("payments").envelope == b"envelope"
    (job,) = second.jobs.of_name("job-1")
    assert (job.decision, job.approvals) == ("approve", (b"approval",))
    second.close()


def test_a_dataset_is_registered_once_and_replaced_only_on_demand(store: Store) -> None:
    with pytest.raises(NotFound):
        store.datasets.put(dataset(), {}, replace=True)
    store.datasets.put(dataset(), {}, replace=False)
    with pytest.raises(Conflict):
        store.datasets.put(dataset(file="b"), {}, replace=False)
    assert store.datasets.get("payments").file == "payments.a.parquet"
    assert store.datasets.put(dataset(file="b"), {}, replace=True) == "payments.a.parquet"
    assert store.datasets.remove("payments") == "b"
    with pytest.raises(NotFound):
        store.entries.get("payments")


def test_only_the_newest_registry_is_current(store: Store) -> None:
    for digest in ("2" * 64, "3" * 64, "2" * 64):
        store.registries.put(StoredRegistry(digest, "济宁市", "2026-10-31", 7, "r", "now"))
        assert store.registries.current().digest == digest


def test_a_manifest_and_a_word_on_it_stay_as_they_were_first_seen(store: Store) -> None:
    store.jobs.put("4" * 64, "job-1", b"manifest", NOW)
    store.jobs.put("4" * 64, "other", b"other", NOW)
    store.jobs.put_approval("5" * 64, "4" * 64, "tax", b"withdrawal", NOW)
    store.jobs.put_approval("5" * 64, "4" * 64, "tax", b"other", NOW)
    assert store.jobs.get("4" * 64).envelope == b"manifest"
    assert store.jobs.approvals("4" * 64) == (b"withdrawal",)


def test_an_attempt_counts_once_and_a_new_attempt_again(store: Store) -> None:
    assert store.exposure.reserve(reservation(0), 100, NOW) == reservation(0)
    other_salt = Reservation("a" * 64, 0, "bank_a", "payments", 30, 1000, b"x" * 32)
    assert store.exposure.reserve(other_salt, 100, NOW) == reservation(0)
    assert store.exposure.tokens("bank_a", "payments") == 30
    assert store.exposure.reserve(reservation(1), 100, NOW) is not None
    assert store.exposure.tokens("bank_a", "payments") == 60
    assert store.exposure.tokens("bank_b", "payments") == 0


def test_tokens_count_over_the_customers_of_their_own_job(store: Store) -> None:
    """A bank that names more customers the next time does not shrink what it asked before."""
    few = replace(reservation(0, tokens=10), customers_min=100)
    many = replace(reservation(1, tokens=10), customers_min=1000)
    assert store.exposure.reserve(few, 20, NOW) is not None  # a tenth of each customer
    assert store.exposure.tokens(few.bank, few.dataset) == 10
    assert store.exposure.weighed(few.bank, few.dataset, 1000) == 100
    assert store.exposure.reserve(many, 109, NOW) is None
    assert store.exposure.reserve(many, 110, NOW) is not None


def test_an_attempt_above_the_limit_leaves_no_entry(store: Store) -> None:
    assert store.exposure.reserve(reservation(0), 30, NOW) is not None
    assert store.exposure.reserve(reservation(1, tokens=1), 30, NOW) is None
    assert store.exposure.tokens("bank_a", "payments") == 30


def test_closing_lowers_an_entry_once_and_never_raises_it(store: Store) -> None:
    store.exposure.reserve(reservation(0), 100, NOW)
    with pytest.raises(RuntimeError):
        store.exposure.close("a" * 64, 0, 31, NOW)
    store.exposure.close("a" * 64, 0, 12, NOW)
    store.exposure.close("a" * 64, 0, 3, NOW)
    assert store.exposure.tokens("bank_a", "payments") == 12


def test_of_twenty_attempts_at_once_only_those_within_the_limit_pass(store: Store) -> None:
    def attempt(number: int) -> bool:
        return store.exposure.reserve(reservation(number, tokens=10), 55, NOW) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(20))) == 5
    assert store.exposure.tokens("bank_a", "payments") == 50


def test_removing_a_dataset_does_not_forget_its_exposure(store: Store) -> None:
    store.datasets.put(dataset(), {}, replace=False)
    store.exposure.reserve(reservation(0), 100, NOW)
    store.datasets.remove("payments")
    assert store.exposure.tokens("bank_a", "payments") == 30


def test_a_decoy_once_chosen_stays(store: Store) -> None:
    first = [(b"A" * 18, b"B" * 18), (b"A" * 18, b"C" * 18)]
    longer = [*first, (b"D" * 18, b"E" * 18)]
    assert store.decoys.get() == (None, [])
    store.decoys.extend(3, first)
    store.decoys.extend(3, longer)
    for k, pairs in ((4, longer), (3, first), (3, longer[::-1])):
        with pytest.raises(Conflict):
            store.decoys.extend(k, pairs)
    assert store.decoys.get() == (3, longer)


BATCH = BatchId(manifest=b"m" * 32, attempt=0, querier="bank_a", matrix="tax", batch=0)


def test_a_token_is_spent_on_one_query_for_good(url: str) -> None:
    store = Store.open(url)
    token = BATCH.token(7)
    assert store.spent.digest(token) is None
    store.spent.spend(token, b"digest", b"bytes in flight")
    store.spent.spend(token, b"digest", b"bytes in flight")
    store.close()
    store = Store.open(url)
    with pytest.raises(ProtocolError):
        store.spent.spend(token, b"other", b"other bytes")
    assert store.spent.message(token) == b"bytes in flight"
    store.spent.answered(token)
    assert store.spent.message(token) is None
    assert store.spent.digest(token) == b"digest"
    assert store.spent.digest(BATCH.token(8)) is None
    store.close()


def test_a_token_has_one_answer_for_good(url: str) -> None:
    store = Store.open(url)
    token, answer = BATCH.token(7), StoredAnswer(b"digest", b"payload")
    store.answers.grant(BATCH, b"request")
    store.answers.grant(BATCH, b"request")
    store.answers.record(token, answer)
    store.answers.record(token, answer)
    store.close()
    store = Store.open(url)
    for other in (StoredAnswer(b"other", b"payload"), StoredAnswer(b"digest", b"other")):
        with pytest.raises(ProtocolError):
            store.answers.record(token, other)
    with pytest.raises(ProtocolError):
        store.answers.grant(BATCH, b"another request")
    assert store.answers.answered(token) == answer
    assert store.answers.answered(BATCH.token(8)) is None
    assert store.answers.tokens((b"m" * 32).hex(), 0) == 1
    assert store.answers.tokens((b"m" * 32).hex(), 1) == 0
    store.close()


def test_the_books_are_those_of_the_protocol(store: Store) -> None:
    spent: SpentBook = store.spent
    answers: AnswerBook = store.answers
    assert spent is not None
    assert answers is not None


def test_a_nonce_is_used_once_until_it_expires(store: Store) -> None:
    until = NOW + timedelta(seconds=240)
    assert store.nonces.use("request", "n", until, NOW)
    assert not store.nonces.use("request", "n", until, NOW + timedelta(seconds=240))
    assert store.nonces.use("approval", "n", until, NOW)
    assert store.nonces.use("request", "n", until, NOW + timedelta(seconds=241))


def test_an_error_inside_a_transaction_writes_nothing(store: Store) -> None:
    def write_and_fail() -> None:
        with store.writing(module.NonceRow) as session:
            session.add(module.NonceRow(scope="s", nonce="n", expires="2030-01-01T00:00:00Z"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert store.nonces.use("s", "n", NOW, NOW)


# --- books of row keys ----------------------------------------------------------------------------

ATTEMPT = Attempt("bank_a", "tax", b"s" * 32, 300, 1)
APPROVED = 600
REGISTRY = np.sort(np.array([b"%018d" % (7919 * i) for i in range(80)], "S18"))
CUSTOMERS = REGISTRY[5:45:2]
SMALL = Attempt("bank_a", "tax", b"s" * 32, set_oprf.approved_size(len(CUSTOMERS)), 1)
SECRETS = {"bank_a": b"b" * 32, "tax": b"t" * 32}


def bank(store: Store, customers: NDArray[np.bytes_] = CUSTOMERS) -> set_oprf.Bank:
    return set_oprf.Bank(SMALL, customers, REGISTRY, SECRETS["bank_a"], store.replies)


def department(store: Store, attempt: Attempt = SMALL) -> set_oprf.Department:
    return set_oprf.Department(attempt, SMALL.m, REGISTRY, SECRETS["tax"], store.attempts)


def reopened(store: Store, url: str) -> Store:
    store.close()
    return Store.open(url)


def test_after_a_restart_both_ends_go_on_with_the_same_attempt(url: str) -> None:
    store = Store.open(url)
    hello = department(store).hello()
    sent = bank(store).reply(hello)
    store = reopened(store, url)
    again = department(store)
    assert again.hello().digest() == hello.digest()
    second = bank(store)
    assert second.reply(hello).payload() == sent.payload()
    keys = again.accept(sent).row_keys(CUSTOMERS)
    np.testing.assert_array_equal(second.finalize().row_keys(CUSTOMERS), keys)
    store = reopened(store, url)
    third = department(store)
    third.hello()
    np.testing.assert_array_equal(third.accept(sent).row_keys(CUSTOMERS), keys)
    assert store.attempts.given(SMALL.pair) == SMALL.m
    store.close()


def test_after_a_restart_one_hello_is_not_answered_for_another_list(url: str) -> None:
    store = Store.open(url)
    hello = department(store).hello()
    bank(store).reply(hello)
    before = store.replies.replied(SMALL)
    store = reopened(store, url)
    with pytest.raises(ParameterError, match="another list"):
        bank(store, REGISTRY[6:46:2]).reply(hello)
    assert store.replies.replied(SMALL) == before is not None
    with pytest.raises(ProtocolError):
        store.replies.record(SMALL, StoredReply(hello.digest(), b"other", b"other"))
    assert store.replies.replied(SMALL) == before
    store.close()


def test_a_refusal_closes_the_attempt_for_every_later_process(url: str) -> None:
    store = Store.open(url)
    tax = department(store)
    good = bank(store).reply(tax.hello())
    correction = good.correction.copy()
    correction[0, 0] ^= np.uint64(1)
    with pytest.raises(ProtocolError, match=set_oprf.REFUSED):
        tax.accept(replace(good, correction=correction))
    store = reopened(store, url)
    with pytest.raises(ProtocolError, match="closed"):
        department(store).hello()
    assert store.attempts.given(SMALL.pair) == 0
    later = replace(SMALL, number=2)
    department(store, later).hello()
    with pytest.raises(ProtocolError, match="over"):
        department(store).hello()
    store.close()


def test_of_two_replies_at_once_an_attempt_takes_one(store: Store) -> None:
    store.attempts.open(ATTEMPT, APPROVED)

    def take(reply: bytes) -> bool:
        try:
            store.attempts.take(ATTEMPT, reply)
        except ProtocolError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, [b"%d" % i for i in range(8)])) == 1


def test_of_two_answers_at_once_a_bank_keeps_one(store: Store) -> None:
    def record(payload: bytes) -> bool:
        try:
            store.replies.record(ATTEMPT, StoredReply(b"hello", b"list", payload))
        except ProtocolError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(record, [b"%d" % i for i in range(8)])) == 1


def told(act: Callable[[], object]) -> object:
    try:
        return act()
    except ProtocolError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(6))
def test_the_durable_books_say_what_those_of_the_protocol_say(store: Store, seed: int) -> None:
    """Any order of steps, over few enough attempts that they get in each other's way."""
    rng = np.random.default_rng(seed)
    books: list[AttemptBook] = [store.attempts, MemoryAttemptBook()]
    replies: list[ReplyBook] = [store.replies, MemoryReplyBook()]
    opened: set[Attempt] = set()
    for _ in range(60):
        attempt = Attempt(
            "bank_a",
            ("tax", "court")[rng.integers(2)],
            b"s" * 32,
            (300, 310)[rng.integers(10) // 9],
            int(rng.integers(5)),
        )
        reply = bytes([rng.integers(2)])
        stored = StoredReply(reply, b"list", b"payload")
        step = rng.integers(5)
        if step == 0 and attempt in opened:
            said = [told(partial(book.refuse, attempt)) for book in books]
        elif step == 1:
            said = [told(partial(book.take, attempt, reply)) for book in books]
        elif step == 2:
            said = [told(partial(book.record, attempt, stored)) for book in replies]
        else:
            said = [told(partial(book.open, attempt, APPROVED)) for book in books]
            if said[0] is None:
                opened.add(attempt)
        assert said[0] == said[1]
        assert books[0].given(attempt.pair) == books[1].given(attempt.pair)
        assert replies[0].replied(attempt) == replies[1].replied(attempt)
    assert opened


def test_a_store_of_the_first_release_keeps_what_it_holds(url: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    engine = module._engine(url)
    with engine.execution_options(lianmo_writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO nonce VALUES ('job', 'n1', '2026-11-24T12:00:00Z')")
    engine.dispose()
    store = Store.open(url)
    assert not store.nonces.use("job", "n1", NOW + timedelta(days=1), NOW)
    store.attempts.open(ATTEMPT, APPROVED)
    store.close()


def test_opening_a_store_leaves_other_stores_of_the_process_their_locks(tmp_path: Path) -> None:
    """Else a process that closes its own takes itself for the last one and removes the journal."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    first = Store.open(url)
    assert first.nonces.use("job", "n1", NOW + timedelta(days=1), NOW)
    Store.open(url).close()
    elsewhere = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        "c.execute('SELECT * FROM nonce').fetchall(); c.close()"
    )
    file = str(tmp_path / "state.db")
    subprocess.run([sys.executable, "-c", elsewhere, file], check=True)
    assert Path(f"{file}-wal").is_file()
    assert first.nonces.use("job", "n2", NOW + timedelta(days=1), NOW)
    first.close()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT COUNT(*) FROM nonce").fetchone() == (2,)
    connection.close()
