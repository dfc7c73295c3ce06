"""What all jobs together show of a department's columns, not what each of them does."""

from __future__ import annotations

import pytest

from federation.errors import RefusalCode, Refused
from federation.tasks.conditions import require_hidden
from federation.tasks.plan import plan_of
from protocols.linear_query import Layout
from protocols.parameters import check_parameters
from tests.federation.scorecard_data import make_world
from tests.federation.trees_data import make_trees_world


def test_a_job_that_is_harmless_by_itself_is_refused_after_enough_others() -> None:
    manifest = make_world(rows=600, customers=500).manifest()
    require_hidden(manifest, "dept_0", 0)
    with pytest.raises(Refused, match="earlier queries") as caught:
        require_hidden(manifest, "dept_0", 10**9)
    assert caught.value.code is RefusalCode.INSUFFICIENT_BUDGET
    assert caught.value.party == "dept_0"


def test_without_the_earlier_jobs_the_same_figures_pass() -> None:
    """The attack: a budget that begins anew with each job is none."""
    manifest = make_world(rows=600, customers=500).manifest()
    layout = Layout(600, (manifest.scorecard.max_bins + 1,) * 6)
    for _ in range(3):  # as often as one likes
        check_parameters(plan_of(manifest).bins, layout, customers=500)


def test_trees_are_held_to_it_as_well() -> None:
    manifest = make_trees_world().manifest(trees=2)
    require_hidden(manifest, "tax", 0)
    with pytest.raises(Refused, match="earlier queries"):
        require_hidden(manifest, "tax", 10**9)
