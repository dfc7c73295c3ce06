"""Nodes run an audited job; their bundles go to auditors, who name what deviates or sign it off."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from clients import bundles, replay
from clients.cli.main import call
from clients.home import Home
from clients.runner import Admission, Outcome, Runner
from clients.store import Jobs, Store
from clients.transcripts import StoredTranscript
from federation import escrow, fab
from federation.api import TrainOrder, TrainReply
from federation.checks import ApprovedJob
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, NotFound, Refused, UsageError
from federation.objects import AuditRule, RunRecord, Usage, utc_text
from federation.package import package_sha256
from federation.tables import BankData, DepartmentData
from federation.tasks import registry
from federation.tasks.party import Party
from protocols import labels, linear_query
from protocols.streams import encode
from tests.attacks.test_replay_attacks import Biased
from tests.clients.test_runner import Board, Entries, Queues, memory_books
from tests.federation.parties import CODES
from tests.federation.scorecard_data import SUMS_ONLY, make_world

AUDITORS = ("audit-a", "audit-b", "audit-c")


@dataclass
class Admitted:
    job: ApprovedJob
    snapshot_digest: str = "0" * 64


@dataclass
class OpenGate:
    """Admits the one job of this test: the gate has tests of its own."""

    job: ApprovedJob

    def admit(self, *_: Any, **__: Any) -> Admitted:
        return Admitted(self.job)

    def require_in_force(self, job: ApprovedJob) -> None:
        """It is."""

    def close(self, manifest: str, attempt: int) -> None:
        """Counted nowhere."""


class AuditedCity:
    """Homes of a bank, two departments and three auditors, and one run of a job."""

    def __init__(self, folder: Path, program: Callable[[Party, Any], Any]) -> None:
        self.world = make_world(rows=700, customers=500)
        now = datetime.now(UTC)
        self.manifest = self.world.manifest(**SUMS_ONLY).model_copy(
            update={
                "audit": AuditRule(auditors=AUDITORS),
                "package_sha256": package_sha256(),
                "created": utc_text(now),
                "not_before": utc_text(now - timedelta(minutes=1)),
            }
        )
        kinds = {"bank": "bank", "dept_0": "department", "dept_1": "department"}
        kinds |= dict.fromkeys(AUDITORS, "auditor")
        self.homes = {
            org: Home.create(folder / org, org=org, kind=kind, name=org, uscc=code, region="厦门")
            for code, (org, kind) in zip(cycle(CODES), kinds.items(), strict=False)
        }
        for home in self.homes.values():
            for other in self.homes.values():
                if home is not other:
                    home.trust_card(other.card())
        self.signed = sign(self.manifest, self.homes["bank"].key(Usage.PROPOSE))
        self.parties = ("bank", *self.manifest.departments)
        self.stores = {org: Store.open(self.homes[org].database_url) for org in self.parties}
        for store in self.stores.values():
            Jobs(store).put(self.manifest.digest(), self.manifest.job, self.signed.to_json(), now)
        self.program, self.queues = program, Queues()
        self.data: dict[str, BankData | DepartmentData] = {
            "bank": self.world.bank,
            **self.world.departments,
        }

    def run(self) -> dict[str, TrainReply]:
        order = TrainOrder(manifest=self.signed, approvals=(), attempt=1)
        replies: dict[str, TrainReply] = {}

        def train(org: str) -> None:
            end = datetime.now(UTC) + timedelta(hours=1)
            job = ApprovedJob(self.manifest, self.manifest.digest(), org, (), end)
            runner = Runner(
                self.homes[org],
                gate=OpenGate(job),
                program=partial(self._party, org),
                relay=self.queues.of(org),
                coordinator=Board(),
                books=memory_books(),
                audit=Entries(),
                now=lambda: datetime.now(UTC),
                hold_s=60.0,
            )
            config = dict(fab.expected_run_config(self.signed))
            replies[org] = runner.train(order, fab.build(self.signed), config)

        threads = [threading.Thread(target=train, args=(org,)) for org in self.parties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return replies

    def _party(self, org: str, party: Party, admission: Admission) -> Outcome:
        self.program(party, self.data[org])
        return Outcome(b"{}")

    def bundle(self, org: str, *, opens: bool = False, **options: Any) -> bytes:
        data: bundles.Data = lambda record: (self.data[org], None)  # noqa: E731 - the gate's
        home, store = self.homes[org], self.stores[org]
        options |= {"opens": data} if opens else {}
        return replay.pack(home, store, self.manifest.job, now=datetime.now(UTC), **options)

    def read(self, data: bytes, auditor: str = "audit-a") -> bundles.Bundle:
        return replay.unpack(data, self.homes[auditor], datetime.now(UTC))

    def shares(self, data: bytes, *auditors: str) -> list[Envelope]:
        now = datetime.now(UTC)
        return [replay.share(self.homes[a], self.read(data, a), "audit-a", now) for a in auditors]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedCity]:
    made = AuditedCity(tmp_path_factory.mktemp("city"), registry.run_party)
    replies = made.run()
    assert {reply.state for reply in replies.values()} == {"succeeded"}
    yield made
    for store in made.stores.values():
        store.close()


def test_records_of_both_ends_hold_all_commitments_and_the_escrow(city: AuditedCity) -> None:
    records = {
        org: city.read(city.bundle(org)).account.record for org in ("bank", "dept_0", "dept_1")
    }
    said = {
        org: {(c.org, c.what): c.digest for c in record.committed if c.what != "agreement"}
        for org, record in records.items()
    }
    for what in ("seed", "nonce", "customers", "labels", "columns", "escrow"):
        assert len({said[org]["bank", what] for org in said}) == 1
    assert said["bank"]["dept_0", "matrix bins"] == said["dept_0"]["dept_0", "matrix bins"]


def test_an_auditor_replays_a_whole_job_and_signs_what_anybody_can_verify(
    city: AuditedCity,
) -> None:
    now, me = datetime.now(UTC), city.homes["audit-a"]
    plain = {org: city.bundle(org) for org in city.parties}
    shares = city.shares(plain["dept_0"], "audit-a", "audit-b")
    bundles = [city.read(data) for data in plain.values()]
    drawn = replay.draw(me, bundles, shares, "dept_0", "0.2", now)
    shown = city.bundle("dept_0", draw=drawn, to="audit-a")
    opened = {org: city.bundle(org, opens=True, to="audit-a") for org in ("bank", "dept_1")}
    given = [city.read(shown), *(city.read(data) for data in opened.values())]
    statement = replay.replay(me, given, shares, drawn, now)
    assert statement.findings == ()
    compared = {(item.check, item.of): item.compared for item in statement.checks}
    assert compared["queries", "bank"] == len(drawn.unverified(replay.AuditDraw).drawn) >= 3
    assert compared["program", "bank"] > 10 < compared["program", "dept_1"]
    signed = replay.signed_statement(me, statement)
    trust = city.homes["dept_0"].trust()
    assert trust.verify(signed, replay.AuditStatement, Usage.RUN, now).org == "audit-a"


def test_only_drawn_queries_leave_the_department_and_only_for_that_auditor(
    city: AuditedCity,
) -> None:
    now, me = datetime.now(UTC), city.homes["audit-a"]
    plain = city.bundle("dept_0")
    assert city.read(plain).account.transcript.bodies == {}  # type: ignore[attr-defined]
    shares = city.shares(plain, "audit-a", "audit-c")
    drawn = replay.draw(me, [city.read(plain)], shares, "dept_0", "0.05", now)
    shown = city.bundle("dept_0", draw=drawn, to="audit-a")
    wanted = drawn.unverified(replay.AuditDraw).drawn
    bodies = city.read(shown).account.transcript.bodies  # type: ignore[attr-defined]
    assert len(bodies) == len(wanted) == 3
    with pytest.raises(Refused, match="sealed to audit-a"):
        city.read(shown, "audit-b")
    with pytest.raises(UsageError, match="to which auditor"):
        city.bundle("dept_0", draw=drawn)
    with pytest.raises(Refused, match="of another auditor, or for another department"):
        city.bundle("dept_1", draw=drawn, to="audit-a")
    with pytest.raises(Refused, match="is no auditor of this job"):
        city.bundle("dept_0", draw=drawn, to="bank")
    said = drawn.unverified(replay.AuditDraw)
    for changed in ({"drawn": (0, 1, 2, 3)}, {"records": ("ab" * 32,)}, {"attempt": 2}):
        other = sign(said.model_copy(update=changed), me.key(Usage.RUN))
        with pytest.raises(IntegrityError, match="audit-a"):
            city.bundle("dept_0", draw=other, to="audit-a")


def test_what_is_missing_is_asked_for_by_name(city: AuditedCity) -> None:
    now, me = datetime.now(UTC), city.homes["audit-a"]
    plain = city.bundle("dept_0")
    shares = city.shares(plain, "audit-a", "audit-b")
    with pytest.raises(NotFound, match="1 shares, 2 are needed"):
        replay.draw(me, [city.read(plain)], shares[:1], "dept_0", "0.05", now)
    drawn = replay.draw(me, [city.read(plain)], shares, "dept_0", "0.05", now)
    with pytest.raises(NotFound, match=r"dept_0.*was drawn.*bundle of this draw"):
        replay.replay(me, [city.read(plain)], shares, drawn, now)
    shown = city.bundle("dept_0", draw=drawn, to="audit-a")
    others = city.shares(plain, "audit-a", "audit-c")
    with pytest.raises(IntegrityError, match="made with other shares"):
        replay.replay(me, [city.read(shown)], others, drawn, now)


def test_a_changed_file_makes_no_evidence(city: AuditedCity) -> None:
    me, now = city.homes["audit-a"], datetime.now(UTC)
    data = city.bundle("dept_0")
    bundle = city.read(data)
    frames = {peer: list(bundle.account.transcript.frames(peer)) for peer in ("bank", "dept_1")}
    frames["bank"][3], frames["bank"][4] = frames["bank"][4], frames["bank"][3]
    kept = StoredTranscript.of(_folder(city, "dept_0"))
    changed = bundles.BundleTranscript(frames, {})
    account = type(bundle.account)(bundle.account.record, changed, bundle.account.given)
    if kept.frames("bank")[3].is_sent == kept.frames("bank")[4].is_sent:
        with pytest.raises(IntegrityError, match="not the one that it signed"):
            replay.replay(me, [bundles.Bundle(bundle.manifest, account)], [], None, now)
    for broken in (b"", data[:-30], b"PK" + data[2:200]):
        with pytest.raises(IntegrityError):
            city.read(broken)


def _folder(city: AuditedCity, org: str) -> Path:
    (found,) = (city.homes[org].path / "runs" / city.manifest.job).glob("*-1")
    return found


def test_the_commands_do_the_same(city: AuditedCity, tmp_path: Path) -> None:
    def run(org: str, *arguments: str) -> int:
        return call(["--home", str(city.homes[org].path), *arguments])

    job = city.manifest.job
    files = {org: tmp_path / f"{org}.bundle" for org in city.parties}
    for org, file in files.items():
        assert run(org, "job", "bundle", job, "--out", str(file)) == 0
    shares = []
    for auditor in ("audit-a", "audit-b"):
        share = str(tmp_path / f"{auditor}.share")
        arguments = ("audit", "share", str(files["dept_1"]), "--to", "audit-a", "--out", share)
        assert run(auditor, *arguments) == 0
        shares += ["--share", share]
    drawn, shown = str(tmp_path / "draw.json"), str(tmp_path / "shown.bundle")
    given = [str(file) for file in files.values()]
    assert run("audit-a", "audit", "draw", *given, "--of", "dept_1", *shares, "--out", drawn) == 0
    extra = ("--draw", drawn, "--to", "audit-a", "--out", shown)
    assert run("dept_1", "job", "bundle", job, *extra) == 0
    given = [str(files["bank"]), str(files["dept_0"]), shown]
    statement = str(tmp_path / "statement.json")
    arguments = ("job", "replay", *given, *shares, "--draw", drawn, "--out", statement)
    assert run("audit-a", *arguments) == 0
    assert run("bank", "audit", "statement", statement, "--json") == 0
    assert json.loads(Path(statement).read_bytes())["payloadType"].endswith("statement.v1+json")
    for part in ("2", "0", "-1", "nan", "inf", "much"):
        wrong = ("--of", "dept_1", "--part", part, "--out", drawn)
        assert run("audit-a", "audit", "draw", *given, *wrong) == 2
    half = str(tmp_path / "half.json")
    plain = [str(file) for file in files.values()]
    more = ("--of", "dept_1", "--part", ".5", *shares, "--out", half)
    assert run("audit-a", "audit", "draw", *plain, *more) == 0
    said = Envelope.from_json(Path(half).read_bytes()).unverified(replay.AuditDraw)
    assert (said.share, len(said.drawn)) == ("0.5", said.total // 2)
    # a copy of another attempt or job, a stranger's file, nothing at all
    assert run("audit-a", "job", "replay", str(tmp_path / "none"), "--json") == 2
    assert run("audit-a", "job", "replay", statement) == 4
    assert run("dept_0", "audit", "share", given[0], "--to", "audit-a", "--out", drawn) == 5
    assert run("dept_0", "job", "bundle", "no-such-job", "--out", drawn) == 5


def test_a_department_with_another_matrix_ends_the_replay_with_code_4_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(linear_query, "Department", Biased)
        made = AuditedCity(tmp_path, registry.run_party)
        replies = made.run()  # the bank's sums may or may not show it; both ends keep their account
    assert all(reply.record is not None for reply in replies.values())
    file = tmp_path / "opened.bundle"
    file.write_bytes(made.bundle("dept_0", opens=True, to="audit-a"))
    home = str(made.homes["audit-a"].path)
    assert call(["--home", home, "job", "replay", str(file), "--json"]) == 4
    told = capsys.readouterr()
    assert "dept_0" in told.err
    signed = Envelope.from_json(told.out.encode().strip())
    (found,) = signed.unverified(replay.AuditStatement).findings
    assert (found.check, found.party, found.stage) == ("program", "dept_0", "counts")
    assert found.token == "/".join("00")
    for store in made.stores.values():
        store.close()


def test_no_damaged_bundle_is_anything_but_refused_by_name(city: AuditedCity) -> None:
    """Bits flipped, cut, lengthened or missing: an error that a command maps, never another one."""
    rng, me = random.Random(7), city.homes["audit-a"]  # noqa: S311 - which bits, nothing secret
    sealed = bundles.unzipped(city.bundle("dept_0", opens=True, to="audit-a"))["sealed"]
    info = encode(labels.AUDIT_BUNDLE, "audit-a")
    whole = bundles.unzipped(escrow.open_sealed(me.key(Usage.ENCRYPT), sealed, info))
    outcomes = Counter[str]()
    for _ in range(80):
        members = dict(whole)
        name = rng.choice([name for name in members if not name.startswith("frames/")])
        content = bytearray(members.pop(name))
        how = rng.randrange(4)
        if how == 0:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif how == 1:
            del content[rng.randrange(len(content)) :]
        elif how == 2:
            content += bytes(rng.randrange(1, 40))
        if how < 3:
            members[name] = bytes(content)
        try:
            bundle = city.read(bundles.zipped(members))
            replay.replay(me, [bundle], [], None, datetime.now(UTC))
            outcomes["replayed"] += 1  # it may still name the party
        except (IntegrityError, NotFound) as error:
            outcomes[type(error).__name__] += 1
    assert outcomes["IntegrityError"] > 40


def test_a_record_of_somebody_who_took_no_part_is_no_account(city: AuditedCity) -> None:
    stranger = city.homes["audit-b"]
    members = bundles.unzipped(city.bundle("dept_0"))
    record = Envelope.from_json(members["record.json"]).unverified(RunRecord)
    other = sign(record.model_copy(update={"org": "audit-b"}), stranger.key(Usage.RUN))
    with pytest.raises(IntegrityError, match=r"audit-b.*nobody who took part"):
        city.read(bundles.zipped(members | {"record.json": other.to_json()}))
    elsewhere = record.model_copy(update={"manifest": "ab" * 32})
    signed = sign(elsewhere, city.homes["dept_0"].key(Usage.RUN))
    with pytest.raises(IntegrityError, match=r"dept_0.*another job"):
        city.read(bundles.zipped(members | {"record.json": signed.to_json()}))
