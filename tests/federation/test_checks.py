"""A job whose manifest, release or approvals differ by anything does not run."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from federation import identity
from federation.checks import ApprovedJob, check_job, check_manifest
from federation.envelope import Envelope, sign
from federation.errors import IntegrityError, LianmoError, NotFound, RefusalCode, Refused
from federation.identity import PrivateKey
from federation.network import Standing
from federation.objects import Decision, JobManifest, KeyStatus, Usage, utc_text
from tests.federation.parties import (
    NOW,
    PACKAGE,
    approve,
    make_approval,
    make_manifest,
    make_org,
    trust_of,
)

BANK, TAX, COURT = make_org("bank-a", "bank"), make_org("tax"), make_org("court", code=1)
CITY = make_org("city", "platform", code=2)
TRUST = trust_of(BANK, TAX, COURT, CITY)
JOB = make_manifest("bank-a", ["tax", "court"], platform="city")
MANIFEST = BANK.sign(JOB, Usage.PROPOSE)
APPROVALS = [approve(org, MANIFEST) for org in (TAX, COURT, CITY)]


def check(
    manifest: Envelope = MANIFEST, approvals: list[Envelope] = APPROVALS, **changes: Any
) -> ApprovedJob:
    plain: dict[str, Any] = {"me": "tax", "package_sha256": PACKAGE, "trust": TRUST, "now": NOW}
    plain |= changes
    trust = plain.pop("trust")
    plain.setdefault("standing", Standing(trust))
    return check_job(manifest, approvals, trust, plain.pop("now"), **plain)


@pytest.mark.parametrize("me", ["bank-a", "tax", "court", "city"])
def test_every_party_finds_the_approved_job_approved(me: str) -> None:
    job = check(me=me)
    assert job.manifest == JOB
    assert job.digest == JOB.digest()
    assert len(job.approvals) == 3
    assert job.valid_until == NOW + timedelta(days=3)


def test_the_order_of_the_approvals_does_not_matter() -> None:
    assert check(approvals=APPROVALS[::-1]) == check()


# --- acceptance test 20: the manifest -------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, (*path, key))
    else:
        yield path


def changes_of(value: Any, name: str) -> list[Any]:
    """The smallest changes of a value that may still be well formed."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if value is None:
        return ["ab" * 32, 2]
    if value == []:
        return [["revenue"]]
    if not isinstance(value, str):
        return []
    last = {"0": "1", "Z": "Z"}.get(value[-1], "0") if value else "x"
    words = {
        "purpose": ["credit-decision"],
        "kind": ["customers"],
        "what": ["bin_counts"],
        "as_of": ["2026-10-30"],
        "role": ["platform", "department"],
    }
    dates = [value[:-2] + "1Z"] if value.endswith("0Z") else []
    return [value[:-1] + last, *words.get(name, []), *dates, "court", "bank-a"]


def variants() -> list[tuple[str, dict[str, Any]]]:
    plain = json.loads(JOB.payload())
    found = []
    for path in leaves(plain):
        for i, value in enumerate(changes_of(_at(plain, path), str(path[-1]))):
            changed = copy.deepcopy(plain)
            _at(changed, path[:-1])[path[-1]] = value
            if changed != plain:
                found.append((f"{'.'.join(map(str, path))} {i}", changed))
    for name in ("parties", "disclosures"):  # a party or a disclosure less, or in another order
        for item in (plain[name][1:], plain[name][:-1], plain[name][::-1]):
            found.append((f"{name} {len(item)}", {**plain, name: item}))
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_no_approval_survives_a_change_of_any_field_of_the_manifest() -> None:
    """Under the bank's old signature the change is a forgery; signed anew it is another job."""
    well_formed: set[str] = set()
    for name, plain in variants():
        payload = rfc8785.dumps(plain)
        forged = MANIFEST.model_copy(update={"payload": payload})
        for me in ("tax", "bank-a"):
            with pytest.raises(LianmoError):
                check(forged, me=me)
        try:
            changed = JobManifest.model_validate(plain)
        except ValidationError:
            continue
        well_formed.add(name.split(" ")[0])
        with pytest.raises(LianmoError):
            check(BANK.sign(changed, Usage.PROPOSE))
    # the test would be empty if nothing well formed came out of it
    paths = {".".join(map(str, path)) for path in leaves(json.loads(JOB.payload()))}
    assert {p.split(".")[0] for p in paths} - {"v", "task", "alignment"} <= {
        name.split(".")[0] for name in well_formed
    }
    assert len(well_formed) > 0.7 * len(paths)


@settings(max_examples=150)
@given(st.integers(0, len(MANIFEST.payload) * 8 - 1))
def test_no_flipped_bit_of_the_manifest_is_accepted(place: int) -> None:
    raw = bytearray(MANIFEST.payload)
    raw[place // 8] ^= 1 << place % 8
    with pytest.raises(IntegrityError):
        check(MANIFEST.model_copy(update={"payload": bytes(raw)}))


def test_the_new_job_with_its_own_approvals_runs() -> None:
    """The base case: what stops the changed manifests above is only that nobody approved them."""
    changed = BANK.sign(make_manifest("bank-a", ["tax"], job="sme-card-2"), Usage.PROPOSE)
    assert check(changed, [approve(TAX, changed)]).manifest.job == "sme-card-2"


def test_another_release_of_the_package_is_refused() -> None:
    with pytest.raises(IntegrityError, match="another release"):
        check(package_sha256=PACKAGE[:-1] + ("0" if PACKAGE[-1] != "0" else "1"))


# --- acceptance tests 22 to 24: the approvals -----------------------------------------------------


@pytest.mark.parametrize("missing", range(3))
def test_one_owner_missing_is_enough_to_stop_a_job(missing: int) -> None:
    rest = APPROVALS[:missing] + APPROVALS[missing + 1 :]
    for me in ("bank-a", "tax", "court", "city"):
        with pytest.raises(Refused, match="has not approved"):
            check(approvals=rest, me=me)
    with pytest.raises(Refused):
        check(approvals=[])


@pytest.mark.parametrize("decision", [Decision.REFUSE, Decision.WITHDRAW])
@pytest.mark.parametrize("first", [True, False])
def test_a_refusal_or_withdrawal_is_final_in_any_order(decision: Decision, first: bool) -> None:
    code = RefusalCode.FIELD_LEVEL if decision is Decision.REFUSE else None
    word = approve(TAX, MANIFEST, decision=decision, code=code)
    approvals = [word, *APPROVALS] if first else [*APPROVALS, word]
    with pytest.raises(Refused) as caught:
        check(approvals=approvals, me="court")
    assert caught.value.party == "tax"
    assert caught.value.code == (code or RefusalCode.DECLINED)


def test_a_refusal_that_has_expired_is_still_a_refusal() -> None:
    word = approve(
        TAX,
        MANIFEST,
        decision=Decision.WITHDRAW,
        valid_until=utc_text(NOW - timedelta(minutes=1)),
    )
    with pytest.raises(Refused, match="withdrew"):
        check(approvals=[*APPROVALS, word])


def test_the_admin_of_one_owner_cannot_approve_for_another() -> None:
    """Acceptance test 23, T5."""
    for usage in (Usage.ADMIN, Usage.APPROVE):
        forged = TAX.sign(make_approval("court", MANIFEST), usage)
        with pytest.raises(IntegrityError):
            check(approvals=[APPROVALS[0], forged, APPROVALS[2]])
        with pytest.raises(IntegrityError):  # nor does it help beside the real one
            check(approvals=[*APPROVALS, forged])
    both = sign(make_approval("court", MANIFEST), TAX.key(Usage.APPROVE), COURT.key(Usage.APPROVE))
    with pytest.raises(IntegrityError):
        check(approvals=[APPROVALS[0], both, APPROVALS[2]])


def test_one_owners_approval_given_twice_is_not_two_owners_approval() -> None:
    again = approve(TAX, MANIFEST, nonce="ff" * 16)
    with pytest.raises(Refused, match="court: has not approved"):
        check(approvals=[APPROVALS[0], again, APPROVALS[2]])


def test_an_approval_of_the_last_version_is_none_of_this_one() -> None:
    """Acceptance test 24."""
    second = BANK.sign(
        make_manifest("bank-a", ["tax", "court"], platform="city", previous=JOB.digest()),
        Usage.PROPOSE,
    )
    with pytest.raises(IntegrityError, match="of another manifest"):
        check(second)
    fresh = [approve(org, second) for org in (TAX, COURT)]
    with pytest.raises(IntegrityError, match="city: the approval is of another manifest"):
        check(second, [*fresh, APPROVALS[2]])


@pytest.mark.parametrize(
    ("begin", "end", "accepted"),
    [
        (0, 1, True),
        (1, 60, False),
        (-60, 0, False),
        (-60, -1, False),
    ],
)
def test_an_approval_holds_from_its_first_second_to_its_last(
    begin: int, end: int, accepted: bool
) -> None:
    word = approve(
        TAX,
        MANIFEST,
        valid_from=utc_text(NOW + timedelta(seconds=begin)),
        valid_until=utc_text(NOW + timedelta(seconds=end)),
    )
    approvals = [word, *APPROVALS[1:]]
    if accepted:
        assert check(approvals=approvals).valid_until == NOW + timedelta(seconds=end)
    else:
        with pytest.raises(Refused, match="not in force"):
            check(approvals=approvals)


def test_an_approval_by_somebody_who_is_not_asked_is_refused() -> None:
    stranger = make_org("social", code=3)
    for org in (stranger, BANK):
        with pytest.raises(IntegrityError, match="not asked"):
            check(
                approvals=[*APPROVALS, approve(org, MANIFEST)],
                trust=TRUST.with_card(stranger.envelope),
            )


def test_an_approval_under_a_key_on_hold_stops_the_job() -> None:
    held = TAX.with_status(Usage.APPROVE, KeyStatus.HOLD, NOW - timedelta(minutes=1))
    with pytest.raises(Refused, match="on hold"):
        check(trust=TRUST.with_card(held.envelope), me="court")


def test_two_approvals_by_one_person_are_one_persons() -> None:
    """Acceptance test 24, for data of which two persons decide."""
    parties = [
        party.model_copy(update={"persons": 2 if party.org == "tax" else 1})
        for party in JOB.parties
    ]
    manifest = BANK.sign(JOB.model_copy(update={"parties": tuple(parties)}), Usage.PROPOSE)
    approvals = [approve(org, manifest) for org in (TAX, COURT, CITY)]
    again = approve(TAX, manifest, nonce="ff" * 16)
    with pytest.raises(Refused, match="tax: 1 person approved this job where 2 have to"):
        check(manifest, [*approvals, again])
    second = PrivateKey.generate(Usage.APPROVE)
    # the same person's other key, also under a name that only looks like another
    people = (("tax approve", False), ("TAX  Ａpprove", False), ("Li", True))
    for holder, accepted in people:
        record = TAX.card.of_usage(Usage.APPROVE)[0].model_dump() | {
            "key_id": second.key_id,
            "spki": base64.b64encode(second.spki).decode(),
            "holder": holder,
        }
        grown = TAX.newer(keys=[*(key.model_dump() for key in TAX.card.keys), record])
        signers = identity.card_signers(TAX.keys.by_usage)
        trust = TRUST.with_card(sign(grown.card, *signers, second))
        given = [*approvals, sign(make_approval("tax", manifest), second)]
        if accepted:
            assert len(check(manifest, given, trust=trust).approvals) == 4
        else:
            with pytest.raises(Refused, match="1 person approved"):
                check(manifest, given, trust=trust)


# --- the manifest's own side ----------------------------------------------------------------------


def test_only_the_bank_proposes_and_only_with_its_key_for_it() -> None:
    for signed in (
        BANK.sign(JOB, Usage.ADMIN),
        BANK.sign(JOB, Usage.APPROVE),
        TAX.sign(JOB, Usage.APPROVE),
        make_org("bank-b", "bank").sign(JOB, Usage.PROPOSE),
    ):
        with pytest.raises(IntegrityError):
            check(signed)


def test_who_is_not_named_does_not_take_part() -> None:
    with pytest.raises(Refused, match="not a party"):
        check(me="social")


def test_a_party_that_this_node_does_not_trust_stops_the_job() -> None:
    with pytest.raises(NotFound, match="court"):
        check(trust=trust_of(BANK, TAX, CITY))


@pytest.mark.parametrize(
    ("when", "accepted"),
    [
        (timedelta(hours=-1), True),
        (timedelta(hours=-1, seconds=-1), False),
        (timedelta(days=7, seconds=-1), True),
        (timedelta(days=7), False),
    ],
)
def test_a_manifest_is_in_force_from_its_first_second_to_its_last(
    when: timedelta, accepted: bool
) -> None:
    if accepted:
        assert check_manifest(MANIFEST, TRUST, NOW + when, me="tax").org == "bank-a"
    else:
        with pytest.raises(Refused, match="may run from"):
            check_manifest(MANIFEST, TRUST, NOW + when, me="tax")


def test_a_reviewer_can_rely_on_a_manifest_that_nobody_approved() -> None:
    found = check_manifest(MANIFEST, TRUST, NOW, me="court")
    assert (found.org, found.object) == ("bank-a", JOB)
