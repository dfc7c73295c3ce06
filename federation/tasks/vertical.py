"""Steps that every task over departments' columns takes, whatever it trains.

    rows       all agree on the cover; the bank gets row keys of its customers
    bins       a department's pre-bins, told to the bank
    tokens     the department commits to its bins, then grants a whole job's tokens

Each step is a pair of functions, one for either end of the channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from federation.errors import UsageError
from federation.ledger import What
from federation.tables import BankData, CategoryColumn, Column, DepartmentData, NumberColumn
from federation.tasks import row_keys
from federation.tasks.binning import FeatureBins, pre_bin
from federation.tasks.messages import Definitions
from federation.tasks.party import Party
from protocols import labels, linear_query
from protocols.errors import ProtocolError
from protocols.kernels import kernel, spread
from protocols.linear_query import (
    Layout,
    MatrixCommitment,
    Parameters,
    TokenReply,
    TokenRequest,
)
from protocols.streams import digest

Bools = NDArray[np.bool_]
Keys = NDArray[np.uint8]
MIN_OF_A_CLASS = 20  # training bads, and goods: below, no bin could hold ten of them on two sides

# --- the bank -------------------------------------------------------------------------------------


def require_usable(party: Party, data: BankData) -> None:
    """The bank's data fits the manifest; raises UsageError."""
    manifest = party.manifest
    limits = manifest.limits
    if len(data.columns) != len(manifest.party(party.me).fields):
        raise UsageError("the columns are not those of the manifest", party=party.me)
    if data.cover_rows != manifest.cover.rows:
        raise UsageError("the cover has other rows than the manifest says", party=party.me)
    if not limits.customers_min <= data.customers <= limits.customers_max:
        text = "the number of customers is not between customers_min and customers_max"
        todo = "propose the job again with limits that fit"
        raise UsageError(text, party=party.me, todo=todo)
    if data.labels.size and data.labels.max() > 1:
        raise UsageError("a label is neither 0 nor 1", party=party.me)


def require_both_classes(party: Party, customers: int, bads: int) -> None:
    """Enough of each to train on; raises UsageError."""
    if min(bads, customers - bads) < MIN_OF_A_CLASS:
        text = f"fewer than {MIN_OF_A_CLASS} good or bad customers to train on"
        todo = "take more customers, a longer window for bad, or a smaller hold-out"
        raise UsageError(text, party=party.me, todo=todo)


def hold_out(party: Party, data: BankData, share: float) -> Bools:
    """The given test customers, or a draw within each class: the same in all attempts of a job."""
    if data.test is not None:
        return data.test.astype(bool)
    words = party.lasting.stream(labels.HOLD_OUT).words(data.customers)
    test = np.zeros(data.customers, bool)
    for label in (0, 1):
        members = np.flatnonzero(data.labels == label)
        order = members[np.argsort(words[members], kind="stable")]
        test[order[: round(share * len(members))]] = True
    return test


def bank_pieces(data: BankData, test: Bools) -> list[bytes]:
    """What the bank commits to: customers, labels with the hold-out, own columns."""
    return [
        data.codes.tobytes() + data.positions.astype("<i8").tobytes(),
        data.labels.tobytes() + test.tobytes(),
        digest(*(_column_bytes(column) for column in data.columns)),
    ]


def department_digest(data: DepartmentData) -> bytes:
    """Of all that a department brings, for the steps of earlier attempts; nobody else sees it."""
    return digest(data.codes.tobytes(), *(_column_bytes(column) for column in data.columns))


def _column_bytes(column: Column) -> bytes:
    if isinstance(column, CategoryColumn):
        return digest(column.name, *column.categories, column.codes.astype("<i4").tobytes())
    return digest(column.name, column.values.astype("<f8").tobytes())


def ask_row_keys(party: Party, data: BankData) -> tuple[bytes, dict[str, Keys]]:
    """Digest of the cover that all were given, and each department's keys of the customers."""
    return row_keys.ask(party, data)


def receive_bins(party: Party, org: str, max_bins: int) -> tuple[FeatureBins, ...]:
    """A department's pre-bins; raises ProtocolError if they are not what the manifest allows."""
    made = party.channels[org].receive("binning", Definitions).features
    if tuple(item.name for item in made) != party.manifest.party(org).fields:
        raise ProtocolError(f"{org} binned other fields than the manifest names")
    if any(item.bins > max_bins + 1 for item in made):
        raise ProtocolError(f"{org} made more bins than the manifest allows")
    columns = sum(item.bins for item in made)
    party.ledger.reveal(org, party.me, What.BIN_DEFINITIONS, columns, 64)
    return made


def querier_of(
    party: Party, rows: int, parameters: Parameters, joint_seed: bytes, matrix: str
) -> linear_query.Bank:
    """The querier of one matrix over all departments."""
    return linear_query.Bank(
        rows=rows,
        parameters=parameters,
        joint_seed=joint_seed,
        name=party.me,
        manifest=party.manifest_digest,
        attempt=party.attempt,
        matrix=matrix,
        randomness=party.randomness,
        spent=party.spent,
        executor=party.executor,
    )


def fetch_tokens(
    party: Party, querier: linear_query.Bank, layouts: Mapping[str, Layout], queries: int
) -> None:
    """Tokens for all queries to come, when every department has committed to its matrix."""
    stage, left = party.stage, queries
    for org in layouts:
        commitment = party.channels[org].receive(stage, MatrixCommitment)
        party.saw(org, f"matrix {querier.matrix}", commitment.digest.tobytes())
    while left:
        count = min(left, querier.parameters.batch_tokens)
        request = querier.request_tokens(count)
        for org in layouts:
            party.channels[org].send(stage, request)
        for org, layout in layouts.items():
            querier.accept_tokens(org, layout, party.channels[org].receive(stage, TokenReply))
        left -= count


# --- a department ---------------------------------------------------------------------------------


def require_matching(party: Party, data: DepartmentData) -> None:
    """A department's data fits the manifest; raises UsageError."""
    manifest = party.manifest
    if len(data.columns) != len(manifest.party(party.me).fields):
        raise UsageError("the columns are not those of the manifest", party=party.me)
    if data.rows != manifest.cover.rows:
        raise UsageError("the cover has other rows than the manifest says", party=party.me)


def give_row_keys(party: Party, data: DepartmentData) -> tuple[bytes, Keys]:
    """Digest of the cover, and a key for each of its rows."""
    return row_keys.give(party, data)


def make_bins(
    columns: Sequence[Column],
    rows: int,
    max_bins: int,
    min_cohort: int,
    executor: Executor | None = None,
) -> tuple[tuple[FeatureBins, ...], NDArray[np.uint8]]:
    """Pre-bins of all columns, and the bin of every row: (features, rows)."""
    made: list[FeatureBins | None] = [None] * len(columns)
    codes = np.empty((len(columns), rows), np.uint8)

    def work(start: int, stop: int) -> None:
        for j in range(start, stop):
            column = columns[j]
            if isinstance(column, NumberColumn):  # a column of a table may lie scattered
                values = np.ascontiguousarray(column.values)
                found = pre_bin(NumberColumn(column.name, values), max_bins, min_cohort)
                _place_numbers(found.edges, values, found.missing, codes[j])
            else:
                found = pre_bin(column, max_bins, min_cohort)
                codes[j] = found.assign(column)
            made[j] = found

    spread(executor, len(columns), work)
    return tuple(item for item in made if item is not None), codes


@kernel
def _place_numbers(
    edges: NDArray[np.float64],
    values: NDArray[np.float64],
    missing: int,
    out: NDArray[np.uint8],
) -> None:
    """`FeatureBins.assign` of numbers: a block meets every edge at once, without branches."""
    block = 4096
    for low in range(0, values.size, block):
        x, bins = values[low : low + block], out[low : low + block]
        bins[:] = 0
        for edge in edges:
            for i in range(x.size):
                bins[i] += np.uint8(x[i] >= edge)
        for i in range(x.size):
            bins[i] = bins[i] if x[i] == x[i] else missing


def owner_of(
    party: Party,
    layout: Layout,
    bins: NDArray[np.uint8],
    parameters: Parameters,
    joint_seed: bytes,
    matrix: str,
    *,
    querier: str = "",
    integers: NDArray[np.int32] | None = None,
) -> linear_query.Department:
    """The owner of a matrix of bins, and of integer columns if given, towards the bank or whoever
    asks."""
    return linear_query.Department(
        layout=layout,
        bins=bins,
        integers=np.empty((0, layout.rows), np.int32) if integers is None else integers,
        parameters=parameters,
        joint_seed=joint_seed,
        querier=querier or party.manifest.bank,
        name=party.me,
        manifest=party.manifest_digest,
        attempt=party.attempt,
        matrix=matrix,
        randomness=party.randomness,
        answers=party.answers,
        executor=party.executor,
    )


def grant_tokens(
    party: Party, owner: linear_query.Department, queries: int, *, querier: str = ""
) -> bytes:
    """Commit to the matrix, then grant tokens for all queries to come; returns the commitment."""
    channel, stage = party.channels[querier or party.manifest.bank], party.stage
    commitment = owner.commit()
    party.saw(party.me, f"matrix {owner.matrix}", commitment.digest.tobytes())
    channel.send(stage, commitment)
    owner.prepare()
    granted = 0
    while granted < queries:
        request = channel.receive(stage, TokenRequest)
        channel.send(stage, owner.grant_tokens(request))
        granted += request.tokens
    if granted != queries:
        raise ProtocolError(f"{granted} tokens asked, the job has {queries}")
    return commitment.digest.tobytes()
