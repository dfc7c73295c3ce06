"""Writes rows.json: row keys, sealed columns and masks, row by row, as the page says it.

A second implementation on purpose: it shares nothing with `protocols/` but the labels, is slow and
has no arrays. Run it after a deliberate change of a format and read the difference.

    python tests/protocols/vectors/make_rows.py
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols import labels

HERE = Path(__file__).parent
M32 = 2**32


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


def draw(master: bytes, *info: bytes | str | int) -> bytes:
    """HKDF-SHA256 without salt, 32 bytes."""
    prk = hmac.digest(bytes(32), master, "sha256")
    return hmac.digest(prk, encode(*info) + b"\x01", "sha256")


def aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def keystream(key: bytes, words: int) -> list[int]:
    raw = b"".join(aes(key, i.to_bytes(16, "big")) for i in range(-(-words // 4)))
    return [int.from_bytes(raw[4 * i : 4 * i + 4], "little") for i in range(words)]


def main() -> None:
    rfc = json.loads((HERE / "rfc9497_voprf.json").read_text())
    job, cover, bank = sha("job"), sha("cover"), "bank_a"
    departments = ["court", "tax", "utilities"]
    low, high, attempt, stage, step, column = -16, 15, 1, "openings", 2, 3
    outputs = [bytes.fromhex(output) for output in rfc["vectors"][2]["output"]]
    row_keys = [sha(labels.ROW_KEY, output)[:16] for output in outputs]
    job_keys = [
        hashlib.sha256(encode(labels.ROW_KEY_OF_JOB, job) + key).digest()[:16] for key in row_keys
    ]
    tags = [hashlib.sha256(encode(labels.ROW_KEY_TAG) + key).digest()[:16] for key in row_keys]
    words = []
    for code in ("91330106Y110472903", "91310115Y111264828"):
        first = aes(bytes(16), code.encode()[:16])
        second = code.encode()[16:].ljust(8, b"\0") + (7).to_bytes(8, "big")
        words.append(int.from_bytes(aes(bytes(16), xor(first, second))[:8], "little"))

    step_code = encode(
        job, attempt, bank, encode(*departments), cover, stage, step, column, low, high
    )
    values = {"court": [-100, 3], "tax": [5, -7], "utilities": [15, 16]}
    columns = {}
    for me in departments:
        plain = [min(max(v, low), high) % M32 for v in values[me]]
        raw = b"".join(v.to_bytes(4, "little") for v in plain)
        inputs = sha(step_code, sha(raw))
        master = sha("seed", me)
        nonce = draw(master, labels.COLUMN_NONCE, job, attempt, bank, stage, step, column, inputs)
        key = sha(labels.COLUMN_KEY, step_code, me, nonce)[:16]
        sealed = []
        for i, x in enumerate(job_keys):
            total = plain[i] + int.from_bytes(xor(aes(key, x), x)[:4], "little")
            for peer in departments:
                if peer != me:
                    pair = sorted((me, peer))
                    mask_key = draw(
                        sha(*pair),
                        labels.ZERO_SUM_MASK,
                        job,
                        attempt,
                        bank,
                        stage,
                        step,
                        column,
                        sha(step_code, *pair),
                    )
                    total += keystream(mask_key, 2)[i] * (1 if me < peer else -1)
            sealed.append(total % M32)
        columns[me] = {"values": values[me], "nonce": nonce.hex(), "sealed": sealed}
    opened = [sum(min(max(values[me][i], low), high) for me in departments) for i in range(2)]
    out = {
        "row_keys": [key.hex() for key in row_keys],
        "job_keys": [key.hex() for key in job_keys],
        "tags": [tag.hex() for tag in tags],
        "row_words": words,
        "columns": columns,
        "opened": opened,
    }
    (HERE / "rows.json").write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
