"""Signed objects as bytes: DSSE envelopes over RFC 8785 JSON (GOVERNANCE.md, Envelope).

The signature covers PAE(payloadType, payload), so the kind of an object is part of what is signed
and an approval can never pass for a grant. Accepted are only payloads that are byte for byte what
we would have written ourselves: that kills duplicate keys, other encodings, and every way of
reading one text in two manners. Who signed is the trust store's question (`federation/trust.py`).
"""

from __future__ import annotations

import base64
import binascii
import json
import unicodedata
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
)

from federation import canonical
from federation.errors import IntegrityError
from federation.identity import PrivateKey
from federation.objects import AlgorithmName, KeyId, Part, SignedObject

MAX_PAYLOAD = 1 << 20
MAX_ENVELOPE = 3 << 19  # the payload in base64, and signatures
MAX_DEPTH = 16  # our deepest object has 5 levels
MAX_SIGNATURES = 64  # a card is signed by each of its signing keys

T = TypeVar("T", bound=SignedObject)


def _from_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        data = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if base64.b64encode(data).decode() != value:
        raise ValueError("not canonical base64")
    return data


Base64Bytes = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), return_type=str),
]


class Signature(Part):
    """One signature; `keyid` and `alg` are hints, the verifier's own record of the key decides."""

    keyid: KeyId
    alg: AlgorithmName
    sig: Annotated[Base64Bytes, Field(max_length=512, repr=False)]


class Envelope(BaseModel):
    """A signed object that nobody has verified yet; goes as it is into files and HTTP bodies."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    payload_type: Annotated[
        str,
        StringConstraints(pattern=r"^application/vnd\.lianmo\.[a-z][a-z0-9-]{0,40}\.v1\+json$"),
        Field(alias="payloadType"),
    ]
    payload: Annotated[Base64Bytes, Field(max_length=MAX_PAYLOAD, repr=False)]
    signatures: Annotated[
        tuple[Signature, ...], Field(min_length=1, max_length=MAX_SIGNATURES, repr=False)
    ]

    def to_json(self) -> bytes:
        """Canonical bytes of the envelope."""
        return canonical.dumps(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_json(cls, data: bytes) -> Envelope:
        """The envelope in these bytes; raises IntegrityError for anything else."""
        if len(data) > MAX_ENVELOPE:
            raise IntegrityError(f"a signed object has at most {MAX_ENVELOPE} bytes")
        try:
            return cls.model_validate(parse(data))
        except ValidationError as error:
            raise IntegrityError(f"not an envelope: {_where(error)}") from None

    def pae(self) -> bytes:
        """The bytes that are signed."""
        return pre_authentication(self.payload_type, self.payload)

    def unverified(self, kind: type[T]) -> T:
        """The object, well formed but signed by anybody: to look at, never to act on.

        Raises IntegrityError if it is of another kind, not canonical, or not well formed.
        """
        if self.payload_type != payload_type(kind):
            raise IntegrityError(f"expected a signed {kind.kind}, got {self.payload_type}")
        plain = parse(self.payload)
        if canonical.dumps(plain) != self.payload:
            raise IntegrityError(f"the {kind.kind} is not in canonical form")
        try:
            found = kind.model_validate(plain)
        except ValidationError as error:
            raise IntegrityError(f"the {kind.kind} is not well formed: {_where(error)}") from None
        # The type may have read a text in two manners ("5" as 5) or filled in a missing field;
        # then the digest of the object would not be that of what was signed.
        if found.payload() != self.payload:
            raise IntegrityError(f"the {kind.kind} is not in canonical form")
        return found


def sign(obj: SignedObject, *keys: PrivateKey) -> Envelope:
    """The object in an envelope, signed by each of the keys."""
    name, payload = payload_type(type(obj)), obj.payload()
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a signed object has at most {MAX_PAYLOAD} bytes")
    message = pre_authentication(name, payload)
    signatures = tuple(
        Signature(keyid=key.key_id, alg=key.alg, sig=key.sign(message)) for key in keys
    )
    return Envelope(payload_type=name, payload=payload, signatures=signatures)


def payload_type(kind: type[SignedObject]) -> str:
    """DSSE's payloadType of a kind of object."""
    return f"application/vnd.lianmo.{kind.kind}.v{kind.model_fields['v'].default}+json"


def pre_authentication(name: str, payload: bytes) -> bytes:
    """DSSE's PAE: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    kind = name.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


class Content(Part):
    """Base of what nodes seal to each other, with signed envelopes inside: bytes and back."""

    called: ClassVar[str]  # in errors

    def to_bytes(self) -> bytes:
        """As it is sealed."""
        return canonical.dumps(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What was sealed, verified by nobody; IntegrityError for anything else."""
        try:
            return cls.model_validate(parse(data))
        except ValidationError:
            raise IntegrityError(f"not {cls.called}") from None


# --- strict JSON ----------------------------------------------------------------------------------


def parse(data: bytes) -> Any:
    """JSON without floats, big integers, duplicate keys, deep nesting or text that is not NFC."""
    try:
        plain = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_no_number,
            parse_constant=_no_number,
            parse_int=_small,
        )
    except RecursionError:
        raise IntegrityError("JSON is nested too deeply") from None
    except ValueError:  # not UTF-8, a byte order mark, not JSON
        raise IntegrityError("not valid JSON in UTF-8") from None
    # ASCII without escapes is in normal form, and few brackets nest no deeper
    is_plain = data.isascii() and b"\\" not in data
    if not is_plain or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _inspect(plain)
    return plain


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise IntegrityError("JSON with a name that stands twice")
    return found


def _no_number(_: str) -> NoReturn:
    raise IntegrityError("JSON with a number that is not an integer")


def _small(text: str) -> int:
    if len(text) > 17 or abs(value := int(text)) >= 1 << 53:
        raise IntegrityError("JSON with an integer of 2^53 or more")
    return value


def _inspect(plain: Any) -> None:
    """Depth and normal form; without recursion, so that depth cannot exhaust the stack."""
    waiting: list[tuple[Any, int]] = [([plain], -1)]
    while waiting:
        value, depth = waiting.pop()
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        if inside and depth >= MAX_DEPTH:
            raise IntegrityError("JSON is nested too deeply")
        for item in inside:
            if isinstance(item, str):
                if not _is_normal(item):
                    raise IntegrityError("text that is not NFC, or no text")
            elif isinstance(item, (dict, list)):
                waiting.append((item, depth + 1))


def _is_normal(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()  # a lone surrogate is no text
    except UnicodeEncodeError:
        return False
    return unicodedata.is_normalized("NFC", text)


def _where(error: ValidationError) -> str:
    """Which field, and why; never its value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    return f"{place if place.isprintable() else 'a field'}: {first['msg']}"
