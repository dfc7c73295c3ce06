"""GF(16) and the code of the set OPRF: 64 bits in, 53 symbols of GF(16) out, distance 32.

Field        GF(2)[z] / (z^4 + z + 1); a symbol is 4 bits, addition is XOR.
Code         x^i y^j with 4 i + 5 j <= 21, j < 4, on 53 of the 64 points of y^4 + y = x^5. These 16
             functions are a basis of L(21 P) of the Hermitian curve (genus 6: 16 = 21 + 1 - 6), so
             a non-zero one has at most 21 zeros and a word at least 53 - 21 = 32 symbols that are
             not zero, whichever points are taken (Stichtenoth, Algebraic Function Fields and
             Codes, 8.3). 32 symbols are the 128 bits that a wrong value leaves unknown.
Why this     binary codes of this distance take 430 columns and more; larger fields take more
             streams a column: 16 streams and 53 columns are the knee.

A word is 212 bits, symbol j in bits 4 j to 4 j + 3, in four 64-bit words of 256.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocols.kernels import kernel

Words = NDArray[np.uint64]

FIELD_BITS, FIELD = 4, 16
POLYNOMIAL = 0b10011
COLUMNS, SYMBOLS, POLE, DISTANCE = 53, 16, 21, 32
ROW_WORDS = 4  # 64-bit words of a row: 4 * 53 bits, rounded up to 256


def multiply(a: int, b: int) -> int:
    """Product in GF(16)."""
    product = 0
    for i in range(FIELD_BITS):
        product ^= (a << i) * (b >> i & 1)
    for i in range(2 * FIELD_BITS - 2, FIELD_BITS - 1, -1):
        product ^= (POLYNOMIAL << (i - FIELD_BITS)) * (product >> i & 1)
    return product


def power(a: int, exponent: int) -> int:
    out = 1
    for _ in range(exponent):
        out = multiply(out, a)
    return out


@cache
def _products() -> NDArray[np.uint8]:
    table = [[multiply(a, b) for b in range(FIELD)] for a in range(FIELD)]
    return np.array(table, np.uint8)


@cache
def generator() -> tuple[tuple[int, ...], ...]:
    """The 16 x 53 matrix: one line a monomial, one column a point."""
    square = [(x, y) for x in range(FIELD) for y in range(FIELD)]
    points = [(x, y) for x, y in square if power(y, 4) ^ y == power(x, 5)][:COLUMNS]
    monomials = [(i, j) for j in range(4) for i in range(6) if 4 * i + 5 * j <= POLE]
    return tuple(tuple(multiply(power(x, i), power(y, j)) for x, y in points) for i, j in monomials)


def code_table(scale: NDArray[np.uint8]) -> Words:
    """The code as eight look-ups: table[k, v] = scale * C(the message whose byte k is v).

    scale: one symbol a column, multiplied in. Shape (8, 256, 4).
    """
    products, lines = _products(), np.array(generator())
    units = (1 << np.arange(FIELD_BITS))[None, :, None]
    symbols = np.zeros((SYMBOLS, FIELD_BITS, 16 * ROW_WORDS), np.uint8)
    symbols[..., :COLUMNS] = products[scale, products[units, lines[:, None, :]]]
    packed = symbols[..., 0::2] | symbols[..., 1::2] << FIELD_BITS
    basis = packed.view("<u8").astype(np.uint64).reshape(-1, ROW_WORDS)
    table = np.zeros((8, 256, ROW_WORDS), np.uint64)
    for bit in range(8):
        span = 1 << bit
        table[:, span : 2 * span] = table[:, :span] ^ basis[bit::8, None]
    return table


@kernel
def encode_rows(table: Words, messages: Words) -> Words:
    """The code word of every 64-bit message, shape (messages, 4)."""
    rows = np.empty((messages.shape[0], ROW_WORDS), np.uint64)
    for i in range(messages.shape[0]):
        a = b = c = d = np.uint64(0)
        message = messages[i]
        for k in range(8):
            v = (message >> np.uint64(8 * k)) & np.uint64(255)
            a ^= table[k, v, 0]
            b ^= table[k, v, 1]
            c ^= table[k, v, 2]
            d ^= table[k, v, 3]
        rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3] = a, b, c, d
    return rows
