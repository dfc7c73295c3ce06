"""Boosted trees in the lab: the joint job, and what a job's limits would cost.

The joint run has no cap on thresholds and asks about small nodes too: it shows what there is to be
gained. Beside it stand the same trees under a job's usual limits, and the cheapest settings within
the exposure budget. These are grown in the clear on all columns: a job with the same settings grows
the same trees to the bit, which tests hold it to, so nothing has to be encrypted to know them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np

from clients.lab_run import Finding, Runner, Variant, Watch
from clients.lab_table import Split
from federation import evaluation
from federation.objects import JobManifest, TreesParameters, utc_text
from federation.package import package_sha256
from federation.report import report_of_trees
from federation.tasks import boosting
from federation.tasks.local import local_manifest, local_seeds
from federation.tasks.trees_model import TreesResult
from protocols.streams import Randomness

FREE = {"thresholds": 126, "ask_customers": 0}
UNCAPPED = FREE | {"min_cohort": 5}
LIMITS = ("thresholds", "ask_customers", "min_cohort")  # what a job's defaults keep small
SHOWN_OFFERS = 3
PATIENCE_S = 20.0  # for growing each further variant


def parameters_for(settings: Mapping[str, object]) -> TreesParameters:
    """A job's defaults without its limits, and what was asked for."""
    return TreesParameters.model_validate(UNCAPPED | dict(settings))


def try_split(
    parts: Split, parameters: TreesParameters, *, seed: int, watch: Watch, runner: Runner
) -> Finding:
    """Run the joint job on a split table and compare."""
    now = datetime.now(UTC)
    manifest = manifest_of(parts, parameters)
    run = runner(parts, manifest, seed, watch)
    if not isinstance(run.result, TreesResult):
        raise TypeError("trees were to be run")
    watch("comparing", 0, 1)
    twin = _Twin(parts, manifest, run.result, seed)
    began = time.monotonic()
    everything = {**FREE, "hessians": True, "joint_trees": None}
    pooled = twin.grow(parameters.model_copy(update=everything))
    is_quick = time.monotonic() - began < PATIENCE_S
    report = report_of_trees(
        run.result,
        parts.bank_data,
        manifest,
        created=utc_text(now),
        names=parts.names,
        pooled=pooled.margins,
        is_lab=True,
    )
    usual = parameters.model_copy(
        update={n: TreesParameters.model_fields[n].default for n in LIMITS}
    )
    capped = twin.variant("a job's usual limits", usual, is_grown=True)
    offered = boosting.offers(usual, manifest.limits.customers_min)
    offers = tuple(
        capped
        if item.parameters == usual
        else twin.variant(item.what, item.parameters, is_grown=is_quick and i < SHOWN_OFFERS)
        for i, item in enumerate(offered)
    )
    notes = parts.notes + run.result.notes
    return Finding(report, notes, run.seconds, run.size_bytes, capped, offers)


def manifest_of(parts: Split, parameters: TreesParameters) -> JobManifest:
    """The manifest that a real job of these parties would have, unsigned; its dates are fixed."""
    held = parts.bank_data.test
    if held is not None:  # the lab drew it; what the parameters say has no effect
        share = Decimal(str(round(float(held.mean()), 4)))
        parameters = parameters.model_copy(update={"hold_out": str(min(share, Decimal("0.9")))})
    manifest = local_manifest(
        {parts.bank: parts.bank_data}, parts.departments, parameters, job=parts.job
    )
    named = {"registry": parts.registry.described(), "package_sha256": package_sha256()}
    return manifest.model_copy(update=named)


class _Twin:
    """The same trees with all columns in one place."""

    def __init__(self, parts: Split, manifest: JobManifest, result: TreesResult, seed: int) -> None:
        self.parts, self.manifest, self.result = parts, manifest, result
        master = local_seeds(parts.organisations, seed)[parts.bank]
        self.randomness = Randomness(master, bytes.fromhex(manifest.digest()), 0)

    def grow(self, parameters: TreesParameters) -> boosting.PooledTrees:
        """Grown on the customers that the joint run was grown on."""
        return boosting.fit_pooled(
            self.parts.bank,
            self.parts.bank_data,
            self.parts.departments,
            parameters,
            train=~(self.result.test | self.result.validation),
            validation=self.result.validation,
            vmax=boosting.plan_of(self.manifest).query.vmax,
            customers_min=self.manifest.limits.customers_min,
            randomness=self.randomness,
            coins=self.result.coins,
        )

    def variant(self, what: str, parameters: TreesParameters, *, is_grown: bool) -> Variant:
        """Its figures; with `is_grown` also how good it is."""
        before, after = self.manifest.trees.model_dump(), parameters.model_dump()
        changed = {
            name: value
            for name, value in after.items()
            if value != before[name] and name != "hold_out"
        }
        asked = boosting.tokens_of(parameters)
        exposure = asked / self.manifest.limits.customers_min
        if not is_grown:
            return Variant(what, changed, asked, exposure, {}, None, None)
        made = self.grow(parameters)
        bank = self.parts.bank
        used = {split for tree in made.fitted.trees for split in tree.splits if split is not None}
        owners = [made.features[split.feature].owner for split in used]
        opened = {org: owners.count(org) for org in self.parts.organisations if org != bank}
        bad, risk = self.result.labels[self.result.test], made.margins[self.result.test]
        told = risk.astype(np.float64)
        auc, ks = evaluation.auc_statistic(bad, told), evaluation.ks_statistic(bad, told)
        return Variant(what, changed, asked, exposure, opened, auc, ks)
