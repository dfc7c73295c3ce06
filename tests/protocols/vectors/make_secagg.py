"""Writes secagg.json: a round of four parties in which one vanishes, step by step.

A second implementation on purpose: X25519 by RFC 7748's ladder, HKDF by hmac, AES-CTR block by
block, ChaCha20-Poly1305 by RFC 8439's pseudo-code, Shamir by powers; it shares
nothing with `protocols/` but the labels, and has no arrays. Run it after a deliberate change of a
format and read the difference.

    python tests/protocols/vectors/make_secagg.py
"""

import hashlib
import hmac
import json
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols import labels

HERE = Path(__file__).parent
P25519 = 2**255 - 19
P_SHARES = 2**256 + 297


def encode(*parts: bytes | str | int) -> bytes:
    out = b""
    for part in parts:
        if isinstance(part, int):
            part = part.to_bytes(8, "big", signed=True)
        elif isinstance(part, str):
            part = part.encode()
        out += len(part).to_bytes(8, "big") + part
    return out


def sha(*parts: bytes | str | int) -> bytes:
    return hashlib.sha256(encode(*parts)).digest()


def hkdf(secret: bytes, *info: bytes | str | int) -> bytes:
    prk = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(prk, encode(*info) + b"\x01", "sha256")


def x25519(scalar: bytes, point: bytes) -> bytes:
    k = bytearray(scalar)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    n, u = int.from_bytes(k, "little"), int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, u, 1
    for t in reversed(range(255)):
        bit = n >> t & 1
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P25519, u * (da - cb) ** 2 % P25519
        x2, z2 = aa * bb % P25519, e * (aa + 121665 * e) % P25519
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, P25519 - 2, P25519) % P25519).to_bytes(32, "little")


BASE = (9).to_bytes(32, "little")


def keystream(key: bytes, count: int) -> bytes:
    """AES-256 of the counters 0, 1, 2 ..."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 -- a block at a time
    blocks = (aes.update(i.to_bytes(16, "big")) for i in range(-(-count // 16)))
    return b"".join(blocks)[:count]


def chacha_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    start += [*struct.unpack("<8L", key), counter, *struct.unpack("<3L", nonce)]
    s = list(start)

    def turn(x: int, n: int) -> int:
        return (x << n | x >> 32 - n) & 0xFFFFFFFF

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = turn(s[z] ^ s[x], n)

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16L", *((a + b) & 0xFFFFFFFF for a, b in zip(s, start, strict=True)))


def seal(key: bytes, plain: bytes, associated: bytes) -> bytes:
    nonce = bytes(12)
    pads = b"".join(chacha_block(key, 1 + i, nonce) for i in range(-(-len(plain) // 64)))
    sealed = bytes(a ^ b for a, b in zip(plain, pads, strict=False))
    one_time = chacha_block(key, 0, nonce)[:32]
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    s, total = int.from_bytes(one_time[16:], "little"), 0
    text = associated + bytes(-len(associated) % 16) + sealed + bytes(-len(sealed) % 16)
    text += struct.pack("<QQ", len(associated), len(sealed))
    for at in range(0, len(text), 16):
        total = (total + int.from_bytes(text[at : at + 16] + b"\x01", "little")) * r
        total %= 2**130 - 5
    return sealed + ((total + s) % 2**128).to_bytes(16, "little")


def main() -> None:
    manifest, statistic = sha("manifest"), sha("statistic")
    attempt, number, label, length, bound, t, bits = 1, 7, "gradient", 6, 2**30, 3, 61
    names = ["bank_a", "bank_b", "bank_c", "bank_d"]
    vectors = {
        name: [(-1) ** (i + j) * (bound - 1000 * i - j) for j in range(length)]
        for i, name in enumerate(names)
    }
    master = {name: sha("master", name) for name in names}
    secret = {name: sha("certified", name) for name in names}
    certified = {name: x25519(secret[name], BASE) for name in names}
    terms = encode(
        manifest, attempt, number, label, statistic, encode(*names), length, str(bound), t, bits,
        3, 1,
    )  # fmt: skip
    context = sha(labels.SECAGG_CONTEXT, terms, *(encode(n, certified[n]) for n in names))

    def draw(name: str, what: bytes, inputs: bytes = b"") -> bytes:
        rest = (manifest, attempt, "*", label, number, 0, sha(context, inputs))
        return hkdf(master[name], what, *rest)

    keys = {name: keystream(draw(name, labels.SECAGG_KEYS), 64) for name in names}
    seal_secret = {name: keys[name][:32] for name in names}
    mask_secret = {name: keys[name][32:] for name in names}
    seed = {name: draw(name, labels.SECAGG_SELF_SEED) for name in names}
    signed, announcements = [], {}
    for name in names:
        coin = draw(name, labels.SECAGG_COIN)
        said = {
            "seal_key": x25519(seal_secret[name], BASE),
            "mask_key": x25519(mask_secret[name], BASE),
            "self_commitment": sha(labels.SECAGG_SELF_COMMITMENT, context, name, seed[name]),
            "coin_commitment": sha(labels.SECAGG_COIN_COMMITMENT, context, name, coin),
        }
        announcements[name] = said
        signed.append(encode(labels.SECAGG_ANNOUNCEMENT, context, name, *said.values()))
    session = sha(labels.SECAGG_SESSION, context, sha(*signed))

    round_ids = (manifest, attempt, number, label)
    shares, sealed = {}, {}
    for name in names:
        stream = keystream(draw(name, labels.SECAGG_SHARING, session), 2 * (t - 1) * 49)
        for which, value in enumerate((seed[name], mask_secret[name])):
            c = [int.from_bytes(stream[49 * i : 49 * i + 49], "big") % P_SHARES for i in range(4)]
            high, low = c[2 * which : 2 * which + 2]
            for x, holder in enumerate(names, 1):
                y = (high * x**2 + low * x + int.from_bytes(value, "big")) % P_SHARES
                shares[name, holder, which] = y.to_bytes(33, "big")
        for x, peer in enumerate(names, 1):
            if peer == name:
                continue
            fresh = x25519(seal_secret[name], announcements[peer]["seal_key"])
            pair = x25519(secret[name], certified[peer])
            info = (labels.SECAGG_SHARE_KEY, *round_ids, session, name, peer)
            associated = encode(name, peer, attempt, number, label, session, x)
            plain = shares[name, peer, 0] + shares[name, peer, 1]
            sealed[f"{name} {peer}"] = seal(hkdf(fresh + pair, *info), plain, associated).hex()

    sharers = sha(labels.SECAGG_SHARERS, session, *names)
    masked = {}
    for name in names:
        words = [x % 2**64 for x in vectors[name]]

        def add(key: bytes, sign: int, words: list[int] = words) -> None:
            for j, mask in enumerate(struct.unpack(f"<{length}Q", keystream(key, 8 * length))):
                words[j] += sign * mask

        add(hkdf(seed[name], labels.SECAGG_SELF_MASK, *round_ids, session, name), 1)
        for peer in names:
            if peer != name:
                shared = x25519(mask_secret[name], announcements[peer]["mask_key"])
                ids = sorted((name, peer))
                key = hkdf(shared, labels.SECAGG_PAIR_MASK, *round_ids, session, *ids)
                add(key, 1 if name < peer else -1)
        masked[name] = [str(word % 2**bits) for word in words]

    survivors = [name for name in names if name != "bank_b"]
    statement = encode(labels.SECAGG_SURVIVORS, context, sharers, *survivors)
    opened = {
        f"{name} {dealer}": shares[dealer, name, 0 if dealer in survivors else 1].hex()
        for name in survivors
        for dealer in names
    }
    out = {
        "terms": {
            "manifest": manifest.hex(), "attempt": attempt, "number": number, "label": label,
            "statistic": statistic.hex(), "members": names, "length": length, "bound": bound,
            "threshold": t, "bits": bits,
        },
        "master": {name: value.hex() for name, value in master.items()},
        "certified_secret": {name: value.hex() for name, value in secret.items()},
        "vectors": vectors,
        "context": context.hex(),
        "announcements": {n: {k: v.hex() for k, v in a.items()} for n, a in announcements.items()},
        "session": session.hex(),
        "sealed": sealed,
        "sharers": sharers.hex(),
        "masked": masked,
        "vanished": "bank_b",
        "statement": statement.hex(),
        "opened": opened,
        "total": [sum(vectors[name][j] for name in survivors) for j in range(length)],
    }  # fmt: skip
    HERE.joinpath("secagg.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
