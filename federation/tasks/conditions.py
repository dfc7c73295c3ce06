"""Whether a dataset's noise still hides it after all that was asked of it before.

The noise of a job is chosen for its own queries; what all answers show together grows with all of
them (PROTOCOLS.md section 3, Security of the opening: Q counts the tokens of *all* jobs). Only the
owner's gate knows the earlier ones, so only it can ask this. A snapshot that was refreshed between
two jobs counts as the same matrix: most of its rows are.
"""

from __future__ import annotations

from federation.errors import RefusalCode, Refused
from federation.objects import JobManifest, TreesParameters
from federation.tasks import trees_plan
from federation.tasks.plan import plan_of
from protocols.errors import ParameterError
from protocols.linear_query import Layout
from protocols.parameters import check_parameters


def require_hidden(manifest: JobManifest, org: str, tokens_before: int) -> None:
    """Raises Refused if the job's answers, with all earlier ones, would show too much of a row or
    of the whole of this department's columns."""
    if isinstance(manifest.parameters, TreesParameters):
        parameters, bins = trees_plan.plan_of(manifest).query, manifest.trees.max_bins
    else:
        parameters, bins = plan_of(manifest).bins, manifest.scorecard.max_bins
    layout = Layout(manifest.cover.rows, (bins + 1,) * len(manifest.party(org).fields))
    try:
        check_parameters(
            parameters,
            layout,
            customers=manifest.limits.customers_max * len(manifest.banks),
            tokens_before=tokens_before,
        )
    except ParameterError as error:
        text = f"exposure: after {tokens_before:,} earlier queries {error}"
        raise Refused(text, code=RefusalCode.INSUFFICIENT_BUDGET, party=org) from None
