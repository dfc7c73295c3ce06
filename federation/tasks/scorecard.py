"""A scorecard over columns of several owners: what a node, a draft and the laboratory call.

run_bank, run_department   the party programs
plan, declare              query parameters, token limits, disclosures of a manifest
fit_pooled                 the same model with all columns in one place, for comparison
"""

from federation.tasks.model import (
    DepartmentPart,
    PooledFit,
    ScorecardModel,
    ScorecardResult,
    fit_pooled,
    reason_codes,
)
from federation.tasks.plan import declare, plan, plan_of
from federation.tasks.scorecard_bank import run_bank
from federation.tasks.scorecard_department import run_department

__all__ = [
    "DepartmentPart",
    "PooledFit",
    "ScorecardModel",
    "ScorecardResult",
    "declare",
    "fit_pooled",
    "plan",
    "plan_of",
    "reason_codes",
    "run_bank",
    "run_department",
]
