"""Both ways end with the same keys at both ends; the manifest says which way, and how many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from federation.channel import Channel, in_process, run_in_process
from federation.errors import IntegrityError, LianmoError, Refused, UsageError
from federation.ledger import What
from federation.objects import JobManifest, Limits, TreesParameters
from federation.tables import BankData, DepartmentData
from federation.tasks import boosting, row_keys, scorecard
from federation.tasks.local import local_manifest, local_party, local_seeds
from federation.tasks.party import Party
from protocols import okvs, set_oprf
from protocols.row_key_agreement import approved_number
from protocols.row_key_books import M_MAX
from tests.federation.scorecard_data import World, make_world

ORGS = ["bank", "dept_0", "dept_1"]
ROWS = 1100
MOST = 1000  # customers_max: the least for which a set OPRF may be used
FIGURES = {"openings": 1, "evaluation": True}


def small_world() -> World:
    return make_world(rows=ROWS, customers=MOST)


def by_voprf(manifest: JobManifest) -> JobManifest:
    """The same job with the way that may always be asked for."""
    limits = manifest.limits.model_copy(update={"row_keys": manifest.limits.customers_max})
    changed = manifest.model_copy(update={"alignment": "voprf", "limits": limits})
    return changed.model_copy(update={"disclosures": scorecard.declare(changed)})


@dataclass
class Meeting:
    """The parties of one attempt, between whom only row keys are agreed on."""

    world: World
    parties: Mapping[str, Party]

    def keys(self) -> dict[str, tuple[bytes, Any]]:
        def program(org: str) -> tuple[bytes, Any]:
            party = self.parties[org]
            try:
                if org == "bank":
                    return row_keys.ask(party, self.world.bank)
                return row_keys.give(party, self.world.departments[org])
            except LianmoError:
                for channel in party.channels.values():
                    channel.stop(party.stage, "failed")
                raise

        return run_in_process({org: partial(program, org) for org in ORGS})


def meet(
    world: World,
    manifest: JobManifest,
    *,
    attempt: int = 0,
    before: Meeting | None = None,
    **manifests: JobManifest,
) -> Meeting:
    """New parties; with the books of those before, if there were any."""
    channels: dict[str, dict[str, Channel]] = in_process(ORGS)
    seeds = local_seeds(ORGS, 0)
    parties = {}
    for org in ORGS:
        its = manifests.get(org, manifest)
        party = local_party(org, its, seeds, channels[org], attempt=attempt)
        if before is not None:
            party.reply_book = before.parties[org].reply_book
            party.attempt_book = before.parties[org].attempt_book
        parties[org] = party
    return Meeting(world, parties)


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["set", "voprf"])
def test_the_bank_has_the_departments_keys_of_its_customers(way: str) -> None:
    world = small_world()
    manifest = world.manifest(**FIGURES)
    assert manifest.alignment == "set"
    meeting = meet(world, manifest if way == "set" else by_voprf(manifest))
    found = meeting.keys()
    cover, held = found["bank"]
    for org in ORGS[1:]:
        own_cover, keys = found[org]
        assert own_cover == cover
        np.testing.assert_array_equal(held[org], keys[world.bank.positions])
        assert len(np.unique(keys, axis=0)) == ROWS
    assert not np.array_equal(held["dept_0"], held["dept_1"])
    for party in meeting.parties.values():
        said = [item for item in party.ledger.entries() if item.what is What.ROW_KEYS]
        assert {item.count for item in said} == {party.manifest.limits.row_keys}
    assert manifest.limits.row_keys == approved_number(MOST, "set") > MOST


def test_a_cover_in_any_order_has_the_same_keys() -> None:
    world = small_world()
    turned = {
        org: DepartmentData(data.columns, data.codes[::-1])
        for org, data in world.departments.items()
    }
    bank = replace(world.bank, positions=ROWS - 1 - world.bank.positions)
    found = meet(World(bank, turned), world.manifest(**FIGURES)).keys()
    np.testing.assert_array_equal(found["bank"][1]["dept_0"], found["dept_0"][1][bank.positions])


def test_no_key_comes_again_in_another_attempt_or_job() -> None:
    world = small_world()
    manifest = world.manifest(**FIGURES)
    first = meet(world, manifest)
    seen = [first.keys()]
    seen.append(meet(world, manifest, attempt=1, before=first).keys())
    other = manifest.model_copy(update={"job": "another"})
    seen.append(meet(world, other, before=first).keys())
    keys = np.concatenate([found["dept_0"][1] for found in seen])
    assert len(np.unique(keys, axis=0)) == 3 * ROWS
    given = [
        first.parties["dept_0"].attempt_book.given(
            row_keys.attempt_of(party, "dept_0", seen[0]["bank"][0]).pair
        )
        for party in (first.parties["bank"], meet(world, other).parties["bank"])
    ]
    assert given == [2 * manifest.limits.row_keys, manifest.limits.row_keys]


def test_without_an_opening_nobody_gets_a_key() -> None:
    world = small_world()
    parties = meet(world, world.manifest(openings=0, evaluation=False)).parties
    found: dict[str, tuple[bytes, Any]] = run_in_process(
        {
            "bank": partial(row_keys.ask, parties["bank"], world.bank, is_opening=False),
            **{
                org: partial(row_keys.give, parties[org], data, is_opening=False)
                for org, data in world.departments.items()
            },
        }
    )
    assert found["bank"][1] == {}
    assert found["dept_0"][1].shape == (0, 16)
    assert all(
        item.what is not What.ROW_KEYS
        for party in parties.values()
        for item in party.ledger.entries()
    )


def test_the_sizes_of_the_frames_do_not_show_the_number_of_customers() -> None:
    few, many = make_world(rows=ROWS, customers=700), small_world()
    manifest = many.manifest(**FIGURES)
    limits = manifest.limits.model_copy(update={"customers_min": 500})
    manifest = manifest.model_copy(update={"limits": limits})
    sizes = []
    for world in (few, many):
        meeting = meet(world, manifest)
        meeting.keys()
        channels = meeting.parties["dept_0"].channels.values()
        sizes.append([(c.traffic.sent_bytes, c.traffic.received_bytes) for c in channels])
    assert sizes[0] == sizes[1]


# --- a whole job ----------------------------------------------------------------------------------


def test_a_scorecard_is_the_same_either_way() -> None:
    world = small_world()
    manifest = world.manifest(**FIGURES)
    by_set, plain = world.run(manifest), world.run(by_voprf(manifest))
    # Other manifests draw other roundings and hold-outs: 0.01 is what these do to 1,000 customers.
    auc = [roc_auc_score(run.result.labels == 0, run.result.scores) for run in (by_set, plain)]
    assert auc[0] == pytest.approx(auc[1], abs=0.01)
    assert [(item.what, item.count) for item in by_set.ledgers["bank"].entries()] == [
        (item.what, manifest.limits.row_keys if item.what is What.ROW_KEYS else item.count)
        for item in plain.ledgers["bank"].entries()
    ]


# --- the manifest ---------------------------------------------------------------------------------


def test_a_local_job_has_the_way_and_number_of_the_rule() -> None:
    assert row_keys.agreed(999) == ("voprf", 999)
    assert row_keys.agreed(1000) == ("set", approved_number(1000, "set"))
    with pytest.raises(UsageError):
        row_keys.agreed(20_000_000)
    manifest = make_world(rows=ROWS, customers=900).manifest()
    assert (manifest.alignment, manifest.limits.row_keys) == ("voprf", 900)


def limited(manifest: JobManifest, **changes: object) -> JobManifest:
    limits = Limits.model_validate(manifest.limits.model_dump() | changes)
    return manifest.model_copy(update={"limits": limits})


def trees_manifest() -> JobManifest:
    world = small_world()
    return local_manifest(
        {"bank": world.bank}, world.departments, TreesParameters(trees=1, max_depth=1)
    )


@pytest.mark.parametrize("task", ["scorecard", "trees"])
def test_another_number_or_way_is_refused_by_the_plan(task: str) -> None:
    made = small_world().manifest(**FIGURES) if task == "scorecard" else trees_manifest()
    plan_of = scorecard.plan_of if task == "scorecard" else boosting.plan_of
    plan_of(made)
    for number in (made.limits.row_keys - 1, made.limits.row_keys + 1):
        with pytest.raises(Refused, match="row keys"):
            plan_of(limited(made, row_keys=number))
    plain = made.model_copy(update={"alignment": "voprf"})
    with pytest.raises(Refused, match="row keys"):
        plan_of(plain)
    plan_of(limited(plain, row_keys=MOST))
    few = limited(made, customers_max=999, customers_min=999, row_keys=approved_number(999, "set"))
    with pytest.raises(Refused, match="set OPRF"):
        plan_of(few)


def run_bank(party: Party, world: World) -> object:
    return scorecard.run_bank(party, world.bank)


def run_department(party: Party, world: World) -> object:
    return scorecard.run_department(party, world.departments[party.me])


@pytest.mark.parametrize(("org", "run"), [("bank", run_bank), ("dept_0", run_department)])
def test_neither_partys_program_begins_with_another_number(
    org: str, run: Callable[[Party, World], object]
) -> None:
    world = small_world()
    made = world.manifest(**FIGURES)
    party = meet(world, limited(made, row_keys=made.limits.row_keys + 1)).parties[org]
    with pytest.raises(Refused, match="row keys"):
        run(party, world)
    assert party.ledger.entries() == ()
    assert all(channel.traffic.frames == 0 for channel in party.channels.values())


def test_a_manifest_without_a_way_or_with_fewer_keys_than_customers_does_not_exist() -> None:
    plain = small_world().manifest(**FIGURES).model_dump()
    without = {name: value for name, value in plain.items() if name != "alignment"}
    short = plain | {"limits": plain["limits"] | {"row_keys": MOST - 1}}
    for wrong in (without, plain | {"alignment": "plain"}, short):
        with pytest.raises(ValidationError):
            JobManifest.model_validate(wrong)


def test_the_books_know_the_largest_store() -> None:
    assert M_MAX == okvs.ROWS_MAX


# --- refusals -------------------------------------------------------------------------------------


def without(codes: NDArray[np.bytes_], other: bytes) -> NDArray[np.bytes_]:
    return np.sort(np.append(codes[1:], np.array([other], codes.dtype)))


def test_a_bank_that_comes_back_with_another_list_sends_nothing() -> None:
    """The department would see where the two lists differ."""
    world = small_world()
    manifest = world.manifest(**FIGURES)
    first = meet(world, manifest)
    first.keys()
    unused = sorted(set(world.departments["dept_0"].codes.tolist()) - set(world.bank.codes))[0]
    codes = without(world.bank.codes, unused)
    positions = np.searchsorted(world.departments["dept_0"].codes, codes)
    changed: BankData = replace(world.bank, codes=codes, positions=positions)
    again = meet(World(changed, world.departments), manifest, before=first)
    with pytest.raises(IntegrityError, match=set_oprf.REFUSED):
        again.keys()
    last_word_bytes = 300
    for channel in again.parties["bank"].channels.values():
        assert sum(channel.traffic.sent_bytes.values()) < last_word_bytes


def test_the_same_list_again_gives_the_same_keys() -> None:
    world = small_world()
    manifest = world.manifest(**FIGURES)
    first = meet(world, manifest)
    before = first.keys()
    after = meet(world, manifest, before=first).keys()
    np.testing.assert_array_equal(before["bank"][1]["dept_0"], after["bank"][1]["dept_0"])


def test_parties_of_two_jobs_do_not_agree() -> None:
    world = small_world()
    manifest = world.manifest(**FIGURES)
    other = manifest.model_copy(update={"job": "another"})
    with pytest.raises(IntegrityError, match=set_oprf.REFUSED):
        meet(world, manifest, bank=other).keys()


def test_a_reply_that_was_changed_ends_the_attempt_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether a department accepts depends on its secret: there is one try, and no word on why."""
    world = small_world()
    manifest = world.manifest(**FIGURES)
    honest = set_oprf.Bank.reply

    def spoiled(bank: set_oprf.Bank, *arguments: Any) -> set_oprf.Reply:
        reply = honest(bank, *arguments)
        correction = reply.correction.copy()
        correction[:, 0] ^= np.uint64(1)
        return replace(reply, correction=correction)

    monkeypatch.setattr(set_oprf.Bank, "reply", spoiled)
    first = meet(world, manifest)
    with pytest.raises(IntegrityError, match=set_oprf.REFUSED):
        first.keys()
    monkeypatch.setattr(set_oprf.Bank, "reply", honest)
    again = meet(world, manifest, before=first)
    with pytest.raises(IntegrityError, match="closed"):
        again.keys()
    pair = next(iter(first.parties["dept_0"].attempt_book._pairs))  # type: ignore[attr-defined]
    assert first.parties["dept_0"].attempt_book.given(pair) == 0
    assert len(meet(world, manifest, attempt=1, before=first).keys()) == 3


def test_a_list_with_a_code_twice_is_its_owners_mistake() -> None:
    world = small_world()
    codes = world.departments["dept_0"].codes.copy()
    codes[1] = codes[0]
    twice = {org: DepartmentData(d.columns, codes) for org, d in world.departments.items()}
    with pytest.raises(UsageError, match="once"):
        meet(World(world.bank, twice), world.manifest(**FIGURES)).keys()
