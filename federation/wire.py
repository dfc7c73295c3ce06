"""Messages as bytes: a frozen dataclass in, the same dataclass out, nothing else accepted.

Layout    magic, length of the header, header (RFC 8785 JSON: type and fields), then the raw
          buffers in order.
Accepted  exactly the type that the receiver asked for, exactly its fields, arrays of exactly the
          annotated dtype, buffers that fill the frame to the last byte. Never pickle, never a type
          named by the sender.

Field types: int, bool, str, bytes, NDArray[...], tuple[T, ...] and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import rfc8785

from protocols.errors import ParameterError, ProtocolError

MAGIC = b"LM1\n"
MAX_HEADER = 1 << 20
MAX_AXES = 4

M = TypeVar("M")


def encode(message: object) -> bytes:
    """The frame of a dataclass instance; equal messages give equal bytes."""
    return b"".join(pieces(message))


def pieces(message: object) -> list[bytes | memoryview]:
    """The parts of `encode(message)`, not yet joined; arrays are not copied."""
    buffers: list[bytes | memoryview] = []
    header = rfc8785.dumps({"type": type(message).__name__, "fields": _fields(message, buffers)})
    return [MAGIC, len(header).to_bytes(4, "big"), header, *buffers]


def decode(data: bytes | memoryview, kind: type[M]) -> M:
    """The message of type `kind` in a frame; raises ProtocolError for anything else."""
    if data[:4] != MAGIC or len(data) < 8:
        raise ProtocolError("not a frame of this version")
    size = int.from_bytes(data[4:8], "big")
    if size > MAX_HEADER or 8 + size > len(data):
        raise ProtocolError("header longer than the frame or the limit")
    try:
        written = bytes(data[8 : 8 + size])
        header = json.loads(written)
        if rfc8785.dumps(header) != written:
            raise ProtocolError("header is not canonical JSON")
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise ProtocolError("header is not canonical JSON") from error
    if not isinstance(header, dict) or header.keys() != {"type", "fields"}:
        raise ProtocolError("header without type and fields")
    if header["type"] != kind.__name__:
        raise ProtocolError(f"expected {kind.__name__}, got another message")
    buffers = _Buffers(memoryview(data)[8 + size :])
    message = _build(header["fields"], kind, buffers)
    if not buffers.is_empty():
        raise ProtocolError("bytes left over after the last field")
    return typing.cast(M, message)


class _Buffers:
    """The raw part of a frame, cut off piece by piece."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def take(self, size: int) -> memoryview:
        if size > len(self._view):
            raise ProtocolError("frame shorter than its header says")
        piece, self._view = self._view[:size], self._view[size:]
        return piece

    def is_empty(self) -> bool:
        return len(self._view) == 0


def _fields(message: Any, buffers: list[bytes | memoryview]) -> dict[str, Any]:
    return {name: _plain(getattr(message, name), buffers) for name, _ in _hints(type(message))}


def _plain(value: Any, buffers: list[bytes | memoryview]) -> Any:
    """The header's view of a value; its bytes, if any, are appended to `buffers`."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        buffers.append(array.reshape(-1).view(np.uint8).data)
        return {"dtype": array.dtype.str, "shape": list(array.shape)}
    if isinstance(value, bytes):
        buffers.append(value)
        return {"size": len(value)}
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return str(value)  # JSON numbers end at 2^53
    if isinstance(value, tuple):
        return [_plain(item, buffers) for item in value]
    if dataclasses.is_dataclass(value):
        return _fields(value, buffers)
    raise TypeError(f"{type(value).__name__} has no wire form")


_HINTS: dict[type, tuple[tuple[str, Any], ...]] = {}


def _hints(kind: type) -> tuple[tuple[str, Any], ...]:
    if kind not in _HINTS:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind} is no dataclass")
        hints = typing.get_type_hints(kind)
        _HINTS[kind] = tuple((item.name, hints[item.name]) for item in dataclasses.fields(kind))
    return _HINTS[kind]


def _build(plain: Any, hint: Any, buffers: _Buffers) -> Any:
    origin = typing.get_origin(hint)
    if origin is np.ndarray:
        return _array(plain, np.dtype(typing.get_args(typing.get_args(hint)[1])[0]), buffers)
    if origin is tuple:
        return tuple(_items(plain, typing.get_args(hint), buffers))
    if hint is bytes:
        return bytes(buffers.take(_count(_only(plain, {"size"})["size"])))
    if hint is int:
        return _integer(plain)
    if hint is bool or hint is str:
        if type(plain) is not hint:
            raise ProtocolError(f"a field is not of type {hint.__name__}")
        return plain
    if origin is types.UnionType or not isinstance(hint, type):
        raise TypeError(f"{hint} has no wire form")
    names = _only(plain, {name for name, _ in _hints(hint)})
    values = {name: _build(names[name], inner, buffers) for name, inner in _hints(hint)}
    try:
        return hint(**values)
    except (ValueError, TypeError, ArithmeticError, ParameterError) as error:
        # The type's own validation; or what it takes for granted, such as an axis to count along.
        raise ProtocolError(f"{hint.__name__} is not well formed: {error}") from error


def _items(plain: Any, hints: tuple[Any, ...], buffers: _Buffers) -> Iterator[Any]:
    if not isinstance(plain, list) or len(hints) != 2 or hints[1] is not Ellipsis:
        raise ProtocolError("a field is not a list")
    for item in plain:
        yield _build(item, hints[0], buffers)


def _array(plain: Any, dtype: np.dtype[Any], buffers: _Buffers) -> np.ndarray[Any, Any]:
    given = _only(plain, {"dtype", "shape"})
    shape = given["shape"]
    if given["dtype"] != dtype.newbyteorder("<").str:
        raise ProtocolError(f"an array is not of type {dtype}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise ProtocolError("an array has too many axes")
    sizes = [_count(axis) for axis in shape]
    raw = buffers.take(math.prod(sizes) * dtype.itemsize)
    try:
        # A copy is aligned and writable, as compiled kernels want it; the frame can be dropped.
        return np.frombuffer(raw, dtype).reshape(sizes).copy()
    except ValueError as error:  # no bytes, and axes beside the zero that no array can have
        raise ProtocolError("a size is out of range") from error


def _only(plain: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(plain, dict) or plain.keys() != names:
        raise ProtocolError("fields missing or unknown")
    return plain


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ProtocolError("a size is out of range")
    return value


def _integer(plain: Any) -> int:
    if not isinstance(plain, str) or len(plain) > 20:
        raise ProtocolError("a field is not an integer")
    try:
        value = int(plain)
    except ValueError as error:
        raise ProtocolError("a field is not an integer") from error
    if str(value) != plain:
        raise ProtocolError("an integer is not in its canonical form")
    return value
