"""Peers' ciphers beside ours: the same histogram, on the same machine.

    python -m benchmarks.peers

Okamoto-Uchiyama and Paillier with 2048 bits from SecretFlow's library, whose histogram function is
what a node of SecureBoost costs, and python-paillier. They are installed into out/peers, away from
this project; without a network the rows are left out and the reason is printed. A sample is
measured and scaled to 100,000 customers x 20 features x 32 bins: each customer's value encrypted,
one addition a row and feature, 640 sums decrypted. Ours: the online query and its token, both
sides.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from benchmarks.linear_query import measure, sum_of

ENVIRONMENT = Path("out/peers")
PACKAGES = ("sf-heu==0.5.2b0", "phe==1.5.0", "gmpy2>=2.2,<3", "numpy>=2,<3")
ROWS, FEATURES, BINS = 100_000, 20, 32
SAMPLE_ROWS, SAMPLE_FEATURES = 1_000, 4
NAMES = {"OU": "peer_okamoto_uchiyama", "ZPaillier": "peer_paillier", "Paillier": "peer_phe"}


def sample() -> list[dict[str, Any]]:
    """What benchmarks/peers_sample.py measured in its own environment."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (ENVIRONMENT / "ready").touch()
    script = Path(__file__).with_name("peers_sample.py")
    sizes = map(str, (SAMPLE_ROWS, SAMPLE_FEATURES, BINS))
    done = subprocess.run(
        [python, script, *sizes], capture_output=True, text=True, check=True, env={}
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rows() -> list[dict[str, Any]]:
    """For the benchmark's table; none where the libraries cannot be had."""
    try:
        peers = sample()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"peers left out: {error}", file=sys.stderr)
        return []
    clock = measure(ROWS, FEATURES, BINS, 256).clock.cpu
    token = sum_of(clock, "request", "grant", "accept") / 256
    ours = sum_of(clock, "query", "answer", "open") + token
    found = []
    for peer in peers:
        parts = (
            peer["encrypt_us"] * ROWS / 1e6,
            peer["add_us"] * ROWS * FEATURES / 1e6,
            peer["decrypt_us"] * FEATURES * BINS / 1e6,
        )
        found.append(
            {
                "name": NAMES[peer["cipher"]],
                "value": round(sum(parts), 2),
                "unit": "s CPU a histogram",
                "reference": round(ours, 4),
                "ratio": round(sum(parts) / ours),
                "rows": ROWS,
                "note": f"{peer['library']}, 2048 bits: encrypt {parts[0]:.1f} s, add "
                f"{parts[1]:.1f} s, decrypt {parts[2]:.1f} s; reference: ours, online and token, "
                f"both sides",
            }
        )
    return found


if __name__ == "__main__":
    for item in rows():
        print(f"{item['name']:22} {item['value']:9.2f} s, {item['ratio']} x ours; {item['note']}")
