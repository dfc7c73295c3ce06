"""Secure aggregation against a second implementation (vectors/make_secagg.py)."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols.secagg import Coordinator, Identity, Party
from protocols.secagg_books import MemoryRoundBook, Round
from protocols.streams import Randomness

VECTORS = Path(__file__).parent / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "secagg.json").read_text())
TERMS: dict[str, Any] = EXPECTED["terms"]
ROUND = Round(
    **TERMS
    | {name: bytes.fromhex(TERMS[name]) for name in ("manifest", "statistic")}
    | {"members": tuple(TERMS["members"])}
)


def sign(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()  # shows what was signed


def verify(_: str, message: bytes, signature: bytes) -> bool:
    return signature == sign(message)


def party_of(name: str, certified: dict[str, bytes]) -> Party:
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(EXPECTED["certified_secret"][name]))

    def agree(peer: bytes) -> bytes:
        return secret.exchange(X25519PublicKey.from_public_bytes(peer))

    randomness = Randomness(bytes.fromhex(EXPECTED["master"][name]), ROUND.manifest, ROUND.attempt)
    identity = Identity(name, agree, sign, verify)
    return Party(ROUND, identity, certified, randomness, MemoryRoundBook())


def test_every_message_is_that_of_the_second_implementation() -> None:
    certified = {
        name: X25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
        .public_key()
        .public_bytes_raw()
        for name, secret in EXPECTED["certified_secret"].items()
    }
    parties = {name: party_of(name, certified) for name in ROUND.members}
    c = Coordinator(ROUND, certified, verify)
    for name, party in parties.items():
        said = party.announce()
        assert said.context.hex() == EXPECTED["context"]
        expected = EXPECTED["announcements"][name]
        assert {key: getattr(said, key).hex() for key in expected} == expected
        c.announced(said)
    sealed = {}
    roll = c.roll()
    for party in parties.values():
        shares = party.share(roll, c.coins())
        assert shares.session.hex() == EXPECTED["session"]
        sealed |= {f"{s.sender} {s.receiver}": s.payload.hex() for s in shares.shares}
        c.shared(shares)
    assert sealed == EXPECTED["sealed"]
    for name, party in parties.items():
        masked = party.mask(c.delivery(name), np.array(EXPECTED["vectors"][name]))
        assert masked.sharers.hex() == EXPECTED["sharers"]
        assert np.frombuffer(masked.words, "<u8").tolist() == list(
            map(int, EXPECTED["masked"][name])
        )
        if name != EXPECTED["vanished"]:
            c.masked(masked)
    for name in c.survivors().parties:
        confirmation = parties[name].confirm(c.survivors())
        assert confirmation.signature == sign(bytes.fromhex(EXPECTED["statement"]))
        c.confirmed(confirmation)
    opened = {}
    for name in c.survivors().parties:
        unmasking = parties[name].unmask(c.confirmations())
        opened |= {f"{name} {share.dealer}": share.value.hex() for share in unmasking.shares}
        c.unmasked(unmasking)
    assert opened == EXPECTED["opened"]
    assert c.total().tolist() == EXPECTED["total"]


def test_the_script_still_writes_the_stored_vectors(tmp_path: Path) -> None:
    script = tmp_path / "make_secagg.py"
    script.write_bytes((VECTORS / "make_secagg.py").read_bytes())
    subprocess.run([sys.executable, script], check=True)
    assert json.loads((tmp_path / "secagg.json").read_text()) == EXPECTED
