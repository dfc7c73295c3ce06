"""The log's witnesses (GOVERNANCE.md, tests 34 to 36, 38, 40, 59).

Every home runs its own half over a real board in a real database; the coordinator of a test may
show each of them another board.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.audit import AuditLog
from clients.cli.main import call
from clients.gate import Gate
from clients.home import Home
from clients.services import services
from clients.store import Store
from clients.verification import Provider
from clients.witness_book import AlarmRow, OwnCheckpoint, Verdict, WitnessBook
from clients.witnessed import Witnessed, WitnessSettings
from clients.witnessing import Witnessing
from federation.audit import Action, AuditEntry, Check, Reason, Receipt, Result, verify_receipt
from federation.checkpoints import (
    cosign,
    cosigned_at,
    cosigners,
    fork_of,
    merged,
    read_note,
    required,
)
from federation.codes import code_for_row
from federation.enquiry import Answered
from federation.errors import IntegrityError, NotFound, Refused, Unavailable
from federation.objects import KeyStatus, Usage, utc_text
from federation.trust import TrustStore
from federation.verification import Denied
from federation.witness_api import Accepted, Board, Published, SeenNote, SeenNotes
from protocols import merkle
from server import store as server_store
from server.witness import CheckpointRow, CosignatureRow, WitnessBoard
from tests.acceptance.consent import World

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
KINDS = {
    "tax": "department",
    "court": "department",
    "bank-a": "bank",
    "auditor": "auditor",
    "platform": "platform",
}
SETTINGS = WitnessSettings(every_s=1, renew_s=60)
T = timedelta(seconds=600)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, codes = tmp_path_factory.mktemp("witnesses"), code_for_row(1, np.arange(len(KINDS)))
    homes = [
        Home.create(
            folder / org,
            org=org,
            kind=kind,
            name=org,
            uscc=codes[row].decode(),
            region="厦门",
            now=NOW - timedelta(days=1),
        )
        for row, (org, kind) in enumerate(KINDS.items())
    ]
    for one, other in itertools.permutations(homes, 2):
        one.trust_card(other.card())
    for home in homes:  # schemas are made once: copies of the template open at once
        if home.org != "platform":
            Store.open(home.database_url).close()
    server_store.Store(f"sqlite:///{folder / 'board.db'}").close()
    return folder


class Site:
    """Homes with their witnesses, and the boards that a coordinator shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.seconds = folder, NOW, itertools.count(step=10)
        self.homes = {org: Home.open(folder / org, environment={}) for org in KINDS}
        self.databases: list[server_store.Store] = []
        self.board = self.new_board()
        self.of: dict[str, WitnessBoard] = {}  # where somebody is shown another one
        self.away: set[str] = set()
        self.stores: dict[str, Store] = {}
        self.audits: dict[str, AuditLog] = {}
        self.nodes: dict[str, Witnessing] = {}
        for org in KINDS:
            if org != "platform":
                self.start(org)

    def new_board(self) -> WitnessBoard:
        file = self.folder / f"board-{len(self.databases)}.db"
        shutil.copyfile(self.folder / "board.db", file)
        self.databases.append(server_store.Store(f"sqlite:///{file}"))
        trust = self.homes["platform"].trust
        return WitnessBoard(self.databases[-1], trust, lambda: self.now)

    def start(self, org: str) -> None:
        """A fresh process of this home."""
        self.homes[org] = home = Home.open(self.folder / org, environment={})
        self.stores[org] = store = Store.open(home.database_url)
        self.audits[org] = audit = AuditLog(home, store)
        audit.require_sound(self.now)
        self.nodes[org] = Witnessing(
            home,
            store,
            audit,
            _Carrier(self, org),
            lambda: self.now,
            settings=SETTINGS,
            clock=lambda: float(next(self.seconds)),
        )

    def stop(self, org: str) -> None:
        self.stores.pop(org).close()
        del self.audits[org], self.nodes[org]

    def rounds(self, *orgs: str, times: int = 3) -> None:
        for _ in range(times):
            for org in orgs or tuple(self.nodes):
                if org not in self.away:
                    self.nodes[org].round()

    def enter(self, org: str = "tax", number: int = 1) -> None:
        for _ in range(number):
            self.audits[org].append(Action.CARD_TRUSTED, "a" * 64, self.now)

    def reason(self, org: str = "tax") -> str:
        """Why it may not answer; empty if it may."""
        witnessed = Witnessed(self.homes[org], self.stores[org], SETTINGS)
        if (reason := witnessed.state(self.now).reason) is None:
            witnessed.require(self.now)
            return ""
        with pytest.raises(Denied) as raised:
            witnessed.require(self.now)
        found = raised.value
        assert (found.check, found.reason, found.what) == (Check.FRESH, Reason.UNWITNESSED, reason)
        return reason

    def alarms(self, org: str) -> list[AuditEntry]:
        kinds = (Action.FORK_FOUND, Action.LOG_WENT_BACK)
        return [entry for entry in self.audits[org].entries() if entry.action in kinds]

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        for database in self.databases:
            database.close()


class _Carrier:
    """The coordinator's client, without the network between."""

    def __init__(self, site: Site, org: str) -> None:
        self._site, self._org = site, org

    def _board(self) -> WitnessBoard:
        return self._site.of.get(self._org, self._site.board)

    def publish_checkpoint(self, body: Published) -> Accepted:
        self._board().publish(self._org, Published.model_validate_json(body.model_dump_json()))
        return Accepted(kept=1)

    def cosign(self, body: SeenNotes) -> Accepted:
        sent = SeenNotes.model_validate_json(body.model_dump_json())
        return Accepted(kept=self._board().cosign(self._org, sent))

    def witness_board(self, after: int, wait_s: float) -> Board:
        return Board.model_validate_json(self._board().read(after).model_dump_json())


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Iterator[Site]:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    site = Site(tmp_path)
    yield site
    site.close()


def saved(site: Site, org: str, where: str) -> None:
    """A backup of database and checkpoint, with the process stopped."""
    site.stop(org)
    shutil.copytree(site.folder / org, site.folder / where)


def restored(site: Site, org: str, where: str) -> None:
    site.stop(org)
    shutil.rmtree(site.folder / org)
    shutil.copytree(site.folder / where, site.folder / org)
    site.start(org)


def sizes(site: Site, org: str) -> dict[str, int]:
    book = WitnessBook(site.stores[org])
    return {s.checkpoint.origin.split("/")[1]: s.checkpoint.size for s in book.newest()}


# --- cosigning ------------------------------------------------------------------------------------


def test_every_node_cosigns_every_other_and_no_log_grows_by_it(site: Site) -> None:
    site.enter(number=4)
    before = {org: len(audit.entries()) for org, audit in site.audits.items()}
    site.rounds(times=4)
    assert {org: len(audit.entries()) for org, audit in site.audits.items()} == before
    for org in before:
        assert sizes(site, org) == {o: n for o, n in before.items() if o != org}
        assert site.reason(org) == ""
        state = Witnessed(site.homes[org], site.stores[org], SETTINGS).state(site.now)
        assert (state.cosigned, state.entries, state.required) == (before[org],) * 2 + (2,)
        assert {name for name, _ in state.witnesses} == before.keys() - {org}
    for _ in range(3):  # and it goes on from there, entry by entry
        site.enter()
        site.rounds(times=3)
    assert sizes(site, "court")["tax"] == before["tax"] + 3
    assert site.reason() == ""


def test_two_others_have_to_cosign_and_one_where_there_is_only_one(site: Site) -> None:
    site.rounds("tax", "court", times=4)
    assert "no witness has confirmed" in site.reason()
    site.rounds("tax", "auditor", times=2)
    assert site.reason() == ""
    trust = site.homes["tax"].trust()
    few = TrustStore(trust.envelope(org) for org in ("tax", "bank-a", "auditor", "platform"))
    assert (required(trust, "tax"), required(few, "tax")) == (2, 1)
    alone = TrustStore([trust.envelope("tax")])
    assert required(alone, "tax") == 1  # which nobody can give: answers stop


def test_with_nobody_who_can_witness_answers_stop_with_a_clear_word(site: Site) -> None:
    for org in ("court", "bank-a", "auditor", "platform"):
        site.homes["tax"].keyring.distrust(org)
    site.rounds("tax")
    assert site.reason().startswith("nobody can witness this log")


def test_a_checkpoint_is_on_disk_before_it_is_cosigned(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write fails once lost, once persisted; no cosignature comes out of either."""
    site.rounds("tax")

    def lost(*_: Any) -> None:
        raise Unavailable("the database cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr(WitnessBook, "judge", lost)
        with pytest.raises(Unavailable):
            site.rounds("court", times=1)
    assert not site.board.read(0).seen
    assert sizes(site, "court") == {}
    with monkeypatch.context() as patched:
        patched.setattr(_Carrier, "cosign", lost)
        with pytest.raises(Unavailable):
            site.rounds("court", times=1)
    assert not site.board.read(0).seen
    assert sizes(site, "court").keys() == {"tax"}
    site.rounds("court", times=1)
    assert [item.witness for item in site.board.read(0).seen if item.org == "tax"] == ["court"]


def test_a_witness_takes_an_older_size_or_a_spoilt_proof_from_nobody(site: Site) -> None:
    """One entry in its log for each, with both notes kept; an honest proof goes on."""
    site.enter(number=5)
    site.rounds("tax", "court")
    audit, book = site.audits["tax"], WitnessBook(site.stores["court"])
    had = sizes(site, "court")["tax"]
    card = site.homes["court"].trust().card("tax")
    older = older_checkpoint(site, had - 2)
    for _ in range(3):
        site.nodes["court"]._told(card, book.judge(older, card, {}, site.now))
    site.enter(number=3)
    newer, proofs = audit.published([had])
    spoilt = {had: [bytes(32), *proofs[had][1:]]}
    site.now += timedelta(seconds=1)  # alarms are listed by their time
    assert book.judge(newer, card, {}, site.now).verdict is Verdict.UNPROVEN
    site.nodes["court"]._told(card, book.judge(newer, card, spoilt, site.now))
    assert [alarm.kind for alarm in book.alarms()] == [Verdict.WENT_BACK, Verdict.INCONSISTENT]
    assert [entry.action for entry in site.alarms("court")] == [Action.LOG_WENT_BACK] * 2
    assert {entry.object for entry in site.alarms("court")} == {a.digest for a in book.alarms()}
    assert sizes(site, "court")["tax"] == had
    assert book.judge(newer, card, proofs, site.now).verdict is Verdict.TAKEN


def older_checkpoint(site: Site, size: int) -> merkle.SignedCheckpoint:
    """What the log signed when it had that size."""
    entries = site.audits["tax"].entries()[:size]
    tree = merkle.Tree([merkle.leaf_hash(entry.payload()) for entry in entries])
    point = merkle.Checkpoint(site.audits["tax"].origin, size, tree.root())
    return merkle.sign_checkpoint(point, site.homes["tax"].key(Usage.LOG).secret)  # type: ignore[arg-type]


# --- 34, 59: truncated, or from a backup ----------------------------------------------------------


@pytest.mark.parametrize("shown", [True, False], ids=["it shows the old one", "it only reads"])
def test_a34_a_log_that_was_cut_is_refused_and_stops_answering(site: Site, shown: bool) -> None:
    """Also 59: a backup from before the last checkpoint. Restored from a newer one, it goes on."""
    site.enter(number=3)
    site.rounds()
    saved(site, "tax", "old")
    site.start("tax")
    site.enter(number=2)
    site.rounds(times=4)
    assert site.reason() == ""
    saved(site, "tax", "new")
    site.start("tax")
    restored(site, "tax", "old")
    assert "no witness has confirmed" in site.reason()  # at once, before anybody was asked
    had = sizes(site, "court")["tax"]
    site.rounds("tax", times=1 if not shown else 2)
    assert f"seen {had} entries of this log" in site.reason()
    site.rounds(times=3)
    assert sizes(site, "court")["tax"] == had
    assert [entry.action for entry in site.alarms("court")] == [Action.LOG_WENT_BACK]
    site.start("tax") if "tax" not in site.nodes else None
    site.rounds(times=2)
    assert f"seen {had} entries of this log" in site.reason()
    restored(site, "tax", "new")
    site.rounds(times=4)
    assert site.reason() == ""
    assert site.audits["tax"].verify().problems == ()


def test_a59_a_wiped_coordinator_hides_no_rollback(site: Site) -> None:
    """The witnesses know: each hands in what it has when it is shown less."""
    site.rounds()
    saved(site, "tax", "old")
    site.start("tax")
    site.enter()
    site.rounds(times=4)
    restored(site, "tax", "old")
    site.board = site.new_board()
    site.rounds(times=4)
    assert "of this log that are not the ones" in site.reason()


def test_a_wiped_coordinator_is_filled_again(site: Site) -> None:
    site.rounds()
    site.board = site.new_board()
    site.now += timedelta(seconds=61)
    site.rounds(times=10)
    assert site.reason() == ""
    seen = {(item.org, item.witness) for item in site.board.read(0).seen}
    assert seen == set(itertools.permutations(site.nodes, 2))


# --- 35, 36: two histories ------------------------------------------------------------------------


def rebuilt(site: Site, entries: int) -> None:
    """Another whole log under the same key, in the same home."""
    state = site.homes["tax"].path
    site.stop("tax")
    for file in (*state.glob("state.db*"), state / "log" / "audit.checkpoint"):
        file.unlink()
    site.start("tax")
    while len(site.audits["tax"].entries()) < entries:
        site.audits["tax"].append(Action.CARD_TRUSTED, "b" * 64, site.now)


@pytest.mark.parametrize("more", [0, 4])
def test_a35_a_log_written_anew_with_its_key_is_a_fork_that_two_notes_prove(
    site: Site, more: int
) -> None:
    site.enter(number=3)
    site.rounds()
    had = sizes(site, "court")["tax"]
    rebuilt(site, had + more)
    site.rounds(times=4)
    assert "of this log that are not the ones" in site.reason()
    for witness in ("court", "bank-a"):
        assert sizes(site, witness)["tax"] == had
        (entry,) = site.alarms(witness)
        assert entry.outcome is Result.REFUSED
        (alarm,) = WitnessBook(site.stores[witness]).alarms()
        assert entry.object == alarm.digest
        if more == 0:
            card = TrustStore([site.homes["tax"].card()]).card("tax")
            assert fork_of(read_note(alarm.ours), read_note(alarm.theirs), card) is not None
            assert (entry.action, alarm.kind) == (Action.FORK_FOUND, Verdict.FORK)
    own = OwnCheckpoint(site.stores["tax"]).state()
    assert own.note is None


def test_a36_different_checkpoints_to_two_witnesses_meet_at_a_third(site: Site) -> None:
    """Log and coordinator together: two boards, two histories of one size. It wins while nobody
    compares, and loses with the first list that holds both."""
    site.enter(number=3)
    size = len(site.audits["tax"].entries())
    saved(site, "tax", "first")
    site.start("tax")
    site.rounds("tax", "court")
    rebuilt(site, size)
    site.of |= dict.fromkeys(("tax", "bank-a"), site.new_board())
    site.rounds("tax", "bank-a")
    assert sizes(site, "court")["tax"] == sizes(site, "bank-a")["tax"] == size
    assert not site.alarms("court")
    assert not site.alarms("bank-a")
    theirs = next(i for i in site.of["bank-a"].read(0).seen if i.witness == "bank-a")
    site.board.cosign("bank-a", SeenNotes(items=(theirs,)))  # any carrier will do
    site.rounds("court", "auditor")
    assert [entry.action for entry in site.alarms("court")] == [Action.FORK_FOUND]
    (alarm,) = WitnessBook(site.stores["court"]).alarms()
    card = site.homes["auditor"].trust().card("tax")
    assert fork_of(read_note(alarm.ours), read_note(alarm.theirs), card) is not None
    before = len(site.board.read(0).seen)
    site.now += timedelta(minutes=5)
    site.rounds("court")  # and from then on this witness cosigns that log no more
    notes = [i.note for i in site.board.read(0).seen if (i.org, i.witness) == ("tax", "court")]
    times = [item.time for item in read_note(notes[0]).signatures if item.time is not None]
    assert times == [int(NOW.timestamp())]
    assert len(site.board.read(0).seen) == before


def test_a36_a_receipt_from_another_history_is_known_by_who_verifies_it(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site.enter(number=3)
    size = len(site.audits["tax"].entries())
    site.rounds("tax", "court")
    rebuilt(site, size)
    file = tmp_path / "receipt.json"
    file.write_bytes(site.audits["tax"].receipt(1).to_json())
    done = call(["--home", str(site.homes["court"].path), "receipt", "verify", str(file)])
    assert done == 4
    assert "two histories" in capsys.readouterr().err
    assert [entry.action for entry in site.alarms("court")] == [Action.FORK_FOUND]


# --- 38: receipts ---------------------------------------------------------------------------------


@pytest.fixture
def receipt(site: Site) -> Receipt:
    """A cosigned one, as it went into a file."""
    site.enter(number=5)
    site.rounds(times=4)
    return Receipt.from_json(site.audits["tax"].receipt(2).to_json())


def test_a38_a_receipt_verifies_with_cards_alone_and_says_who_cosigned(
    site: Site,
    receipt: Receipt,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that has no network, no home and no database."""
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.delenv("LIANMO_HOME", raising=False)
    file, cards = tmp_path / "receipt.json", []
    file.write_bytes(receipt.to_json())
    for org in ("tax", "court", "bank-a"):
        cards += ["--card", str(tmp_path / f"{org}.card")]
        (tmp_path / f"{org}.card").write_bytes(site.homes[org].card().to_json())
    assert call(["receipt", "verify", str(file), *cards, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["status"] == "cosigned"
    assert {item["org"] for item in found["witnesses"]} == {"court", "bank-a"}
    assert "uncosigned" not in captured.err
    assert call(["receipt", "verify", str(file), *cards]) == 0
    assert "cosigned by bank-a" in capsys.readouterr().out


def changed(receipt: Receipt, old: str, new: str) -> Receipt:
    assert old in receipt.proof
    return receipt.model_copy(update={"proof": receipt.proof.replace(old, new, 1)})


def test_a38_an_altered_sibling_hash_or_another_origin_is_refused(
    site: Site, receipt: Receipt
) -> None:
    trust = site.homes["court"].trust()
    assert verify_receipt(receipt, trust).status == "cosigned"
    sibling = receipt.proof.splitlines()[2]
    raw = bytearray(base64.b64decode(sibling))
    raw[0] ^= 1
    origin = site.audits["court"].origin
    wrong = [
        changed(receipt, sibling, base64.b64encode(raw).decode()),
        changed(receipt, f"\n{receipt.origin}\n", f"\n{origin}\n"),
        receipt.model_copy(update={"origin": origin}),
    ]
    for item in wrong:
        with pytest.raises(IntegrityError):
            verify_receipt(item, trust)


def test_a38_unknown_witnesses_do_not_count(site: Site, receipt: Receipt) -> None:
    cards = {org: site.homes[org].card() for org in KINDS}
    for known in ((), ("platform",)):
        trust = TrustStore(cards[org] for org in ("tax", *known))
        with pytest.raises(Refused, match="cosigned; of 1 other organisations nobody known"):
            verify_receipt(receipt, trust)
    plain = receipt.model_copy(update={"status": "uncosigned"})
    assert verify_receipt(plain, TrustStore([cards["tax"]])).status == "uncosigned"
    others = TrustStore(cards[org] for org in ("tax", "court", "bank-a", "auditor"))
    one = "\n".join(
        line
        for line in receipt.proof.splitlines()
        if not line.startswith(("— lianmo/court/", "— lianmo/auditor/"))
    )
    with pytest.raises(Refused, match="of 2 other organisations bank-a did so"):
        verify_receipt(receipt.model_copy(update={"proof": one + "\n"}), others)


def test_a38_cosignatures_of_the_logs_own_organisation_do_not_count(
    site: Site, receipt: Receipt
) -> None:
    """Also not those of the same legal person under a second name."""
    tax, trust = site.homes["tax"], site.homes["court"].trust()
    second = Home.create(
        site.folder / "tax-two",
        org="tax-two",
        kind="department",
        name="tax-two",
        uscc=trust.card("tax").uscc,
        region="厦门",
        now=NOW - timedelta(days=1),
    )
    trust = trust.with_card(second.card())
    proof = receipt.tlog_proof()
    signed = cosign(proof.signed, trust.card("tax"), tax.key(Usage.WITNESS), site.now)
    again = cosign(proof.signed, trust.card("tax-two"), second.key(Usage.WITNESS), site.now)
    own = merkle.Receipt(proof.index, proof.proof, signed.add(again.signatures[-1]))
    made = receipt.model_copy(update={"proof": own.to_text()})
    with pytest.raises(Refused, match="nobody known here"):
        verify_receipt(made, trust)


@pytest.mark.parametrize("place", [4, 11, 12, 75])
def test_a38_a_changed_byte_of_a_known_cosignature_is_refused(
    site: Site, receipt: Receipt, place: int
) -> None:
    line = next(line for line in receipt.proof.splitlines() if line.startswith("— lianmo/court/"))
    raw = bytearray(base64.b64decode(line.split()[2]))
    raw[place] ^= 1
    made = changed(receipt, line.split()[2], base64.b64encode(raw).decode())
    with pytest.raises(IntegrityError, match="cosignature does not verify"):
        verify_receipt(made, site.homes["auditor"].trust())


def test_a_receipt_from_before_the_witnesses_is_completed_later(site: Site) -> None:
    site.enter()
    early = site.audits["tax"].receipt(0)
    assert early.status == "uncosigned"
    site.rounds(times=3)
    later = site.audits["tax"].receipt(0)
    assert (later.status, later.leaf) == ("cosigned", early.leaf)
    site.enter()
    last = len(site.audits["tax"].entries()) - 1
    assert site.audits["tax"].receipt(last).status == "uncosigned"
    assert site.audits["tax"].receipt(0).status == "cosigned"


# --- 40: unwitnessed for too long -----------------------------------------------------------------


def test_a40_witnesses_away_beyond_t_stop_the_answers_and_bring_them_back(site: Site) -> None:
    site.rounds(times=3)
    site.away |= {"court", "bank-a", "auditor"}
    site.now += T - timedelta(seconds=1)
    site.rounds()
    assert site.reason() == ""
    site.now += timedelta(seconds=2)
    site.rounds()
    assert "too few witnesses have seen the log" in site.reason()
    site.enter()  # the log itself goes on, and with it jobs
    site.away -= {"court"}
    site.rounds()
    assert site.reason() != ""
    site.away.clear()
    site.rounds()
    assert site.reason() == ""


def test_a40_renewed_cosignatures_of_an_old_size_do_not_help_an_entry_that_is_withheld(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that drops new checkpoints, and lets everybody renew the last one."""
    site.rounds(times=3)
    monkeypatch.setattr(_Carrier, "publish_checkpoint", lambda *_: Accepted(kept=1))
    site.enter()
    for _ in range(11):
        site.now += timedelta(minutes=1)
        site.rounds(times=1)
    assert "waits for witnesses" in site.reason()
    monkeypatch.undo()
    site.now += timedelta(minutes=1)
    site.rounds(times=3)
    assert site.reason() == ""


def test_a40_the_provider_refuses_once_and_changes_no_counter(world: World, tmp_path: Path) -> None:
    """Over the whole order of checks: refused outwards, one entry with the code, no use spent."""
    tax = world.homes["tax"]
    board = WitnessBoard(
        found := server_store.Store(f"sqlite:///{tmp_path / 'board.db'}"),
        world.homes["platform"].trust,
        lambda: world.now,
    )
    seconds = itertools.count(step=10)

    class Direct(_Carrier):
        def _board(self) -> WitnessBoard:
            return board

    def node(org: str, store: Store) -> Witnessing:
        home = world.homes[org]
        audit = AuditLog(home, store)
        audit.require_sound(world.now)
        return Witnessing(
            home,
            store,
            audit,
            Direct(None, org),  # type: ignore[arg-type]  # a site that is not used
            lambda: world.now,
            settings=SETTINGS,
            clock=lambda: float(next(seconds)),
        )

    nodes = [node("tax", world.store), *(node(org, world.stores[org]) for org in world.stores)]
    gate = Gate(tax, world.store, lambda: world.now)
    ready = Witnessed(tax, world.store, SETTINGS).require
    asked = services(tax, world.store, gate, lambda: world.now)
    world.provider = Provider(tax, world.store, now=lambda: world.now, services=asked, ready=ready)
    grant = world.grant(max_uses=5)

    def refused() -> AuditEntry:
        before = world.counters(), len(world.refusals())
        assert world.ask(grant).result is Answered.REFUSED
        assert (world.counters(), len(world.refusals())) == (before[0], before[1] + 1)
        return world.refusals()[-1]

    told = refused()
    assert (told.check, told.reason) == (Check.FRESH, Reason.UNWITNESSED)
    for one in nodes * 3:
        one.round()
    assert world.ask(grant).result is not Answered.REFUSED
    world.now += T + timedelta(seconds=1)
    world.refresh()
    assert refused().reason is Reason.UNWITNESSED
    for one in nodes * 3:
        one.round()
    assert world.ask(grant).result is not Answered.REFUSED
    found.close()


# --- the board ------------------------------------------------------------------------------------


def test_the_board_keeps_one_row_a_log_and_witness_and_nothing_that_is_unsigned(
    site: Site,
) -> None:
    for _ in range(4):
        site.enter("court")
        site.now += timedelta(seconds=61)
        site.rounds(times=3)
    assert len(site.board.read(0).published) == len(site.nodes)
    assert len(site.board.read(0).seen) == len(site.nodes) * (len(site.nodes) - 1)
    point = next(i for i in site.board.read(0).published if i.org == "tax")
    note = next(i for i in site.board.read(0).seen if (i.org, i.witness) == ("tax", "court"))
    with pytest.raises(Refused, match="another organisation"):
        site.board.publish("court", point)
    with pytest.raises(IntegrityError):
        site.board.publish("court", point.model_copy(update={"org": "court"}))
    version = site.board.read(0).version
    wrong = [
        note.model_copy(update={"witness": "auditor"}),  # under a name that is not the caller's
        note.model_copy(update={"org": "court"}),
        note.model_copy(update={"org": "nobody"}),
        note.model_copy(update={"note": note.note.replace("court", "auditor")}),
        note.model_copy(update={"note": "x"}),
    ]
    assert site.board.cosign("court", SeenNotes(items=tuple(wrong))) == 0
    assert site.board.cosign("auditor", SeenNotes(items=(note,))) == 0
    assert site.board.read(0).version == version
    assert not site.board.read(version).seen
    with site.databases[0].read() as session:
        assert session.query(CheckpointRow).count() == len(site.nodes)
        assert session.query(CosignatureRow).count() == 12


def test_what_a_hostile_board_makes_up_is_passed_over(site: Site) -> None:
    """Notes of our log that our log never signed neither stop answers nor count."""
    site.rounds(times=3)
    tax = site.audits["tax"]
    fake = merkle.Checkpoint(tax.origin, 999, bytes(32))
    key = site.homes["court"].key(Usage.LOG).secret
    signed = merkle.sign_checkpoint(fake, key)  # type: ignore[arg-type]
    card = site.homes["court"].trust().card("court")
    note = cosign(signed, card, site.homes["court"].key(Usage.WITNESS), site.now)
    seen = SeenNote(org="tax", witness="court", note=note.to_text())
    junk = SeenNote(org="tax", witness="bank-a", note="x")
    site.nodes["tax"]._read(Board(version=1, published=(), seen=(seen, junk)))
    site.nodes["tax"]._count()
    assert site.reason() == ""
    assert site.alarms("tax") == []


def test_a_checkpoint_too_large_for_a_database_keeps_no_witness_from_its_work(site: Site) -> None:
    """A log may sign any size; whoever reads it must not fall over."""
    site.rounds(times=2)
    key = site.homes["tax"].key(Usage.LOG).secret
    huge = merkle.Checkpoint(site.audits["tax"].origin, 9_999_999_999_999_999_999, bytes(32))
    note = merkle.sign_checkpoint(huge, key).to_text()  # type: ignore[arg-type]
    published = Published(org="tax", note=note)
    with pytest.raises(IntegrityError, match="fewer than"):
        site.board.publish("tax", published)
    court = site.nodes["court"]
    court._read(Board(version=1, published=(published,), seen=()))
    site.enter("bank-a")
    site.rounds("bank-a", "court", times=2)
    assert sizes(site, "court")["bank-a"] == len(site.audits["bank-a"].entries())


def test_a38_a_witness_key_revoked_since_takes_its_cosignature_away_and_no_others(
    site: Site, receipt: Receipt
) -> None:
    """Dated before its revocation it counts; else it is as if it were not there."""
    base = site.homes["auditor"].trust()
    cards = {org: base.card(org) for org in base}
    for hours, known in ((1, {"auditor", "bank-a", "court"}), (-1, {"auditor", "bank-a"})):
        since = utc_text(NOW + timedelta(hours=hours))
        revoked = {"status": KeyStatus.REVOKED, "since": since}
        keys = tuple(
            key.model_copy(update=revoked) if key.usage is Usage.WITNESS else key
            for key in cards["court"].keys
        )
        card = cards["court"].model_copy(update={"keys": keys})
        signed = receipt.tlog_proof().signed
        seen = {org for org in ("auditor", "bank-a") if cosigned_at(signed, cards[org])}
        seen |= {"court"} if cosigned_at(signed, card) else set()
        assert seen == known


def test_an_empty_log_shows_nothing(site: Site) -> None:
    with contextlib.closing(Store.open(site.homes["platform"].database_url)) as store:
        audit = AuditLog(site.homes["platform"], store)
        with pytest.raises(NotFound):
            audit.published()


def test_alarms_of_one_log_have_an_end(site: Site) -> None:
    """Who signs a thousand other checkpoints fills neither our log nor our database."""
    site.enter(number=3)
    site.rounds("tax", "court")
    card, book = site.homes["court"].trust().card("tax"), WitnessBook(site.stores["court"])
    had = sizes(site, "court")["tax"]
    key = site.homes["tax"].key(Usage.LOG).secret
    for number in range(40):
        point = merkle.Checkpoint(site.audits["tax"].origin, had + number, bytes([number]) * 32)
        signed = merkle.sign_checkpoint(point, key)  # type: ignore[arg-type]
        site.nodes["court"]._told(card, book.judge(signed, card, {had: []}, site.now))
    assert len(book.alarms()) == len(site.alarms("court")) == 1
    with site.stores["court"].reading() as session:
        assert session.query(AlarmRow).count() == 1


# --- attacks with an old board, and a witness that lost its memory --------------------------------


def copied(site: Site) -> WitnessBoard:
    """The board as it stands, for a coordinator that shows it again later."""
    old = site.board.read(0)
    site.board, again = site.new_board(), site.board
    for item in old.published:
        site.board.publish(item.org, item)
    for note in old.seen:
        site.board.cosign(note.witness, SeenNotes(items=(note,)))
    site.board, board = again, site.board
    return board


def test_an_old_board_does_not_confirm_a_log_that_was_restored(site: Site) -> None:
    """A backup of five minutes ago, and a coordinator that shows the board of that time: a use
    would be given twice. Only what was cosigned after the start confirms it."""
    site.enter(number=3)
    site.rounds(times=4)
    saved(site, "tax", "old")
    board = copied(site)
    site.start("tax")
    site.now += timedelta(minutes=5)
    site.enter(number=2)
    site.rounds(times=4)
    assert site.reason() == ""
    restored(site, "tax", "old")
    site.of["tax"] = board
    site.rounds("tax", times=4)
    assert site.reason() != ""
    del site.of["tax"]  # and the true one says why
    site.stop("tax")
    site.start("tax")
    site.rounds(times=4)
    assert "of this log that are not the ones" in site.reason()


def test_a_start_is_confirmed_within_seconds_though_nothing_was_entered(site: Site) -> None:
    site.rounds(times=4)
    site.stop("tax")
    site.now += timedelta(seconds=5)
    site.start("tax")
    assert site.reason() != ""
    site.now += timedelta(seconds=1)
    site.rounds(times=2)
    assert site.reason() == ""


def test_an_older_note_does_not_take_back_what_a_witness_has_shown(site: Site) -> None:
    """What stopped the answers stays, whatever the board shows after it."""
    site.enter(number=3)
    site.rounds(times=4)
    saved(site, "tax", "old")
    board = copied(site)
    site.start("tax")
    site.enter(number=2)
    site.rounds(times=4)
    restored(site, "tax", "old")
    site.rounds("tax")
    assert "of this log that are not the ones" in site.reason()
    site.nodes["tax"]._read(board.read(0))
    site.nodes["tax"]._count()
    assert "of this log that are not the ones" in site.reason()


def test_a_witness_from_a_backup_knows_by_its_own_cosignature_what_it_took(site: Site) -> None:
    """Else it could be shown another history from there on; and nobody would prove to it from the
    size that it has, so it would never cosign that log again."""
    site.rounds(times=4)
    saved(site, "court", "old")
    site.start("court")
    site.enter(number=3)
    site.rounds(times=4)
    had = sizes(site, "court")["tax"]
    restored(site, "court", "old")
    assert sizes(site, "court")["tax"] < had
    site.enter(number=2)
    site.now += timedelta(seconds=61)
    site.rounds(times=4)
    assert sizes(site, "court")["tax"] == had + 2
    assert {
        name
        for name, _ in Witnessed(site.homes["tax"], site.stores["tax"], SETTINGS)
        .state(site.now)
        .witnesses
    } >= {"court"}


def test_many_old_cosignatures_do_not_crowd_out_the_ones_that_count(
    site: Site, tmp_path: Path
) -> None:
    """Sixteen organisations that have left stand on the board for ever, before all others."""
    codes = code_for_row(2, np.arange(18))
    homes = [
        Home.create(
            tmp_path / f"a{number:02}",
            org=f"a{number:02}",
            kind="auditor",
            name="w",
            uscc=codes[number].decode(),
            region="厦门",
            now=NOW - timedelta(days=1),
        )
        for number in range(18)
    ]
    base = site.homes["tax"].trust()
    trust = TrustStore([*(base.envelope(org) for org in base), *(home.card() for home in homes)])
    site.enter(number=3)
    newest, old = site.audits["tax"].published()[0], older_checkpoint(site, 2)
    notes = {}
    for number, home in enumerate(homes):
        point = newest if number >= 16 else old
        notes[home.org] = cosign(point, home.own(), home.key(Usage.WITNESS), NOW)
    seen = cosigners(merged(notes, newest, trust), "tax", trust)
    assert seen.keys() == {"a16", "a17"}


def test_the_platform_is_no_witness_though_it_has_a_key(site: Site) -> None:
    """Who carries the notes would be half of the quorum, and all of it in a federation of two."""
    site.enter(number=3)
    site.rounds("tax", "court")
    tax, platform = site.homes["tax"], site.homes["platform"]
    note = cosign(
        site.audits["tax"].published()[0],
        platform.own(),
        platform.key(Usage.WITNESS),
        site.now,
    )
    seen = SeenNote(org="tax", witness="platform", note=note.to_text())
    site.board.cosign("platform", SeenNotes(items=(seen,)))
    site.rounds("tax")
    assert "no witness has confirmed" in site.reason()
    trust = tax.trust()
    assert cosigners(note, "tax", trust) == {}
    few = TrustStore(trust.envelope(org) for org in ("tax", "bank-a", "platform"))
    assert (cosigners(note, "tax", few), required(few, "tax")) == ({}, 1)


def test_a_version_that_was_made_up_keeps_nobody_from_the_true_board(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that lies once, and is mended: no node has to be started again."""
    site.rounds(times=4)

    def far(self: WitnessBoard, after: int) -> Board:
        return Board(version=(1 << 53) - 1, published=(), seen=())

    with monkeypatch.context() as patched:
        patched.setattr(WitnessBoard, "read", far)
        site.rounds(times=1)
    for _ in range(12):
        site.now += timedelta(minutes=1)
        site.rounds(times=2)
    assert site.reason() == ""
