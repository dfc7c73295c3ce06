"""Acceptance tests 20 to 27 and 29 of GOVERNANCE.md, at the gate that decides.

Number 28 and the withdrawal from a running job are in tests/system, where real processes lie and
fall silent; 51 is in tests/server/test_app.py. docs/acceptance.md lists all of them.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import socket
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clients import approvers, datasets, registries
from clients.gate import declared_tokens
from federation import fab
from federation.catalogue import CATALOGUE_USAGE, Dataset
from federation.codes import Codes
from federation.envelope import Envelope, sign
from federation.errors import Conflict, IntegrityError, LianmoError, RefusalCode, Refused
from federation.identity import PrivateKey
from federation.ledger import Ledger
from federation.objects import (
    CoverRule,
    Decision,
    JobManifest,
    KeyStatus,
    Limits,
    ScorecardParameters,
    Usage,
    utc_text,
)
from federation.persons import require_signed_by_enough
from federation.tables import CategoryColumn, NumberColumn
from federation.trust import TrustStore
from tests.clients import gated
from tests.clients.gated import CANARY, CITY, CODES, CUSTOMERS, NOW, ROWS, World
from tests.clients.persons import certified, request_of
from tests.federation.parties import approve, make_approval
from tests.federation.test_checks import leaves

TIMES = {
    "created": utc_text(NOW),
    "valid_from": utc_text(NOW),
    "valid_until": utc_text(NOW + timedelta(days=2)),
}


made, world = gated.made, gated.world


@pytest.fixture(scope="module")
def untouched(made: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for many refusals, none of which may leave a trace."""
    world = made.copied(tmp_path_factory.mktemp("untouched"))
    yield world
    world.close()


def asked(world: World) -> int:
    return world.tax.store.exposure.tokens("bank_a", "payments")


def nothing_opens(world: World, job: JobManifest, **changes: Any) -> Refused:
    before = asked(world)
    with pytest.raises(Refused) as raised:
        world.admit(world.tax, job, **changes)
    assert asked(world) == before
    return raised.value


# --- 20: no stale approval survives ---------------------------------------------------------------


def at(plain: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        plain = plain[key]
    return plain


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a20_a_bit_of_any_field_of_the_manifest_ends_every_approval(
    untouched: World, data: st.DataObject
) -> None:
    """Each leaf of the manifest, by name; the bank signs the change, the approvals are the old."""
    plain = json.loads(untouched.job.payload())
    paths = [path for path in leaves(plain) if at(plain, path) not in ([], None)]
    path = data.draw(st.sampled_from(paths))
    value, changed = at(plain, path), copy.deepcopy(plain)
    if isinstance(value, bool):
        flipped: Any = not value
    elif isinstance(value, int):
        flipped = value ^ 1 << data.draw(st.integers(0, 4))
    else:
        raw = bytearray(value.encode())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        flipped = raw.decode(errors="replace")
    at(changed, path[:-1])[path[-1]] = flipped
    try:
        job = JobManifest.model_validate(changed)
    except ValidationError:
        return  # not even a manifest: nobody can sign it
    if job.payload() == untouched.job.payload():
        return
    approvals = untouched.approvals(untouched.job)
    bundle = {"fab": fab.build(job), "run_config": fab.expected_run_config(job)}
    error = nothing_opens(untouched, job, approvals=approvals, **bundle)
    assert error.what == "the job is refused at the gate"


def test_a20_what_the_manifest_newly_says_is_part_of_what_is_approved(world: World) -> None:
    """How many persons, how many runs: with the old approvals neither can be moved."""
    more = world.job.limits.model_copy(update={"attempts": world.job.limits.attempts + 1})
    for job in (world.manifest(limits=more), world.manifest(persons=2)):
        nothing_opens(world, job, approvals=world.approvals(world.job))
    world.admit(world.tax, world.manifest(limits=more))  # the base case: approved, it runs


# --- 21: bundle and configuration -----------------------------------------------------------------


def test_a21_one_changed_byte_of_the_bundle_or_an_override_opens_nothing(world: World) -> None:
    bundle, config = fab.build(world.job), fab.expected_run_config(world.job)
    for place in range(0, len(bundle), max(1, len(bundle) // 12)):
        changed = bundle[:place] + bytes([bundle[place] ^ 1]) + bundle[place + 1 :]
        nothing_opens(world, world.job, fab=changed)
    for override in ({"job": "another"}, {"openings": 20}, {"manifest-sha256": "0" * 64}):
        nothing_opens(world, world.job, run_config={**config, **override})
    world.admit(world.tax)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's builder
def test_a21_plain_flower_accepts_both(world: World) -> None:
    """The contrast: Flower's own control starts the changed bundle with the override."""
    from flwr.cli.build import build_fab_from_files
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.fab import Fab
    from flwr.superlink.servicer.control import control_handlers

    from server.flower import SuperLink

    superlink = SuperLink(":flwr-in-memory:")
    superlink.members[world.job.digest()] = set()
    with zipfile.ZipFile(io.BytesIO(fab.build(world.job))) as archive:
        project = archive.read("pyproject.toml").replace(b"installed:", b"evil:")
    evil = build_fab_from_files({"pyproject.toml": project, "evil.py": b"raise SystemExit"})[0]
    request = StartRunRequest(
        fab=fab_to_proto(Fab("", evil, {})),
        federation=world.job.digest(),
        override_config=user_config_to_proto({"job": "another-job"}),
    )
    run_id = control_handlers.start_run(request, superlink.account, superlink.state, None).run_id
    (run,) = superlink.state.get_run_info(run_ids=[run_id])
    assert run.override_config == {"job": "another-job"}
    assert run.fab_hash == hashlib.sha256(evil).hexdigest()
    nothing_opens(world, world.job, fab=evil)
    nothing_opens(world, world.job, run_config=dict(run.override_config))


# --- 22 to 24: who has approved -------------------------------------------------------------------


def test_a22_one_owner_missing_or_refused_or_withdrawn_and_the_next_step_stops(
    world: World,
) -> None:
    tax, city = world.approvals(world.job)
    for given_ in ([tax], [city], []):
        nothing_opens(world, world.job, approvals=given_)
    admission = world.admit(world.tax, attempt=1)
    world.tax.gate.require_in_force(admission.job)
    word = make_approval("city", world.job.digest(), decision=Decision.WITHDRAW, **TIMES)
    # another owner's withdrawal, come with the order of a second run, ends the first one as well
    nothing_opens(
        world, world.job, attempt=2, approvals=[tax, city, CITY.sign(word, Usage.APPROVE)]
    )
    with pytest.raises(Refused, match="withdraw"):
        world.tax.gate.require_in_force(admission.job)


def test_a22_a_refusal_carries_code_and_words_and_no_later_approval_undoes_it(
    world: World,
) -> None:
    code = RefusalCode.FIELD_LEVEL
    said = {"decision": Decision.REFUSE, "code": code, "words": "过细", **TIMES}
    refusal = world.tax.sign(make_approval("tax", world.job.digest(), **said), Usage.APPROVE)
    given_ = [refusal, *world.approvals(world.job)]
    assert nothing_opens(world, world.job, approvals=given_).code is code


def test_a23_the_admin_of_one_organisation_approves_for_no_other(world: World) -> None:
    """With its admin key, its approval key, or as the second signature beside the right one."""
    city = world.approvals(world.job)[1]
    word = make_approval("tax", world.job.digest(), **TIMES)
    for forged in (
        CITY.sign(word, Usage.ADMIN),
        CITY.sign(word, Usage.APPROVE),
        sign(word, world.tax.home.key(Usage.APPROVE), CITY.key(Usage.APPROVE)),
        world.tax.sign(word, Usage.ADMIN),  # nor does the owner's own key for something else
        world.tax.sign(word, Usage.RUN),
    ):
        nothing_opens(world, world.job, approvals=[forged, city])


def test_a23_a_key_registered_under_another_name_is_not_believed(world: World) -> None:
    """The coordinator shows a card of tax in which the platform's approval key stands."""
    own, stolen = world.tax.home.own(), CITY.card.of_usage(Usage.APPROVE)[0]
    keys = [*(key.model_dump() for key in own.keys), stolen.model_dump()]
    forged = own.model_validate({**own.model_dump(), "keys": keys, "serial": own.serial + 1})
    trust: TrustStore = world.bank.home.trust()
    every = [world.tax.home.key(u) for u in (Usage.ADMIN, Usage.APPROVE)]
    with pytest.raises(LianmoError):  # signed by some keys, or by all that tax has
        trust.with_card(sign(forged, *every, CITY.key(Usage.APPROVE)))
    with pytest.raises(LianmoError):
        trust.with_card(sign(forged, CITY.key(Usage.ADMIN), CITY.key(Usage.APPROVE)))
    assert trust.card("tax").of_usage(Usage.APPROVE) == own.of_usage(Usage.APPROVE)


def test_a24_an_approval_is_of_one_version_and_of_its_own_days(world: World) -> None:
    second = world.manifest(previous=world.job.digest())
    nothing_opens(world, second, approvals=world.approvals(world.job))
    ended = {
        **TIMES,
        "valid_from": utc_text(NOW - timedelta(hours=1)),
        "valid_until": utc_text(NOW),
    }
    late = world.tax.sign(make_approval("tax", second.digest(), **ended), Usage.APPROVE)
    nothing_opens(world, second, approvals=[late, world.approvals(second)[1]])
    world.admit(world.tax, second)


@pytest.fixture
def secret(world: World) -> World:
    """The same world, after the owner raised a field to level L3."""
    datasets.describe(world.tax.store, "payments", {}, {"paid": {"level": "L3"}})
    world.publish(world.tax, "payments")
    return world


def by(world: World, job: JobManifest, key: PrivateKey, nonce: str = "a") -> Envelope:
    return sign(make_approval("tax", job.digest(), **TIMES, nonce=nonce * 32), key)


def test_a24_two_approvals_of_one_person_are_one(secret: World) -> None:
    job = secret.manifest(persons=2)
    own, city = secret.tax.home.key(Usage.APPROVE), approve(CITY, job.digest(), **TIMES)
    once, again = by(secret, job, own), by(secret, job, own, "b")
    nothing_opens(secret, job, approvals=[once, city])
    nothing_opens(secret, job, approvals=[once, again, city])
    with pytest.raises(IntegrityError, match="two signatures of one key"):
        secret.tax.home.trust().verify(
            sign(make_approval("tax", job.digest(), **TIMES), own, own),
            type(make_approval("tax", job.digest())),
            Usage.APPROVE,
            NOW,
        )
    other = by(secret, job, secret.second)
    assert len(secret.admit(secret.tax, job, approvals=[once, other, city]).job.approvals) == 3


def test_a24_the_same_person_cannot_be_certified_twice(world: World) -> None:
    store, home = world.tax.store, world.tax.home
    for name in ("李娜", " 李娜 ", "TAX approve"):
        with pytest.raises(Conflict, match="has an approval key of"):
            certified(home, store, name, NOW)
    stranger = PrivateKey.generate(Usage.APPROVE)
    asked_for = request_of(PrivateKey.generate(Usage.APPROVE), "tax", "Wang")
    stolen = asked_for.model_copy(  # a request for somebody else's key proves nothing
        update={"signatures": sign(asked_for.unverified(_kind()), stranger).signatures}
    )
    with pytest.raises(IntegrityError, match="its own key"):
        approvers.add(home, store, stolen, NOW)


def _kind() -> Any:
    from federation.possession import KeyRequest

    return KeyRequest


def test_a24_a_manifest_that_asks_for_too_few_persons_opens_nothing(secret: World) -> None:
    """The attack: the bank writes one person; without the gate's own count one would do."""
    job = secret.manifest(persons=1)
    both = [
        by(secret, job, secret.tax.home.key(Usage.APPROVE)),
        by(secret, job, secret.second),
        approve(CITY, job.digest(), **TIMES),
    ]
    error = nothing_opens(secret, job, approvals=both)
    assert error.code is RefusalCode.FIELD_LEVEL
    harmless = secret.manifest(persons=1, fields=("sector",))  # nothing of L3 in it
    secret.admit(secret.tax, harmless)


def test_a24_a_revoked_second_key_leaves_one_person(secret: World) -> None:
    from clients import keys

    job = secret.manifest(persons=2)
    words = [
        by(secret, job, secret.tax.home.key(Usage.APPROVE)),
        by(secret, job, secret.second),
        approve(CITY, job.digest(), **TIMES),
    ]
    admission = secret.admit(secret.tax, job, approvals=words)
    secret.tax.gate.require_in_force(admission.job)
    keys.revoke(secret.tax.home, secret.tax.audit, secret.second.key_id, "lost", NOW, offline=True)
    nothing_opens(secret, job, approvals=words, attempt=1)
    with pytest.raises(Refused, match="on hold or revoked"):  # what runs stops at its next step
        secret.tax.gate.require_in_force(admission.job)
    held = {key.key_id: key.status for key in secret.tax.home.own().keys}
    assert held[secret.second.key_id] is KeyStatus.REVOKED


def test_a24_one_person_cannot_lower_a_level_first(secret: World) -> None:
    """A description that only one signed is not in force, also where it has no L3 any more."""
    tax = secret.tax
    before = tax.store.entries.get("payments").digest
    low = {"*": {"level": "L1"}}
    datasets.describe(tax.store, "payments", {}, low)
    signed = datasets.sign_entry(tax.home, tax.store, "payments", NOW)
    signed = datasets.sign_entry(tax.home, tax.store, "payments", NOW)  # the same one again
    assert not datasets.is_in_force(tax.store, signed)
    assert tax.store.entries.get("payments").digest == before
    shown = tax.home.trust().verify(signed, Dataset, CATALOGUE_USAGE, NOW, "tax")
    stored = tax.store.entries.get("payments").envelope
    assert stored is not None
    old = Envelope.from_json(stored).unverified(Dataset)
    with pytest.raises(Refused, match="one person signed it"):  # what the coordinator asks
        require_signed_by_enough(shown, old)
    signed = datasets.sign_entry(tax.home, tax.store, "payments", NOW, secret.second)
    assert datasets.is_in_force(tax.store, signed)


# --- 25: more than was approved -------------------------------------------------------------------


def test_a25_a_received_program_is_not_run_and_what_is_handed_out_is_what_was_approved(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code comes with a job, so nothing received can ask; and the gate hands out columns only.

    An extra column and another dataset are another manifest, a raw file and a socket are not among
    what an admission has.
    """
    with zipfile.ZipFile(io.BytesIO(fab.build(world.job))) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".py", ".so", ".pyc"))]
    for more in ({"fields": ("paid", "sector", "secret")}, {"dataset": "loans"}):
        changed = world.manifest(**more, catalogue_digest=world.job.party("tax").catalogue_digest)
        nothing_opens(world, changed, approvals=world.approvals(world.job))

    def no_socket(*args: object, **kwargs: object) -> None:
        raise AssertionError("a gate that hands out data opens no connection")

    admission = world.admit(world.tax)
    monkeypatch.setattr(socket, "socket", no_socket)
    given_ = admission.department_data()
    assert [column.name for column in given_.columns] == ["paid", "sector"]
    seen = list(_reachable(given_))
    assert not [item for item in seen if isinstance(item, Path | io.IOBase | socket.SocketType)]
    assert CANARY not in [item for item in seen if isinstance(item, str)]
    with pytest.raises(Refused):
        admission.bank_data()


def _reachable(value: Any) -> Iterator[Any]:
    """What a program can get at from a value by its attributes and members."""
    waiting, known = [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) in known:
            continue
        known.add(id(item))
        yield item
        if isinstance(item, np.ndarray):
            waiting += item.ravel().tolist() if item.dtype.kind in "OSU" else []
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list | tuple | set):
            waiting += list(item)
        elif hasattr(item, "__dict__"):
            waiting += list(vars(item).values())
        elif hasattr(item, "__slots__"):
            waiting += [getattr(item, name) for name in item.__slots__ if hasattr(item, name)]


# --- 26: one round or question more ---------------------------------------------------------------


def test_a26_one_run_or_one_disclosure_more_than_approved_is_refused(world: World) -> None:
    limits = world.job.limits.model_copy(update={"attempts": 2})
    job = world.manifest(limits=limits)
    for attempt in (1, 2):
        world.admit(world.tax, job, attempt=attempt)
    nothing_opens(world, job, attempt=3)
    for said in job.disclosures:
        ledger = Ledger("tax", (item.entry() for item in job.disclosures))
        if said.count:
            ledger.reveal(said.source, said.to, said.what, said.count, said.bits)
        with pytest.raises(Refused):
            ledger.reveal(said.source, said.to, said.what, 1, said.bits)


def test_a26_one_question_or_opening_more_than_the_task_has_is_not_what_it_declares(
    world: World,
) -> None:
    base = world.job.limits.model_dump()
    more = Limits.model_validate(base | {"tokens": world.job.limits.tokens + 1})
    nothing_opens(world, world.manifest(limits=more))  # though all approved it
    opened = ScorecardParameters.model_validate(
        world.job.scorecard.model_dump() | {"openings": world.job.scorecard.openings + 1}
    )
    nothing_opens(world, world.manifest(parameters=opened, disclosures=world.job.disclosures))
    assert declared_tokens(world.job) > 0


# --- 27: too few customers ------------------------------------------------------------------------


def test_a27_a_cohort_below_the_minimum_gets_nothing(world: World) -> None:
    few = ScorecardParameters(openings=1, min_cohort=49)  # the field's owner asks for 50
    nothing_opens(world, world.manifest(parameters=few))
    job = world.manifest(customers_min=CUSTOMERS + 1, customers_max=CUSTOMERS + 100)
    with pytest.raises(Refused, match="customers are on the registry"):
        world.admit(world.bank, job).bank_data()
    small = world.manifest(cover=CoverRule(rows=ROWS - 1))
    nothing_opens(world, small)


# --- 29: the digests of a run record --------------------------------------------------------------


def test_a29_the_digests_of_a_run_are_those_of_a_second_computation(world: World) -> None:
    """Snapshot, bundle and configuration, computed here from the objects and a salt alone."""
    admission = world.admit(world.tax)
    (reserved,) = [
        item for item in world.tax.store.exposure.all() if item.manifest == world.job.digest()
    ]
    assert reserved is not None
    salt = admission._salt
    codes: Codes = CODES[world.tax_rows]
    parts: list[bytes] = [b"lianmo/v1/snapshot", salt, world_registry(world)]
    mine = hashlib.sha256(encoded(*parts))
    mine.update(encoded(codes.tobytes()))
    sectors = [f"甲{i % 3}" for i in world.tax_rows]
    for column in (
        NumberColumn("paid", world.paid[world.tax_rows].astype(np.float64)),
        category("sector", sectors),
    ):
        mine.update(encoded(column.name.encode()))
        if isinstance(column, CategoryColumn):
            mine.update(
                encoded(column.codes.tobytes(), *(text.encode() for text in column.categories))
            )
        else:
            mine.update(encoded(column.values.tobytes()))
    assert admission.snapshot_digest == mine.hexdigest()


def world_registry(world: World) -> bytes:
    return registries.current(world.tax.home, world.tax.store).digest


def category(name: str, texts: list[str]) -> CategoryColumn:
    names = tuple(sorted(set(texts)))
    return CategoryColumn(name, np.array([names.index(t) for t in texts], np.int32), names)


def encoded(*parts: bytes) -> bytes:
    """Length before each part, eight bytes of it."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
