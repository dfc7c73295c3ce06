"""An entry of the catalogue counts while the keys that signed it do, for running nodes too."""

from __future__ import annotations

from datetime import timedelta

from clients import keys
from federation.audit import Check
from federation.enquiry import Answered
from federation.objects import Usage
from tests.acceptance.consent import World


def test_a_held_key_of_an_approver_ends_the_answers_of_a_provider_that_runs(world: World) -> None:
    grant, tax = world.grant(max_uses=9), world.homes["tax"]
    assert world.ask(grant).result is Answered.MATCH
    name = tax.key(Usage.APPROVE).key_id
    keys.hold(tax, world.audit, name, "on leave", world.now, offline=True)
    world.now += timedelta(seconds=10)
    assert world.ask(grant).result is Answered.REFUSED
    assert world.refusals()[-1].check in (Check.GRANT, Check.QUESTION)
    keys.release(tax, world.audit, name, world.now, offline=True)
    assert world.ask(grant).result is Answered.MATCH
