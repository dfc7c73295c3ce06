"""Row keys of the bank's customers: what the manifest says of them, and both sides of the step.

    rows     every department says which cover it was given; the bank goes on if all say the same
    voprf    B the customers, blinded; D evaluates them, and its own cover (protocols/oprf.py)
    set      D a hello; B its reply, which hides the customers (protocols/set_oprf.py)

Way          `JobManifest.alignment`. The VOPRF may always be asked for; the set OPRF from 1,000
             customers on, where the number that it gives a cheating bank is near the true one
             (protocols/row_key_agreement.py).
Number       `Limits.row_keys`, which is also what is disclosed. Both sides take it from the
             manifest, after they held it to the rule (`require_agreed`).
Fresh        The keys are those of one attempt of one job: seeds and contexts hold the manifest's
             digest and the attempt. So no list of row keys outlives the job, and the number needs
             no account over jobs. Within a job, n attempts give at most n times the number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from federation.errors import Refused, UsageError
from federation.ledger import What
from federation.objects import CoverKind, JobManifest
from federation.tables import BankData, DepartmentData
from federation.tasks.messages import Rows
from federation.tasks.party import Party
from protocols import labels, oprf, set_oprf
from protocols.errors import ParameterError, ProtocolError
from protocols.row_key_agreement import SET_FROM, Way, approved_number, choose
from protocols.row_key_books import Attempt
from protocols.row_keys import ROW_KEY_BYTES, keys_of_job
from protocols.streams import digest

STAGE = "row keys"

Keys = NDArray[np.uint8]
Done = Callable[[int], None]

# --- the manifest ---------------------------------------------------------------------------------


def agreed(customers_max: int) -> tuple[Way, int]:
    """For a manifest: the way and the approved number. UsageError if there are too many."""
    try:
        way = choose(customers_max)
        return way, approved_number(customers_max, way)
    except ParameterError as error:
        raise UsageError(str(error), todo="ask for fewer customers") from None


def require_agreed(manifest: JobManifest) -> None:
    """The manifest's way and number are those of the rule; raises Refused.

    A set OPRF below `SET_FROM` would let the bank have far more keys than it has customers.
    """
    most, way = manifest.limits.customers_max, manifest.alignment
    if way == "set" and most < SET_FROM:
        raise Refused(f"row keys by set OPRF take {SET_FROM:,} customers, the job has {most:,}")
    try:
        number = approved_number(most, way)
    except ParameterError as error:
        raise Refused(str(error)) from None
    if manifest.limits.row_keys != number:
        said = f"{manifest.limits.row_keys:,} row keys, {most:,} customers take {number:,}"
        raise Refused(f"the manifest says {said}")


# --- the bank -------------------------------------------------------------------------------------


def ask(party: Party, data: BankData, *, is_opening: bool = True) -> tuple[bytes, dict[str, Keys]]:
    """Bank: digest of the cover that all were given, and each department's keys of its customers.

    is_opening: whether anything is opened for single customers; without it nobody gets a key.
    """
    manifest, departments = party.manifest, party.manifest.departments
    rowwise = int(manifest.cover.kind is not CoverKind.REGISTRY)
    with party.at(STAGE, 2) as done:
        for org in departments:
            party.ledger.reveal(party.me, org, What.COVER, data.cover_rows, rowwise)
        said = {org: party.channels[org].receive(STAGE, Rows) for org in departments}
        if len({(item.rows, item.digest) for item in said.values()}) != 1:
            raise ProtocolError("the departments were given different covers")
        if said[departments[0]].rows != data.cover_rows:
            raise ProtocolError("the departments' cover has other rows than this party's")
        cover = said[departments[0]].digest
        if not is_opening:
            return cover, {}
        for org in departments:
            party.ledger.reveal(party.me, org, What.ROW_KEYS, manifest.limits.row_keys, 0)
        way = _ask_set if manifest.alignment == "set" else _ask_voprf
        held = way(party, data, said, done)
        job = party.manifest_digest
        return cover, {org: keys_of_job(one.row_keys(data.codes), job) for org, one in held.items()}


def _ask_voprf(
    party: Party, data: BankData, said: Mapping[str, Rows], done: Done
) -> dict[str, oprf.CustomerRowKeys]:
    size, askers = party.manifest.limits.row_keys, {}
    for org, rows in said.items():
        askers[org] = oprf.Bank(rows.oprf_key, data.codes, size, party.randomness, org)
        party.channels[org].send(STAGE, askers[org].blind(party.executor))
    done(1)
    return {
        org: asker.finalize(party.channels[org].receive(STAGE, oprf.EvaluatedBatch), party.executor)
        for org, asker in askers.items()
    }


def _ask_set(
    party: Party, data: BankData, said: Mapping[str, Rows], done: Done
) -> dict[str, oprf.CustomerRowKeys]:
    # The gate took the customers from the registry; the cover itself is the departments' to hold.
    listed, askers = np.sort(data.codes, kind="stable"), {}
    for org, rows in said.items():
        attempt = attempt_of(party, org, rows.digest)
        secret = party.randomness.key(labels.SET_OPRF_BANK, peer=org, inputs=attempt.context())
        with _own_data(party):
            asker = set_oprf.Bank(attempt, listed, listed, secret, party.reply_book)
        hello = party.channels[org].receive(STAGE, set_oprf.Hello)
        try:
            reply = asker.reply(hello, party.executor)
        except ParameterError as error:
            # Another list than the one answered for. Nobody outside is told which of it was wrong.
            raise ProtocolError(set_oprf.REFUSED) from error
        party.channels[org].send(STAGE, reply)
        askers[org] = asker
    done(1)
    return {org: asker.finalize(party.executor) for org, asker in askers.items()}


# --- a department ---------------------------------------------------------------------------------


def give(party: Party, data: DepartmentData, *, is_opening: bool = True) -> tuple[bytes, Keys]:
    """Department: digest of the cover, and a key for each of its rows; none without an opening."""
    manifest, bank, codes = party.manifest, party.manifest.bank, data.codes
    rowwise = int(manifest.cover.kind is not CoverKind.REGISTRY)
    with party.at(STAGE, 2) as done:
        party.ledger.reveal(bank, party.me, What.COVER, len(codes), rowwise)
        cover = digest(labels.COVER_DIGEST, len(codes), codes.tobytes())
        if not is_opening:
            party.channels[bank].send(STAGE, Rows(len(codes), cover, b""))
            return cover, np.empty((0, ROW_KEY_BYTES), np.uint8)
        party.ledger.reveal(bank, party.me, What.ROW_KEYS, manifest.limits.row_keys, 0)
        way = _give_set if manifest.alignment == "set" else _give_voprf
        return cover, keys_of_job(way(party, codes, cover, done), party.manifest_digest)


def _give_voprf(party: Party, codes: NDArray[np.bytes_], cover: bytes, done: Done) -> Keys:
    manifest, bank = party.manifest, party.manifest.bank
    channel = party.channels[bank]
    seed = party.randomness.key(labels.OPRF_SEED, peer=bank)
    key = oprf.key_for(seed, bank, bytes.fromhex(manifest.registry.digest))
    channel.send(STAGE, Rows(len(codes), cover, key.public))
    evaluator = oprf.Department(key, manifest.limits.row_keys, party.randomness)
    batch = channel.receive(STAGE, oprf.BlindedBatch)
    channel.send(STAGE, evaluator.blind_evaluate(batch, party.executor))
    done(1)
    return evaluator.row_keys(codes, party.executor)


def _give_set(party: Party, codes: NDArray[np.bytes_], cover: bytes, done: Done) -> Keys:
    bank = party.manifest.bank
    channel, attempt = party.channels[bank], attempt_of(party, party.me, cover)
    secret = party.randomness.key(labels.SET_OPRF_DEPARTMENT, peer=bank, inputs=attempt.context())
    # The book counts a job's attempts together; this is at most one number for each so far.
    approved = attempt.m * (attempt.number + 1)
    listed = np.sort(codes, kind="stable")  # sorted already as a rule; then it costs nothing
    with _own_data(party):
        evaluator = set_oprf.Department(attempt, approved, listed, secret, party.attempt_book)
    hello = evaluator.hello()
    channel.send(STAGE, Rows(len(codes), cover, b""))
    channel.send(STAGE, hello)
    reply = channel.receive(STAGE, set_oprf.Reply)
    done(1)
    return evaluator.accept(reply, party.executor).row_keys(codes, party.executor)


# --- both -----------------------------------------------------------------------------------------


def attempt_of(party: Party, department: str, cover: bytes) -> Attempt:
    """The set OPRF's name for this attempt of this job, the same at both ends.

    What it calls a snapshot is here the cover in this very job: so two jobs have no session in
    common, and books count each job by itself.
    """
    manifest = party.manifest
    registry = bytes.fromhex(manifest.registry.digest)
    snapshot = digest(labels.SET_OPRF_SNAPSHOT, registry, cover, party.manifest_digest)
    return Attempt(manifest.bank, department, snapshot, manifest.limits.row_keys, party.attempt)


@contextmanager
def _own_data(party: Party) -> Iterator[None]:
    """What the set OPRF says of this party's own list, as a user's mistake."""
    try:
        yield
    except ParameterError as error:
        raise UsageError(str(error), party=party.me, stage=STAGE) from None
