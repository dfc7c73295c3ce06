"""A secure sum of 10 banks x 1,000,000 parameters, 2 of them vanishing; and how it grows.

    python benchmarks/secagg.py [--parties 10] [--parameters 1000000]

CPU seconds of all parties and the coordinator together, one thread, messages as frames, every sum
compared with the plain one. The reference is Flower's SecAgg+ in the same run: the same masks and
shares by its own functions (seeds of 32 bits, sums modulo 2^32), without its messages.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes
from numpy.typing import NDArray

from federation import wire
from protocols.fixed_point import FixedPoint
from protocols.secagg import Coordinator, Identity, Party
from protocols.secagg_books import MemoryRoundBook, Round, least_threshold
from protocols.secagg_graph import COMPLETE_MAX
from protocols.streams import Randomness, digest

T = TypeVar("T")

PARTIES, PARAMETERS, VANISH = 10, 1_000_000, 2
TARGET_S = 2.0  # CPU of everybody, at these sizes
GROWTH = (5, 10, 20, 60)
GROWTH_PARAMETERS = 10_000
MANIFEST = digest("benchmark")


class Clock:
    """CPU seconds and bytes sent, by step."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.sent: dict[str, int] = {}

    def __call__(self, step: str, work: Callable[..., T], /, *given: Any, **named: Any) -> T:
        start = time.process_time()
        result = work(*given, **named)
        self.cpu[step] = self.cpu.get(step, 0.0) + time.process_time() - start
        return result

    def send(self, step: str, make: Callable[..., T], *given: Any) -> T:
        """A message made, framed, and read at the other end."""
        message = self(step, make, *given)
        frame = self(step, wire.encode, message)
        self.sent[step] = self.sent.get(step, 0) + len(frame)
        return self(step, wire.decode, frame, type(message))


class Keys:
    """Certified keys of a benchmark's organisations."""

    def __init__(self, members: Iterable[str]) -> None:
        self._secrets = {m: X25519PrivateKey.generate() for m in members}
        self._signers = {m: Ed25519PrivateKey.generate() for m in self._secrets}
        self._verifiers = {m: key.public_key() for m, key in self._signers.items()}
        self.certified = {m: k.public_key().public_bytes_raw() for m, k in self._secrets.items()}

    def verify(self, org: str, message: bytes, signature: bytes) -> bool:
        try:
            self._verifiers[org].verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def identity(self, org: str) -> Identity:
        def agree(peer: bytes) -> bytes:
            return self._secrets[org].exchange(X25519PublicKey.from_public_bytes(peer))

        return Identity(org, agree, self._signers[org].sign, self.verify)


def session(parties: int, parameters: int, vanish: int, bits: int = 64) -> Clock:
    """One round; the last `vanish` parties go after they shared, before they send."""
    fixed = FixedPoint(clip=1.0, resolution=2.0**-20)
    members = tuple(f"bank{i:02}" for i in range(parties))
    round_ = Round(
        MANIFEST,
        1,
        1,
        "benchmark",
        digest("statistic"),
        members,
        parameters,
        fixed.bound,
        least_threshold(parties),
        bits=bits,
    )
    keys, rng, clock = Keys(members), np.random.default_rng(1), Clock()
    updates = {m: rng.normal(0, 0.3, parameters) for m in members}
    draws = {m: Randomness(digest(m), MANIFEST, 1) for m in members}
    vectors = {
        m: clock("quantise", fixed.encode, updates[m], draws[m], stage="b", step=1) for m in members
    }
    party = {
        m: clock(
            "announce",
            Party,
            round_,
            keys.identity(m),
            keys.certified,
            draws[m],
            MemoryRoundBook(),
        )
        for m in members
    }
    c = Coordinator(round_, keys.certified, keys.verify)
    for m in members:
        clock("C collect", c.announced, clock.send("announce", party[m].announce))
    roll = clock("C collect", c.roll)
    if parties > COMPLETE_MAX:
        for m in members:
            clock("C collect", c.revealed, clock.send("reveal", party[m].reveal, roll))
    coins = clock("C collect", c.coins)
    for m in members:
        clock("C collect", c.shared, clock.send("share", party[m].share, roll, coins))
    alive = members[: parties - vanish]
    for m in alive:
        delivery = clock.send("C collect", c.delivery, m)
        clock("C collect", c.masked, clock.send("mask", party[m].mask, delivery, vectors[m]))
    survivors = c.survivors()
    for m in alive:
        clock("C collect", c.confirmed, clock.send("confirm", party[m].confirm, survivors))
    confirmations = c.confirmations()
    for m in alive:
        clock("C collect", c.unmasked, clock.send("unmask", party[m].unmask, confirmations))
    total = clock("C total", c.total)
    if not np.array_equal(total, sum(vectors[m] for m in alive)):
        raise SystemExit("the sum differs")
    return clock


def flower(parties: int, parameters: int, vanish: int) -> float:
    """CPU seconds of the same round in Flower's functions, as its mod and workflow call them."""
    rng, modulus, shape = np.random.default_rng(1), 1 << 32, [(parameters,)]
    threshold, alive = least_threshold(parties), range(parties - vanish)
    updates = [[rng.normal(0, 0.3, parameters)] for _ in alive]
    pairs = [generate_key_pairs() for _ in range(parties)]
    seeds = [rng.bytes(32) for _ in range(parties)]
    start = time.process_time()
    vectors = [quantize(update, 1.0, 1 << 22) for update in updates]
    shares = [
        (
            create_shares(seeds[i], threshold, parties),
            create_shares(private_key_to_bytes(pairs[i][0]), threshold, parties),
        )
        for i in range(parties)
    ]

    def with_pair(vector: list[NDArray[Any]], i: int, j: int, plus: bool) -> list[NDArray[Any]]:
        key = generate_shared_key(pairs[i][0], pairs[j][1])
        add = parameters_addition if plus else parameters_subtraction
        return add(vector, pseudo_rand_gen(key, modulus, shape))

    total = [np.zeros(parameters, np.int64)]
    for i in alive:
        masked = parameters_addition(vectors[i], pseudo_rand_gen(seeds[i], modulus, shape))
        for j in range(parties):
            if j != i:
                masked = with_pair(masked, i, j, i > j)
        total = parameters_addition(total, parameters_mod(masked, modulus))
    for i in range(parties):
        secret = combine_shares(shares[i][i not in alive][:threshold])
        if i in alive:
            total = parameters_subtraction(total, pseudo_rand_gen(secret, modulus, shape))
        else:
            for j in alive:
                total = with_pair(total, i, j, i > j)
    seconds = time.process_time() - start
    if not np.array_equal(parameters_mod(total, modulus)[0], sum(v[0] for v in vectors)):
        raise SystemExit("Flower's sum differs")
    return seconds


def median(parties: int, parameters: int, vanish: int, bits: int = 64, repeats: int = 3) -> Clock:
    """The session of median CPU."""
    clocks = [session(parties, parameters, vanish, bits) for _ in range(repeats)]
    return sorted(clocks, key=lambda clock: sum(clock.cpu.values()))[repeats // 2]


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table: {name, value, unit, reference, ratio, rows, note}."""
    clock = median(PARTIES, PARAMETERS, VANISH)
    return [as_row(clock, flower(PARTIES, PARAMETERS, VANISH), PARTIES, PARAMETERS, VANISH)]


def as_row(
    clock: Clock, reference: float, parties: int, parameters: int, vanish: int
) -> dict[str, Any]:
    value = sum(clock.cpu.values())
    return {
        "name": "secagg",
        "value": round(value, 3),
        "unit": "s CPU, everybody",
        "reference": round(reference, 3),
        "ratio": round(value / reference, 3),
        "rows": parameters,
        "note": f"{parties} parties, {vanish} vanish; reference: Flower's SecAgg+ functions with "
        f"32-bit seeds; target {TARGET_S:g} s",
    }


def main(parties: int, parameters: int) -> None:
    vanish = min(VANISH, parties - least_threshold(parties))
    clock = median(parties, parameters, vanish)
    half = median(parties, parameters, vanish, bits=32)
    print(f"{parties} parties x {parameters:,} parameters, {vanish} vanish, CPU of one thread")
    for step, seconds in clock.cpu.items():
        sent = clock.sent.get(step, 0) / 1e6
        print(f"  {step:12} {seconds:8.3f} s {sent:10.2f} MB")
    total, reference = sum(clock.cpu.values()), flower(parties, parameters, vanish)
    target = TARGET_S if (parties, parameters) == (PARTIES, PARAMETERS) else None
    print(f"  {'all':12} {total:8.3f} s" + (f"   (target {target:g})" if target else ""))
    print(f"  {'at 32 bits':12} {sum(half.cpu.values()):8.3f} s")
    print(f"  {'Flower':12} {reference:8.3f} s   ({reference / total:.1f} x)")
    print(f"\n{GROWTH_PARAMETERS:,} parameters, {VANISH} vanish (0 of 5): milliseconds")
    print(f"  {'parties':>8} {'a party':>9} {'C':>9} {'all':>9} {'kB a party':>11}")
    for n in GROWTH:
        grown = median(n, GROWTH_PARAMETERS, VANISH if n > 5 else 0)
        own = sum(s for step, s in grown.cpu.items() if not step.startswith("C "))
        everybody = sum(grown.cpu.values())
        sent = sum(size for step, size in grown.sent.items() if not step.startswith("C "))
        print(
            f"  {n:8} {own / n * 1e3:9.1f} {(everybody - own) * 1e3:9.1f} {everybody * 1e3:9.1f}"
            f" {sent / n / 1e3:11.1f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parties", type=int, default=PARTIES)
    parser.add_argument("--parameters", type=int, default=PARAMETERS)
    main(**vars(parser.parse_args()))
