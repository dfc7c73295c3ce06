"""Writes set_oprf.json: one session of the set OPRF, number by number, as the page says it.

A second implementation on purpose: Python integers, hashlib and AES, no arrays, no shared code but
the labels. ristretto255 is written out from RFC 9496, the store is solved by plain elimination, and
field elements are multiplied by logarithms. Run it after a deliberate change of a format and read
the difference.

    python tests/protocols/vectors/make_set_oprf.py
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols import labels

HERE = Path(__file__).parent
M64 = 2**64 - 1

# --- ristretto255, RFC 9496

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)


def negative(x: int) -> bool:
    return x % P % 2 == 1


def absolute(x: int) -> int:
    return -x % P if negative(x) else x % P


def sqrt_ratio(u: int, v: int) -> tuple[bool, int]:
    """Section 4.2."""
    r = u * v**3 * pow(u * v**7, (P - 5) // 8, P) % P
    check = v * r * r % P
    if check in (-u % P, -u * SQRT_M1 % P):
        r = r * SQRT_M1 % P
    return check in (u % P, -u % P), absolute(r)


SQRT_AD_MINUS_ONE = next(
    r for r in (sqrt_ratio(-D - 1, 1)[1], -sqrt_ratio(-D - 1, 1)[1] % P) if negative(r)
)  # section 4.1 fixes the odd root, 2506306895...
INVSQRT_A_MINUS_D = sqrt_ratio(1, -1 - D)[1]
Point = tuple[int, int, int, int]
ZERO: Point = (0, 1, 1, 0)


def add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]), (p[1] + p[0]) * (q[1] + q[0])
    c, d = 2 * p[3] * q[3] * D, 2 * p[2] * q[2]
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def negate(p: Point) -> Point:
    return -p[0] % P, p[1], p[2], -p[3] % P


def times(k: int, p: Point) -> Point:
    out = ZERO
    for bit in bin(k)[2:]:
        out = add(out, out)
        if bit == "1":
            out = add(out, p)
    return out


def encode_point(p: Point) -> bytes:
    """Section 4.3.2."""
    x, y, z, t = p
    u1, u2 = (z + y) * (z - y) % P, x * y % P
    _, inverse = sqrt_ratio(1, u1 * u2 * u2 % P)
    d1, d2 = inverse * u1 % P, inverse * u2 % P
    z_inverse = d1 * d2 * t % P
    inverse_of = d2
    if negative(t * z_inverse):
        x, y, inverse_of = y * SQRT_M1 % P, x * SQRT_M1 % P, d1 * INVSQRT_A_MINUS_D % P
    if negative(x * z_inverse):
        y = -y % P
    return absolute(inverse_of * (z - y)).to_bytes(32, "little")


def from_half(half: bytes) -> Point:
    """Section 4.3.4, MAP."""
    t = int.from_bytes(half, "little") % 2**255 % P
    r = SQRT_M1 * t * t % P
    u, v = (r + 1) * (1 - D * D) % P, (-1 - r * D) * (r + D) % P
    square, s = sqrt_ratio(u, v)
    c = P - 1
    if not square:
        s, c = -absolute(s * t) % P, r
    n = (c * (r - 1) * (D - 1) ** 2 - v) % P
    w0, w1, w2, w3 = 2 * s * v, n * SQRT_AD_MINUS_ONE, 1 - s * s, 1 + s * s
    return w0 * w3 % P, w2 * w1 % P, w1 * w3 % P, w0 * w2 % P


def from_wide(wide: bytes) -> Point:
    return add(from_half(wide[:32]), from_half(wide[32:]))


BASE_Y = 4 * pow(5, -1, P) % P
BASE_X = absolute(sqrt_ratio(BASE_Y**2 - 1, D * BASE_Y**2 + 1)[1])
BASE: Point = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


# --- bytes


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


def prf(secret: bytes, *parts: bytes | str | int) -> bytes:
    return hmac.digest(secret, encode(*parts), "sha256")


def xor(*parts: bytes) -> bytes:
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "big")
    return total.to_bytes(len(parts[0]), "big")


class Stream:
    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        return self._cipher.update(bytes(count))

    def scalar(self) -> int:
        return int.from_bytes(self.take(64), "little") % ORDER


# --- GF(16) and the code

POWERS = [1]
for _ in range(14):
    POWERS.append(POWERS[-1] << 1 ^ (0b10011 if POWERS[-1] & 8 else 0))


LOGARITHMS = {x: k for k, x in enumerate(POWERS)}


def product(a: int, b: int) -> int:
    return POWERS[(LOGARITHMS[a] + LOGARITHMS[b]) % 15] if a and b else 0


def power(a: int, k: int) -> int:
    return 1 if k == 0 else product(a, power(a, k - 1))


POINTS = [(x, y) for x in range(16) for y in range(16) if power(y, 4) ^ y == power(x, 5)][:53]
GENERATOR = [
    [product(power(x, i), power(y, j)) for x, y in POINTS]
    for j in range(4)
    for i in range(6)
    if 4 * i + 5 * j <= 21
]


def codeword(message: int) -> list[int]:
    out = [0] * 53
    for k, line in enumerate(GENERATOR):
        for j in range(53):
            out[j] ^= product(message >> 4 * k & 15, line[j])
    return out


def joined(symbols: list[int]) -> int:
    return sum(symbol << 4 * j for j, symbol in enumerate(symbols))


# --- the protocol

BAND = 256


def splitmix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def place(session: bytes, padded_code: bytes, m: int) -> tuple[int, list[int]]:
    """The value of a code and the rows that it selects."""
    block = labels.SET_OPRF_PLACE.ljust(32, b"\0") + session
    h = hashlib.sha256(block + padded_code).digest()
    value, where, a, b = (int.from_bytes(h[i : i + 8], "big") for i in range(0, 32, 8))
    band = a | b << 64 | splitmix(a ^ 0x9E3779B97F4A7C15) << 128 | splitmix(a + b & M64) << 192
    start = (where >> 24) * (m - BAND + 1) >> 40
    return value, [start + i for i in range(BAND) if band >> i & 1]


def row_key(session: bytes, code: str, row: int) -> bytes:
    words = b"".join((row >> 32 * i & 0xFFFFFFFF).to_bytes(4, "big") for i in range(8))
    block = labels.SET_OPRF_ROW.ljust(32, b"\0") + session
    return hashlib.sha256(block + words + code.encode().ljust(20, b"\0")).digest()[:16]


def planes_of(symbols: list[list[int]]) -> bytes:
    """symbols[row][column] as bit planes, 64 rows a little-endian word."""
    out = b""
    for plane in range(212):
        column, bit = divmod(plane, 4)
        bits = sum((row[column] >> bit & 1) << i for i, row in enumerate(symbols))
        out += bits.to_bytes(len(symbols) // 8, "little")
    return out


def session_of(
    registry: list[str],
    customers: list[str],
    *,
    capacity: int,
    m: int,
    attempt: int,
    secret_d: bytes,
    secret_b: bytes,
) -> dict[str, object]:
    size = -(-(m + 128) // 512) * 512
    snapshot = sha("snapshot")
    context = sha(labels.SET_OPRF_CONTEXT, 1, "bank_a", "tax", snapshot, m, attempt)

    # department: hello
    stream = Stream(prf(secret_d, labels.SET_OPRF_DELTA, context))
    delta = [x & 15 for x in stream.take(53)]
    nonce_d = stream.take(32)
    identity = sha(labels.SET_OPRF_IDENTITY, context, nonce_d)

    def hashed(i: int, branch: int, other: bytes) -> Point:
        wide = encode(labels.BASE_OT_POINT, identity, i, branch, other)
        return from_wide(hashlib.sha512(wide).digest())

    points: list[list[Point]] = []
    for i in range(212):
        choice = 1 - (delta[i // 4] >> (3 - i % 4) & 1)
        other = from_wide(stream.take(64))
        mine = add(times(stream.scalar(), BASE), negate(hashed(i, choice, encode_point(other))))
        points.append([mine, other] if choice == 0 else [other, mine])
    encoded = [[encode_point(p) for p in pair] for pair in points]
    all_points = b"".join(a + b for a, b in encoded)
    hello = sha(labels.SET_OPRF_HELLO, context, nonce_d, all_points)

    # bank: store
    own = sorted(customers)
    raw = b"".join(
        int.from_bytes(code.encode().ljust(20, b"\0")[i : i + 4], "big").to_bytes(4, "little")
        for code in own
        for i in range(0, 20, 4)
    )
    of_list = sha(labels.SET_OPRF_LIST, raw)
    nonce_b = prf(secret_b, labels.SET_OPRF_NONCE, context, hello, of_list, 0)
    session = sha(labels.SET_OPRF_SESSION, hello, nonce_b)
    stream = Stream(prf(secret_b, labels.SET_OPRF_STORE, context, session, of_list))
    padded = [code.encode().ljust(20, b"\0") for code in own]
    for _ in range(capacity - len(own)):
        words = [int.from_bytes(stream.take(4), "little") for _ in range(5)]
        words[0] |= 0xFF000000
        padded.append(b"".join(word.to_bytes(4, "big") for word in words))
    equations: dict[int, tuple[int, int]] = {}  # lowest row: the others, the value
    for code in padded:
        value, selected = place(session, code, m)
        line = sum(1 << s for s in selected)
        while line:
            lowest = (line & -line).bit_length() - 1
            if lowest not in equations:
                equations[lowest] = line, value
                break
            line, value = line ^ equations[lowest][0], value ^ equations[lowest][1]
    store = [int.from_bytes(stream.take(8), "little") for _ in range(size)]
    for lowest in sorted(equations, reverse=True):
        line, value = equations[lowest]
        for s in range(lowest + 1, m):
            value ^= store[s] * (line >> s & 1)
        store[lowest] = value

    # bank: base transfers and trees
    store_bytes = b"".join(word.to_bytes(8, "little") for word in store)
    of_store = sha(store_bytes)
    stream = Stream(prf(secret_b, labels.SET_OPRF_ROOTS, context, session, of_store))
    y = stream.scalar()
    point = encode_point(times(y, BASE))
    roots = [stream.take(16) for _ in range(53)]
    sums, leaf_sums, commitments, seeds = b"", b"", [], []
    for column, root in enumerate(roots):
        nodes = [root]
        for level in range(4):
            nodes = [
                sha(labels.SEED_TREE_NODE, session, column, level, side, node)[:16]
                for node in nodes
                for side in (0, 1)
            ]
            i = 4 * column + level
            for b in (0, 1):
                shared = times(y, add(points[i][b], hashed(i, b, encoded[i][1 - b])))
                key = sha(
                    labels.BASE_OT_KEY, session, i, b, b"".join(encoded[i]), point,
                    encode_point(shared),
                )  # fmt: skip
                sums += xor(key[:16], *nodes[b::2])
        wide = [
            hashlib.sha512(encode(labels.SEED_TREE_LEAF, session, column, node)).digest()
            for node in nodes
        ]
        seeds.append([leaf[:16] for leaf in wide])
        leaf_sums += xor(*(leaf[16:48] for leaf in wide))
        commitments += [leaf[16:48] for leaf in wide]
    leaves = sha(labels.SEED_TREE_LEAVES, *commitments)

    # bank: VOLE; the streams of a column hold its four planes one after the other
    codewords = [codeword(word) for word in store]
    u = [[0] * 53 for _ in range(size)]
    v = [[0] * 53 for _ in range(size)]
    for column in range(53):
        for x in range(16):
            aes = Cipher(algorithms.AES(seeds[column][x]), modes.CTR(bytes(16))).encryptor()
            planes = [int.from_bytes(aes.update(bytes(size // 8)), "little") for _ in range(4)]
            for row in range(size):
                symbol = sum((plane >> row & 1) << bit for bit, plane in enumerate(planes))
                u[row][column] ^= symbol
                v[row][column] ^= product(x, symbol)
    masked = [
        [a ^ b for a, b in zip(*pair, strict=True)] for pair in zip(u, codewords, strict=True)
    ]
    correction = planes_of(masked)
    seed = sha(labels.SET_OPRF_CHECK, session, point, sums, leaf_sums, leaves, correction)
    stream = Stream(seed)
    weights = [stream.take(16) for _ in range(m)]
    rows = [joined(line) for line in v]
    check_messages, check_rows = [], []
    for k in range(128):
        message, row = store[m + k], rows[m + k]
        for i, weight in enumerate(weights):
            if weight[k // 8] >> k % 8 & 1:
                message, row = message ^ store[i], row ^ rows[i]
        check_messages.append(message)
        check_rows.append(row)

    # keys: the bank's from V for its customers, the department's from Q for everybody
    bank_keys, department_keys = {}, {}
    for code in registry:
        value, selected = place(session, code.encode().ljust(20, b"\0"), m)
        row_v, q = 0, [0] * 53
        for s in selected:
            row_v ^= rows[s]
            for j in range(53):
                q[j] ^= v[s][j] ^ product(delta[j], codewords[s][j])
        q = [a ^ product(d, c) for a, d, c in zip(q, delta, codeword(value), strict=True)]
        department_keys[code] = row_key(session, code, joined(q)).hex()
        if code in own:
            bank_keys[code] = row_key(session, code, row_v).hex()
    return {
        "registry": registry,
        "customers": customers,
        "m": m,
        "attempt": attempt,
        "secret_d": secret_d.hex(),
        "secret_b": secret_b.hex(),
        "context": context.hex(),
        "delta": "".join(f"{d:x}" for d in delta),
        "hello": {
            "nonce": nonce_d.hex(),
            "points": hashlib.sha256(all_points).hexdigest(),
            "digest": hello.hex(),
        },
        "session": session.hex(),
        "store": hashlib.sha256(store_bytes).hexdigest(),
        "reply": {
            "nonce": nonce_b.hex(),
            "point": point.hex(),
            "sums": hashlib.sha256(sums).hexdigest(),
            "leaf_sums": hashlib.sha256(leaf_sums).hexdigest(),
            "leaves": leaves.hex(),
            "correction": hashlib.sha256(correction).hexdigest(),
            "check_messages": hashlib.sha256(
                b"".join(x.to_bytes(8, "little") for x in check_messages)
            ).hexdigest(),
            "check_rows": hashlib.sha256(
                b"".join(x.to_bytes(32, "little") for x in check_rows)
            ).hexdigest(),
        },
        "bank_keys": bank_keys,
        "department_keys": department_keys,
    }


def main() -> None:
    registry = [f"91330106Y11047{i:03d}X" for i in range(8)]
    vector = session_of(
        registry,
        registry[5:0:-1],
        capacity=120,
        m=384,
        attempt=2,
        secret_d=sha("department"),
        secret_b=sha("bank"),
    )
    (HERE / "set_oprf.json").write_text(json.dumps(vector, indent=2) + "\n")


if __name__ == "__main__":
    main()
