"""What a department sees of a scorecard job, and what it could do with it.

F7 (CRYPTO_REVIEW.md): a department that counts one row many times over reads that row's label from
what the bank does next. F2, F3: queries must look alike whatever they ask.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from federation import wire
from federation.channel import Channel, QueueTransport, in_process
from federation.errors import IntegrityError
from federation.tasks import scorecard_department
from federation.tasks.binning import FeatureBins, Groups, weight_of_evidence
from federation.tasks.local import LocalScorecard
from protocols import linear_query, rlwe
from protocols.linear_query import Layout, Query
from protocols.packing import unpack
from protocols.parameters import Q_BITS
from protocols.ring import Q
from tests.federation.scorecard_data import SUMS_ONLY, World, make_world


class Tap:
    """A transport that keeps what its owner receives."""

    def __init__(self, inner: QueueTransport) -> None:
        self._inner, self.frames = inner, list[bytes]()

    def send(self, frame: bytes) -> None:
        self._inner.send(frame)

    def receive(self, timeout_s: float) -> bytes:
        frame = self._inner.receive(timeout_s)
        self.frames.append(frame)
        return frame

    def close(self) -> None:
        self._inner.close()


def tapped(world: World, me: str) -> tuple[dict[str, dict[str, Channel]], dict[str, Tap]]:
    channels = in_process(["bank", *world.departments])
    taps = {}
    for peer, channel in channels[me].items():
        inner = channel._transport
        assert isinstance(inner, QueueTransport)
        taps[peer] = Tap(inner)
        channels[me][peer] = Channel(me, peer, taps[peer])
    return channels, taps


def received(
    world: World, me: str, **parameters: object
) -> tuple[LocalScorecard, dict[str, list[bytes]]]:
    channels, taps = tapped(world, me)
    run = world.run(channels=channels, **parameters)
    return run, {peer: tap.frames for peer, tap in taps.items()}


def stage_and_body(frame: bytes) -> tuple[str, bytes]:
    size = int.from_bytes(frame[:8], "big")
    return frame[8 : 8 + size].decode(), frame[8 + size + 8 + 8 + 8 :]


def schedule(frames: list[bytes]) -> list[tuple[str, int]]:
    return [(stage_and_body(frame)[0], len(frame)) for frame in frames]


def queries(frames: list[bytes], rows: int) -> list[NDArray[np.int64]]:
    out = []
    for frame in frames:
        _, body = stage_and_body(frame)
        if b'"type":"Query"' in body[:400]:
            out.append(unpack(wire.decode(body, Query).b, Q_BITS, rows, Q))
    return out


@pytest.mark.parametrize("parameters", [SUMS_ONLY, {"openings": 1}])
def test_other_customers_and_labels_give_frames_of_the_same_sizes_in_the_same_order(
    parameters: dict[str, object],
) -> None:
    mine = make_world(rows=700, customers=500)
    other = make_world(rows=700, customers=500, labels_seed=5, customers_seed=7)
    _, before = received(mine, "dept_0", **parameters)
    _, after = received(other, "dept_0", **parameters)
    assert {peer: schedule(frames) for peer, frames in before.items()} == {
        peer: schedule(frames) for peer, frames in after.items()
    }


def test_the_number_of_customers_does_not_show() -> None:
    few, many = make_world(rows=700, customers=400), make_world(rows=700, customers=600)
    manifest = many.manifest(**SUMS_ONLY)
    limits = manifest.limits.model_copy(update={"customers_min": 300})
    manifest = manifest.model_copy(update={"limits": limits})
    views = []
    for world in (few, many):
        channels, taps = tapped(world, "dept_0")
        world.run(manifest, channels=channels)
        views.append({peer: schedule(tap.frames) for peer, tap in taps.items()})
    assert views[0] == views[1]


def test_queries_are_uniform_whatever_they_ask() -> None:
    world = make_world(rows=2048, customers=1500)
    _, frames = received(world, "dept_0", **SUMS_ONLY)
    asked = queries([*frames["bank"], *frames["dept_1"]], 2048)
    assert len(asked) >= 7
    for b in asked:
        found = np.bincount(b * 16 // Q, minlength=16)
        # 16 classes of 128 rows; a false alarm in one of a million queries.
        assert stats.chisquare(found).pvalue > 1e-6
    customers = np.zeros(2048, bool)
    customers[world.bank.positions] = True
    inside = np.concatenate([b[customers] for b in asked]) / Q
    outside = np.concatenate([b[~customers] for b in asked]) / Q
    assert stats.ks_2samp(inside, outside).pvalue > 1e-6


def test_no_two_queries_are_asked_under_one_token() -> None:
    world = make_world(rows=700, customers=500, departments=3)
    _, frames = received(world, "dept_2", **SUMS_ONLY)
    seen: Counter[tuple[bytes, int, int]] = Counter()
    for peer in frames.values():
        for frame in peer:
            _, body = stage_and_body(frame)
            if b'"type":"Query"' in body[:400]:
                query = wire.decode(body, Query)
                seen[query.context.tobytes(), query.batch, query.index] += 1
    assert seen
    assert max(seen.values()) == 1


class Amplifier(linear_query.Department):
    """Counts one row a thousand times in one bin, and takes it from the next, in every answer."""

    row, factor, target = 0, 1000, "dept_0"

    def prepare(self) -> None:
        if self._hint is not None:
            return
        super().prepare()
        assert self._hint is not None
        if not self._cheats:
            return
        rows = self.layout.rows
        column = np.zeros((1, rows), np.int32)
        column[0, self.row] = self.factor
        blocks = rlwe.transformed_blocks(rlwe.public_blocks(self._coins, rows, None), None)
        layout, none = Layout(rows, (), (self.factor,)), np.zeros((0, rows), np.uint8)
        shift = rlwe.hint(layout, none, column, blocks, None)[0]
        for at, sign in ((0, 1), (1, -1)):
            moved = (self._hint[at] + sign * shift) % Q
            self._hint[at] = np.where(2 * moved > Q, moved - Q, moved)

    def _sums(self, b: NDArray[np.int64]) -> NDArray[np.int64]:
        out = super()._sums(b)
        if self._cheats:
            shift = self.factor * int(b[self.row])
            out[0], out[1] = (int(out[0]) + shift) % Q, (int(out[1]) - shift) % Q
        return out

    @property
    def _cheats(self) -> bool:
        return self.name == self.target and self._coins.matrix == scorecard_department.BINS


def with_hold_out(world: World, label: int | None = None) -> World:
    """Customer 0 is in the training set; its label may be set."""
    test = np.zeros(world.bank.customers, bool)
    test[1::3] = True
    labels = world.bank.labels.copy()
    if label is not None:
        labels[0] = label
    return World(dataclasses.replace(world.bank, test=test, labels=labels), world.departments)


@pytest.mark.parametrize("is_customer", [True, False])
def test_an_amplified_customer_is_noticed_and_stops_the_job(
    monkeypatch: pytest.MonkeyPatch, is_customer: bool
) -> None:
    """Only where it could have learned something: of a row without a customer it gets nought."""
    world = with_hold_out(make_world(rows=700, customers=500))
    others = np.setdiff1d(np.arange(700), world.bank.positions)
    row = world.bank.positions[0] if is_customer else others[0]
    monkeypatch.setattr(Amplifier, "row", int(row))
    monkeypatch.setattr(scorecard_department.linear_query, "Department", Amplifier)
    if not is_customer:
        world.run(**SUMS_ONLY)
        return
    with pytest.raises(IntegrityError, match=r"dept_0: column \d is beyond") as caught:
        world.run(**SUMS_ONLY)
    assert caught.value.stage == "counts"


def test_without_the_checks_the_amplified_label_shows_in_the_woe_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack that the checks stand against: it wins with them off."""
    world = make_world(rows=700, customers=500)
    monkeypatch.setattr(Amplifier, "row", int(world.bank.positions[0]))
    monkeypatch.setattr(scorecard_department.linear_query, "Department", Amplifier)
    for check in ("check_counts", "check_opening"):
        monkeypatch.setattr(f"federation.tasks.scorecard_bank.{check}", lambda *_, **__: None)
    # Bins of the bank's own making would hide part of it: let nothing be merged.
    monkeypatch.setattr("federation.tasks.scorecard_bank.group", _unmerged)
    seen = {}
    for label in (0, 1):
        part = with_hold_out(world, label).run(**SUMS_ONLY).parts["dept_0"]
        seen[label] = int(part.features[0].woe[0])
    assert seen[0] - seen[1] > 20  # a whole unit of WOE, from one customer's label


def _unmerged(
    definition: FeatureBins, n: NDArray[np.int64], b: NDArray[np.int64], **_: object
) -> Groups:
    n = np.maximum(n, 1)
    b = np.clip(b, 0, n)
    woe = weight_of_evidence(n, b)
    return Groups(np.arange(definition.bins), n, b, woe, 1.0)
