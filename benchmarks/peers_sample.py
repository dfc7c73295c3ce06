"""One histogram of encrypted values by peers' ciphers; runs in an environment of its own.

    python peers_sample.py ROWS FEATURES BINS        (called by benchmarks/peers.py)

Prints a list of {cipher, library, encrypt_us, add_us, decrypt_us}: microseconds of CPU for one
value, for one row and feature, for one bin. It must not import this project.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

BITS = 2048


def cpu(work: Callable[[], object], each: int) -> tuple[object, float]:
    """The result, and microseconds of CPU for one of `each`."""
    began = time.process_time()
    result = work()
    return result, (time.process_time() - began) / each * 1e6


def by_heu(cipher: str, v: np.ndarray, bins: np.ndarray, count: int) -> dict[str, object]:
    """SecretFlow's library; its histogram is what SecureBoost calls for every node."""
    from heu import numpy as hnp
    from heu import phe

    kit = hnp.setup(getattr(phe.SchemaType, cipher), BITS)
    encoder = phe.IntegerEncoder(kit.get_schema(), 1)
    plain = kit.array(v.reshape(-1, 1), encoder)
    encrypted, encrypt_us = cpu(lambda: kit.encryptor().encrypt(plain), len(v))
    evaluator, everybody = kit.evaluator(), np.ones(len(v), np.int8)
    order = np.ascontiguousarray(bins.T, np.int8)
    sums, add_us = cpu(
        lambda: evaluator.feature_wise_bucket_sum(encrypted, everybody, order, count, False),
        bins.size,
    )
    opened, decrypt_us = cpu(lambda: kit.decryptor().decrypt(sums), count * len(bins))
    found = np.asarray(opened.to_numpy(encoder)).reshape(len(bins), count)
    check(found, v, bins, count)
    return row(cipher, "sf-heu", encrypt_us, add_us, decrypt_us)


def by_phe(v: np.ndarray, bins: np.ndarray, count: int) -> dict[str, object]:
    """python-paillier with gmpy2, the usual choice of small projects."""
    from phe import paillier

    public, private = paillier.generate_paillier_keypair(n_length=BITS)
    encrypted, encrypt_us = cpu(lambda: [public.encrypt(int(x)) for x in v], len(v))

    def add() -> list[list[object]]:
        sums = []
        for feature in bins:
            cells = [public.encrypt(0, r_value=1) for _ in range(count)]
            for i, b in enumerate(feature):
                cells[b] = cells[b] + encrypted[i]
            sums.append(cells)
        return sums

    sums, add_us = cpu(add, bins.size)
    opened, decrypt_us = cpu(
        lambda: [[private.decrypt(cell) for cell in cells] for cells in sums], count * len(bins)
    )
    check(np.array(opened), v, bins, count)
    return row("Paillier", "phe", encrypt_us, add_us, decrypt_us)


def check(found: np.ndarray, v: np.ndarray, bins: np.ndarray, count: int) -> None:
    expected = [np.bincount(feature, weights=v, minlength=count) for feature in bins]
    if not np.array_equal(found, np.array(expected).astype(np.int64)):
        raise SystemExit("the histogram is not the plaintext histogram")


def row(cipher: str, library: str, *us: float) -> dict[str, object]:
    names = ("encrypt_us", "add_us", "decrypt_us")
    about = {"cipher": cipher, "library": f"{library} {version(library)}"}
    return {**about, **dict(zip(names, us, strict=True))}


def main(rows: int, features: int, count: int) -> None:
    rng = np.random.default_rng(1)
    bins = rng.integers(0, count, (features, rows))
    v = rng.integers(-511, 512, rows)
    found = []
    for measure in (
        lambda: by_heu("OU", v, bins, count),
        lambda: by_heu("ZPaillier", v[: rows // 4], bins[:, : rows // 4], count),
        lambda: by_phe(v[: rows // 8], bins[:, : rows // 8], count),
    ):
        try:
            found.append(measure())
        except ImportError as error:
            print(error, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
