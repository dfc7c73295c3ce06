"""A bank and a tax bureau train trees; the bureau's heavy work runs on a Dask cluster.

    python -m examples.dask.cluster

1. A bank has 600 customers in a registry of 2,000 firms, the bureau has figures of all firms.
2. They train with threads, as nodes do by default.
3. They train again, and the same executor that a node opens for `dask_scheduler = "tcp://..."`
   sends hints and row keys to two worker processes.
4. Every frame is the same, byte for byte, and so is the model; and both are the plaintext model.

A node does step 3 when its config.toml names a scheduler: over TLS (`tls://`), or on its own
machine as here. The cluster is given the party's own columns and keys, so it must be the party's.
"""

from __future__ import annotations

import numpy as np
from distributed import LocalCluster

from clients.home import Config
from clients.workers import workers
from federation.codes import code_for_row
from federation.objects import TreesParameters
from federation.tables import BankData, DepartmentData, NumberColumn
from federation.tasks.boosting import fit_pooled
from federation.tasks.local import LocalTrees, local_manifest, local_seeds, run_trees_in_process
from protocols.streams import Randomness

FIRMS, CUSTOMERS = 2000, 600
PARAMETERS = TreesParameters(trees=2, max_depth=3, min_cohort=10, ask_customers=50, hold_out="0.0")


def tables() -> tuple[BankData, dict[str, DepartmentData]]:
    """Step 1."""
    rng = np.random.default_rng(1)
    codes = np.sort(code_for_row(7, np.arange(FIRMS)).astype("S18"))
    tax = rng.normal(size=(FIRMS, 6))
    at = np.sort(rng.choice(FIRMS, CUSTOMERS, replace=False)).astype(np.int64)
    own = rng.normal(size=(CUSTOMERS, 3))
    risk = own[:, 0] + tax[at, 0] * (tax[at, 1] > 0) + tax[at, 2]
    bad = (rng.random(CUSTOMERS) < 1 / (1 + np.exp(1 - risk))).astype(np.uint8)
    columns = [NumberColumn(f"own{i}", own[:, i]) for i in range(3)]
    theirs = [NumberColumn(f"tax{i}", tax[:, i]) for i in range(6)]
    return BankData(FIRMS, at, codes[at], columns, bad), {"tax": DepartmentData(theirs, codes)}


def transcripts(run: LocalTrees) -> dict[tuple[str, str], tuple[bytes, bytes]]:
    """Digests over every frame of each direction, by party and peer."""
    return {
        (me, peer): (item.sent_digest, item.received_digest)
        for me, peers in run.traffic.items()
        for peer, item in peers.items()
    }


def main() -> None:
    """Steps 1 to 4."""
    bank, departments = tables()
    manifest = local_manifest({"bank": bank}, departments, PARAMETERS)

    with workers(Config(org="tax")) as threads:
        here = run_trees_in_process(bank, departments, manifest, 1, executor=threads)
    print(f"threads: {len(here.result.model.trees)} trees")

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        workers(Config(org="tax", dask_scheduler=cluster.scheduler_address)) as far,
    ):
        there = run_trees_in_process(bank, departments, manifest, 1, executor=far)
        steps = cluster.scheduler.transition_counter
    if not steps:
        raise SystemExit("nothing was sent to the cluster")
    print(f"Dask:    {len(there.result.model.trees)} trees; the scheduler took {steps} steps")

    pooled = fit_pooled(
        "bank",
        bank,
        departments,
        PARAMETERS,
        train=np.ones(CUSTOMERS, bool),
        vmax=manifest.query.vmax,
        randomness=Randomness(
            local_seeds(["bank"], 1)["bank"], bytes.fromhex(manifest.digest()), 0
        ),
        coins=here.result.coins,
    )
    if transcripts(here) != transcripts(there):
        raise SystemExit("the frames differ")
    if not np.array_equal(here.result.margins, there.result.margins):
        raise SystemExit("the models differ")
    if not np.array_equal(here.result.margins, pooled.margins):
        raise SystemExit("the model is not the plaintext model")
    print("equal frames, equal models, both the plaintext model")


if __name__ == "__main__":
    main()
