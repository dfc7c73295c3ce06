"""The gate: who gets data, and that nobody else does (GOVERNANCE.md, acceptance tests 20 to 28)."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import datasets, registries
from clients.gate import Gate, declared_tokens
from clients.sources import OpenSnapshot
from clients.store import Reservation, Store
from federation import fab
from federation.audit import Action, AuditEntry, Check, Result
from federation.catalogue import Dataset
from federation.channel import in_process, run_in_process
from federation.errors import (
    IntegrityError,
    LianmoError,
    NotFound,
    NotKept,
    RefusalCode,
    Refused,
)
from federation.ledger import Ledger
from federation.objects import (
    AuditRule,
    CoverKind,
    CoverRule,
    Decision,
    JobManifest,
    RunRecord,
    ScorecardParameters,
    Usage,
    utc_text,
)
from federation.registry import Registry, customers_cover, registry_cover
from federation.tables import CategoryColumn, NumberColumn
from federation.tasks import scorecard
from federation.tasks.cover import receive_cover, send_cover
from federation.tasks.party import Party as Program
from protocols.streams import Randomness
from tests.clients import gated
from tests.clients.gated import CANARY, CITY, CODES, CUSTOMERS, NOW, REGISTRY, ROWS, Party, World
from tests.federation.parties import make_approval, make_org

ROOT = Path(__file__).parents[2]

made, world = gated.made, gated.world


def refused(
    world: World,
    caplog: pytest.LogCaptureFixture,
    code: RefusalCode,
    reason: str,
    job: JobManifest | None = None,
    party: Party | None = None,
    **changes: Any,
) -> None:
    """One coarse word outwards, one line with the reason in the log, and nothing counted."""
    before = world.tax.store.exposure.tokens("bank_a", "payments")
    audit = (party or world.tax).audit
    entries = audit.entries()
    caplog.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(Refused) as raised:
        world.admit(party or world.tax, job, **changes)
    assert raised.value.code is code, caplog.text
    assert raised.value.what == "the job is refused at the gate"
    assert raised.value.__cause__ is None
    lines = [r for r in caplog.records if r.name == "lianmo.gate"]
    assert len(lines) == 1
    assert reason in lines[0].getMessage()
    assert world.tax.store.exposure.tokens("bank_a", "payments") == before
    (entry,) = audit.entries()[len(entries) :]  # exactly one, with the inner code
    assert (entry.action, entry.outcome) == (Action.ATTEMPT, Result.REFUSED)
    assert entry.check is not None
    assert entry.reason is not None
    assert entry.reason.value in (code.value, "INTEGRITY", "NOT_FOUND", "OTHER")


# --- what stands in the audit log -----------------------------------------------------------------


def test_the_intent_is_on_disk_before_any_data_are_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed after it read the data has said so before."""
    seen: list[list[Action]] = []
    column = OpenSnapshot.column

    def watched(self: OpenSnapshot, *arguments: Any) -> Any:
        with contextlib.closing(sqlite3.connect(world.tax.home.path / "state.db")) as other:
            leaves = other.execute("SELECT leaf FROM audit_entry ORDER BY seq").fetchall()
        seen.append([AuditEntry.from_leaf(leaf).action for (leaf,) in leaves])
        return column(self, *arguments)

    monkeypatch.setattr(OpenSnapshot, "column", watched)
    world.admit(world.tax).department_data()
    assert [actions[-1] for actions in seen] == [Action.ATTEMPT, Action.ATTEMPT]


def test_an_attempt_is_entered_as_it_was_counted(world: World) -> None:
    """Test 43: admitted with what it declared, closed with what it spent."""
    world.admit(world.tax, attempt=1)
    world.admit(world.tax, attempt=1)  # after a restart: another entry, counted once
    world.tax.gate.close(world.job.digest(), 1)
    world.tax.gate.close(world.job.digest(), 1)
    found = [entry for entry in world.tax.audit.entries() if entry.job is not None]
    assert [(entry.action, entry.amount) for entry in found] == [
        (Action.ATTEMPT, declared_tokens(world.job)),
        (Action.ATTEMPT, declared_tokens(world.job)),
        (Action.ATTEMPT_CLOSED, 0),
    ]
    assert {entry.policy is not None for entry in found[:2]} == {True}
    assert world.tax.audit.verify().problems == ()


def test_a_clock_that_was_set_back_admits_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.tax.audit.append(Action.CARD_TRUSTED, "a" * 64, NOW + timedelta(hours=1))
    refused(world, caplog, RefusalCode.UNFULFILLABLE, "the clock is behind")
    assert world.tax.audit.entries()[-1].check is Check.CLOCK


def test_a_log_that_was_changed_lets_nobody_in(world: World) -> None:
    """Fail closed: what cannot be logged does not happen."""
    (world.tax.home.log / "audit.checkpoint").unlink()
    before = world.tax.store.exposure.tokens("bank_a", "payments")
    with pytest.raises(Refused):
        world.admit(world.tax)
    assert world.tax.store.exposure.tokens("bank_a", "payments") == before


# --- what an approved job gets --------------------------------------------------------------------


def test_a_department_hands_out_the_approved_columns_in_the_registry_s_order(world: World) -> None:
    data = world.admit(world.tax).department_data()
    assert [column.name for column in data.columns] == ["paid", "sector"]
    np.testing.assert_array_equal(data.codes, CODES)
    paid, sector = data.columns
    assert isinstance(paid, NumberColumn)
    assert isinstance(sector, CategoryColumn)
    known = np.isin(np.arange(ROWS), world.tax_rows)
    np.testing.assert_array_equal(paid.values, np.where(known, world.paid, np.nan))
    assert sector.categories == ("甲0", "甲1", "甲2")
    np.testing.assert_array_equal(sector.codes, np.where(known, np.arange(ROWS) % 3, -1))


def test_the_bank_hands_out_its_customers_in_the_cover_s_order(world: World) -> None:
    data = world.admit(world.bank).bank_data()
    order = np.sort(world.customers)
    np.testing.assert_array_equal(data.positions, order)
    np.testing.assert_array_equal(data.codes, CODES[order])
    np.testing.assert_array_equal(data.columns[0].values, order * 2)  # type: ignore[union-attr]
    np.testing.assert_array_equal(data.labels, world.bad[order])
    assert data.cover_rows == ROWS


def test_a_cover_of_customers_only_is_a_part_of_the_registry(world: World) -> None:
    rows = world.bank.gate.cover_rows("loans", CoverKind.CUSTOMERS)
    job = world.manifest(cover=CoverRule(kind=CoverKind.CUSTOMERS, rows=rows), customers_max=rows)
    bank, tax = world.admit(world.bank, job), world.admit(world.tax, job)
    data, order = bank.bank_data(), np.sort(world.customers)
    assert (data.cover_rows, data.positions.tolist()) == (CUSTOMERS, list(range(CUSTOMERS)))
    np.testing.assert_array_equal(bank.cover.positions, order)
    part = tax.department_data(bank.cover)
    whole = world.admit(world.tax).department_data()
    np.testing.assert_array_equal(part.codes, CODES[order])
    np.testing.assert_array_equal(
        part.columns[0].values,  # type: ignore[union-attr]
        whole.columns[0].values[order],  # type: ignore[union-attr]
    )


def test_decoys_stay_the_same_over_jobs_and_restarts(world: World) -> None:
    job = world.manifest(cover=CoverRule(kind=CoverKind.DECOY, decoys=2, rows=2400))
    first = world.admit(world.bank, job).cover
    assert len(first) == 2 * CUSTOMERS
    assert set(np.sort(world.customers)) <= set(first.positions)
    again = Gate(world.bank.home, Store.open(world.bank.home.database_url), lambda: NOW)
    second = world.admit(Party(world.bank.home, world.bank.store, again), job, attempt=1).cover
    assert second.digest == first.digest
    key = world.bank.home.path / "data" / "decoys.key"
    assert key.stat().st_mode & 0o777 == 0o600
    again._store.close()


def test_a_department_takes_no_other_cover_than_the_approved_kind(world: World) -> None:
    tax = world.admit(world.tax)
    with pytest.raises(IntegrityError, match="of kind registry"):
        tax.department_data(customers_cover(REGISTRY, CODES[:10]))
    job = world.manifest(cover=CoverRule(kind=CoverKind.CUSTOMERS, rows=1500))
    for cover in (None, customers_cover(REGISTRY, CODES[:1501]), registry_cover(REGISTRY)):
        with pytest.raises(IntegrityError, match="approved"):
            world.admit(world.tax, job).department_data(cover)
    with pytest.raises(Refused, match="1200 rows, approved are 1500"):
        world.admit(world.bank, job).bank_data()


def test_nobody_gets_what_another_role_gets(world: World) -> None:
    with pytest.raises(Refused, match="as department, not as bank"):
        world.admit(world.tax).bank_data()
    with pytest.raises(Refused, match="as bank, not as department"):
        world.admit(world.bank).department_data()


def test_the_snapshot_digest_is_salted_stable_and_follows_the_data(world: World) -> None:
    first = world.admit(world.tax).snapshot_digest
    assert world.admit(world.tax).snapshot_digest == first  # the same attempt after a restart
    assert world.admit(world.tax, attempt=1).snapshot_digest != first  # another salt
    fewer = world.manifest(fields=("paid",))
    assert world.admit(world.tax, fewer).snapshot_digest != first


# --- what is refused ------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_manifest_opens_nothing(world: World) -> None:
    signed = world.signed(world.job)
    for place in range(0, len(signed.payload), 97):
        payload = bytearray(signed.payload)
        payload[place] ^= 1
        forged = signed.model_copy(update={"payload": bytes(payload)})
        with pytest.raises(Refused):
            world.admit(world.tax, manifest=forged)
    assert world.tax.store.exposure.tokens("bank_a", "payments") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"job": "sme-card-2"},
        {"purpose": "credit-decision"},
        {"expires": utc_text(NOW + timedelta(days=8))},
        {"outputs": ("bank_a", "tax")},
        {"previous": "ab" * 32},
        {"fields": ("paid", "secret")},
        {"parameters": ScorecardParameters(openings=2)},
        {"customers_min": 999},
    ],
    ids=str,
)
def test_no_approval_survives_a_change_that_the_bank_signed(
    world: World, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    changed = world.manifest(**change)
    old = world.approvals(world.job)
    code = RefusalCode.CONSENT_INVALID
    refused(world, caplog, code, "another manifest", changed, approvals=old)
    if "purpose" not in change:  # with its own approvals it is a job like any other
        world.admit(world.tax, changed)


def test_a_changed_bundle_or_configuration_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, config = bytearray(fab.build(world.job)), fab.expected_run_config(world.job)
    bundle[40] ^= 1
    code = RefusalCode.CONSENT_INVALID
    refused(world, caplog, code, "bundle", fab=bytes(bundle))
    refused(world, caplog, code, "bundle", fab=fab.build(world.manifest(job="other")))
    refused(world, caplog, code, "configuration", run_config={**config, "rounds": 9})
    refused(world, caplog, code, "configuration", run_config={})


def test_another_release_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    job = world.manifest(package_sha256="ab" * 32)
    refused(world, caplog, RefusalCode.CONSENT_INVALID, "another release", job)


def test_a_forged_withdrawal_does_not_stop_a_job_for_good(world: World) -> None:
    word = make_approval("tax", world.job.digest(), decision=Decision.WITHDRAW, nonce="1" * 32)
    forged = CITY.sign(word, Usage.APPROVE)
    with pytest.raises(Refused):
        world.admit(world.tax, approvals=[*world.approvals(world.job), forged])
    world.admit(world.tax)


def test_an_approval_that_ran_out_gives_way_to_a_newer_one(world: World) -> None:
    digest = world.job.digest()
    times = {"valid_from": utc_text(NOW - timedelta(days=2)), "valid_until": utc_text(NOW)}
    old = make_approval("tax", digest, created=utc_text(NOW - timedelta(hours=1)), **times)
    kept = world.tax.sign(old, Usage.APPROVE).to_json()
    world.tax.store.jobs.put_approval(old.digest(), digest, "tax", kept, NOW)
    world.admit(world.tax)


def test_a_running_job_keeps_its_data_when_the_dataset_is_removed(world: World) -> None:
    admission = world.admit(world.tax)
    datasets.remove(world.tax.home, world.tax.store, "payments", NOW)
    assert not list((world.tax.home.path / "data").glob("*.parquet"))
    assert admission.department_data().rows == ROWS
    assert len(admission.snapshot_digest) == 64


def test_one_owner_missing_refused_or_withdrawn_stops_the_job(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    tax, city = world.approvals(world.job)
    refused(world, caplog, RefusalCode.SPEC_INVALID, "has not approved", approvals=[tax])
    refused(world, caplog, RefusalCode.SPEC_INVALID, "has not approved", approvals=[city])
    times = {"created": utc_text(NOW), "valid_from": utc_text(NOW), "nonce": "1" * 32}
    word = make_approval("tax", world.job.digest(), decision=Decision.WITHDRAW, **times)
    withdrawal = world.tax.sign(word, Usage.APPROVE)
    given = [tax, city, withdrawal]
    refused(world, caplog, RefusalCode.DECLINED, "withdrew", approvals=given)
    # What this node has seen once counts although nobody delivers it any more.
    refused(world, caplog, RefusalCode.DECLINED, "withdrew", approvals=[tax, city])


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        (("paid", "nowhere"), RefusalCode.UNFULFILLABLE, "has no field"),
        (("paid", "uscc"), RefusalCode.SPEC_INVALID, "not a feature"),
        (("paid", "core"), RefusalCode.FIELD_LEVEL, "L5"),
    ],
)
def test_a_field_that_is_not_offered_is_refused_though_all_approved(
    world: World,
    caplog: pytest.LogCaptureFixture,
    fields: tuple[str, ...],
    code: RefusalCode,
    reason: str,
) -> None:
    refused(world, caplog, code, reason, world.manifest(fields=fields))


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"dataset": "other"}, RefusalCode.UNFULFILLABLE, "no dataset other"),
        ({"catalogue_digest": "ab" * 32}, RefusalCode.SPEC_INVALID, "is another one"),
        ({"purpose": "credit-decision"}, RefusalCode.PURPOSE_NOT_ALLOWED, "the purpose"),
        (
            {"parameters": ScorecardParameters(openings=1, min_cohort=49)},
            RefusalCode.SPEC_INVALID,
            "min_cohort 49",
        ),
    ],
    ids=str,
)
def test_what_the_entry_in_force_does_not_allow_is_refused_though_all_approved(
    world: World,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    code: RefusalCode,
    reason: str,
) -> None:
    refused(world, caplog, code, reason, world.manifest(**changes))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: lines[1:],
        lambda lines: [*lines, {**lines[0], "to": "city"}],
        lambda lines: [{**lines[-1], "count": lines[-1]["count"] + 1}, *lines[:-1]],
        lambda lines: [*lines[:-1], {**lines[-1], "bits": lines[-1]["bits"] - 1}],
    ],
)
def test_declared_disclosures_are_those_of_the_task_or_the_job_is_refused(
    world: World, caplog: pytest.LogCaptureFixture, tamper: Callable[[list[Any]], list[Any]]
) -> None:
    lines = [line.model_dump() for line in world.job.disclosures]
    job = world.manifest(disclosures=tamper(lines))
    refused(world, caplog, RefusalCode.SPEC_INVALID, "declared disclosures", job)


def test_figures_that_do_not_follow_from_the_job_are_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    limits = world.job.limits.model_dump()
    fewer = {**limits, "tokens": limits["tokens"] - 1}
    job = world.manifest(limits=fewer)
    refused(world, caplog, RefusalCode.SPEC_INVALID, "do not follow", job)


def test_an_entry_published_anew_ends_the_jobs_approved_before(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.admit(world.tax, attempt=0)
    datasets.describe(world.tax.store, "payments", {}, {"sector": {"level": "L5"}})
    world.publish(world.tax, "payments")
    world.tax.gate.close(world.job.digest(), 0)
    refused(world, caplog, RefusalCode.SPEC_INVALID, "is another one", attempt=1)


def test_an_entry_that_was_put_into_the_database_unsigned_is_not_believed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    entry = world.entry(world.tax, "payments")
    plain = entry.model_dump(mode="json")
    for field in plain["fields"]:
        field["level"] = "L1"
    forged = world.bank.sign(Dataset.model_validate(plain), Usage.APPROVE)
    digest = forged.unverified(Dataset).digest()
    world.tax.store.entries.set_signed("payments", forged.to_json(), digest, NOW)
    job = world.manifest(fields=("paid", "core"))
    refused(world, caplog, RefusalCode.CONSENT_INVALID, "signed for another", job)


def test_another_registry_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    registries.add(world.tax.home, world.tax.store, Registry(CODES[1:], NOW.date(), "济宁市"), NOW)
    refused(world, caplog, RefusalCode.UNFULFILLABLE, "registry snapshot")


def test_only_an_auditor_that_is_trusted_here_is_taken_for_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def audited(*auditors: str) -> JobManifest:
        return world.manifest(audit=AuditRule(auditors=auditors))

    first, second = (make_org(f"audit-{x}", "auditor", now=NOW - timedelta(days=1)) for x in "ab")
    for home in (world.tax.home, world.bank.home):
        home.trust_card(first.envelope)
    refused(world, caplog, RefusalCode.UNFULFILLABLE, "audit-b", job=audited(first.id, second.id))
    court = make_org("court", "department", now=NOW - timedelta(days=1))
    world.tax.home.trust_card(court.envelope)  # trusted, and no auditor
    refused(world, caplog, RefusalCode.SPEC_INVALID, "court", job=audited(first.id, court.id))
    for home in (world.tax.home, world.bank.home):
        home.trust_card(second.envelope)
    assert world.admit(world.tax, audited(first.id, second.id), attempt=1).attempt == 1


def test_a_run_is_opened_again_for_its_auditor_and_only_as_it_was(world: World) -> None:
    """The data of the run, once more, entered before they are read; never other data."""
    admission = world.admit(world.tax, attempt=1)
    given = admission.department_data()
    record = RunRecord(
        job=world.job.job,
        manifest=world.job.digest(),
        org="tax",
        attempt=1,
        package_sha256="0" * 64,
        fab_sha256="0" * 64,
        run_config_sha256="0" * 64,
        snapshot=admission.snapshot_digest,
        commitments=(),
        transcript=(),
        disclosures=(),
        tokens=0,
        output=None,
        outcome="succeeded",
        stage="finish",
        started=utc_text(NOW),
        ended=utc_text(NOW),
    )
    signed = world.signed(world.job).to_json()
    world.tax.store.jobs.put(world.job.digest(), world.job.job, signed, NOW)
    before = world.tax.store.exposure.tokens("bank_a", "payments")
    again = world.tax.gate.reopen(record, "audit-a").department_data()
    for old, new in zip(given.columns, again.columns, strict=True):
        np.testing.assert_array_equal(
            *(getattr(c, "values", getattr(c, "codes", None)) for c in (old, new))
        )
    assert world.tax.audit.entries()[-1].action is Action.AUDIT_OPENED
    assert world.tax.store.exposure.tokens("bank_a", "payments") == before
    other = record.model_copy(update={"snapshot": "ab" * 32})
    with pytest.raises(NotFound, match="changed since the run"):
        world.tax.gate.reopen(other, "audit-a")
    never = record.model_copy(update={"attempt": 2})
    with pytest.raises(NotFound, match="given nothing in that attempt"):
        world.tax.gate.reopen(never, "audit-a")


def test_a_snapshot_changed_on_disk_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    stored = world.tax.store.datasets.get("payments")
    path = world.tax.home.path / "data" / stored.file
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    refused(world, caplog, RefusalCode.CONSENT_INVALID, "changed on disk")
    path.unlink()
    refused(world, caplog, RefusalCode.CONSENT_INVALID, "is gone")


def test_a_bank_with_too_few_customers_gets_nothing(world: World) -> None:
    job = world.manifest(customers_min=CUSTOMERS + 1)
    with pytest.raises(Refused, match="customers are on the registry"):
        world.admit(world.bank, job).bank_data()


# --- exposure -------------------------------------------------------------------------------------


def test_the_token_that_passes_the_exposure_limit_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    most, declared = int(0.05 * 1000), declared_tokens(world.job)

    def earlier(tokens: int) -> Reservation:
        return Reservation("b" * 64, tokens, "bank_a", "payments", tokens, 1000, bytes(32))

    exposure = world.tax.store.exposure
    assert exposure.reserve(earlier(most - declared), most, NOW) is not None
    with caplog.at_level(logging.WARNING):
        world.admit(world.tax)
    assert "above the warning level" in caplog.text
    assert exposure.tokens("bank_a", "payments") == most
    world.admit(world.tax)  # the same attempt again counts once
    assert exposure.tokens("bank_a", "payments") == most
    refused(world, caplog, RefusalCode.INSUFFICIENT_BUDGET, "exposure", attempt=1)
    # An attempt that ended counts with what it used: nothing was asked here.
    world.tax.gate.close(world.job.digest(), 0)
    assert exposure.tokens("bank_a", "payments") == most - declared
    world.admit(world.tax, attempt=1)


def test_a_site_may_tighten_the_exposure_limit_and_never_widen_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    declared = declared_tokens(world.job)
    party = world.tax
    clock = lambda: NOW  # noqa: E731  # two gates, one clock
    strict = Gate(party.home, party.store, clock, exposure_limit=(declared - 1) / 1000)
    code = RefusalCode.INSUFFICIENT_BUDGET
    refused(world, caplog, code, "exposure", party=Party(party.home, party.store, strict))
    wide = Gate(party.home, party.store, clock, exposure_limit=9.0)
    small = world.manifest(customers_min=declared * 20 - 1)
    refused(world, caplog, code, "exposure", small, Party(party.home, party.store, wide))


# --- nothing leaks, nothing else opens data -------------------------------------------------------


def test_no_log_line_holds_a_value_or_a_code(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        world.admit(world.tax, world.manifest(fields=("secret",))).department_data()
        world.admit(world.bank).bank_data()
        for job in (world.manifest(fields=("core",)), world.manifest(dataset="other")):
            with pytest.raises(Refused):
                world.admit(world.tax, job)
    text = "\n".join(json.dumps(vars(record), default=str) for record in caplog.records)
    assert CANARY not in text
    assert not any(code.decode() in text for code in CODES[:50])
    admission = world.admit(world.tax, world.manifest(fields=("secret",)))
    assert CANARY not in repr(admission) + repr(admission.department_data())


def test_only_the_gate_reads_snapshots_and_only_sources_read_tables() -> None:
    readers = {"pyarrow.parquet", "pyarrow.csv", "csv"}
    may_read = {
        "clients/sources.py",
        "clients/lab_table.py",  # one's own table, before anybody signed anything
        "clients/drift.py",  # the bank's own scores of its finished job
    }
    for package in ("clients", "federation", "protocols", "server"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            tree = ast.parse(path.read_text())
            used = {
                alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
            }
            taken = {
                (n.module, alias.name)
                for n in ast.walk(tree)
                if isinstance(n, ast.ImportFrom)
                for alias in n.names
            }
            assert not used & readers or name in may_read, name
            calls = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            public = name == "federation/registry.py"  # lists of codes, which are public
            frames = {"read_csv", "read_parquet", "read_sql", "read_table"}
            assert not calls & frames or public or name in may_read, name
            opens = ("clients.sources", "OpenSnapshot") in taken
            assert not opens or name == "clients/gate.py", name
            if name not in {"clients/gate.py", "clients/datasets.py", "clients/cli/data.py"}:
                assert "clients.sources" not in used | {module for module, _ in taken}, name


def test_every_refusal_of_the_gate_is_of_one_class(world: World) -> None:
    """Whatever is wrong, the caller sees the same sentence; even with nothing right at all."""
    nothing = world.signed(world.job).model_copy(update={"payload": b"{}"})
    with pytest.raises(LianmoError) as raised:
        world.tax.gate.admit(nothing, [], fab=b"", run_config={})
    assert isinstance(raised.value, Refused)
    assert raised.value.what == "the job is refused at the gate"


def test_an_admitted_job_runs_and_counts_what_it_was_asked(world: World) -> None:
    """Real data through both gates and the real books; a decoy cover, so every part takes part."""
    cover = CoverRule(
        kind=CoverKind.DECOY,
        decoys=2,
        rows=world.bank.gate.cover_rows("loans", CoverKind.DECOY, 2),
    )
    parameters = ScorecardParameters(openings=1, min_cohort=50)
    job = world.manifest(cover=cover, parameters=parameters)
    bank, tax = world.admit(world.bank, job), world.admit(world.tax, job)
    channels = in_process(["bank_a", "tax"])

    def party(org: str, store: Store) -> Program:
        return Program(
            me=org,
            manifest=job,
            attempt=0,
            randomness=Randomness(org.encode().ljust(32), bytes.fromhex(job.digest()), 0),
            channels=channels[org],
            pair_seeds={},
            ledger=Ledger(org, [line.entry() for line in job.disclosures]),
            spent=store.spent,
            answers=store.answers,
            reply_book=store.replies,
            attempt_book=store.attempts,
        )

    def bank_side() -> object:
        me = party("bank_a", world.bank.store)
        send_cover(me, bank.cover)
        return scorecard.run_bank(me, bank.bank_data())

    def tax_side() -> object:
        me = party("tax", world.tax.store)
        rows = receive_cover(me, tax.registry)
        return scorecard.run_department(me, tax.department_data(rows))

    found = run_in_process({"bank_a": bank_side, "tax": tax_side})
    assert isinstance(found["bank_a"], scorecard.ScorecardResult)
    before = world.tax.store.exposure.tokens("bank_a", "payments")
    assert before == declared_tokens(job)
    world.tax.gate.close(job.digest(), 0)
    after = world.tax.store.exposure.tokens("bank_a", "payments")
    assert 0 < after <= before
    assert after == world.tax.store.answers.tokens(job.digest(), 0)


def test_a_full_disk_is_not_told_as_a_refusal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the fault campaign: the job then ended as refused, for nobody's reason."""

    def full(*_: object) -> None:
        raise NotKept("the database cannot be written", todo="make room")

    monkeypatch.setattr(world.tax.store.exposure, "reserve", full)
    with pytest.raises(NotKept):
        world.admit(world.tax)
    assert world.tax.store.exposure.tokens("bank_a", "payments") == 0
    monkeypatch.undo()
    world.admit(world.tax)
