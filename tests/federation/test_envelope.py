"""Envelopes: one text, one meaning, or no object at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import Any, ClassVar

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.envelope import (
    MAX_ENVELOPE,
    MAX_PAYLOAD,
    Envelope,
    Signature,
    parse,
    payload_type,
    pre_authentication,
    sign,
)
from federation.errors import IntegrityError
from federation.identity import PrivateKey
from federation.objects import Approval, Count, JobManifest, SignedObject, Text, Time, Usage
from tests.federation.parties import make_approval, make_manifest


class Note(SignedObject):
    """The smallest object."""

    kind: ClassVar[str] = "note"

    created: Time = "2026-11-23T12:00:00Z"
    text: Text = ""
    number: Count = 0


KEY = PrivateKey(Usage.PROPOSE, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def around(payload: bytes) -> Envelope:
    """Exactly these bytes, with a signature that holds."""
    name = payload_type(Note)
    signature = Signature(
        keyid=KEY.key_id, alg="Ed25519", sig=KEY.sign(pre_authentication(name, payload))
    )
    return Envelope(payload_type=name, payload=payload, signatures=(signature,))


def test_the_signed_bytes_are_those_of_the_dsse_specification() -> None:
    # https://github.com/secure-systems-lab/dsse, protocol.md, test vector
    assert (
        pre_authentication("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_is_a_known_answer() -> None:
    envelope = sign(Note(text="税", number=7), KEY)
    expected = '{"created":"2026-11-23T12:00:00Z","number":7,"text":"税","v":1}'
    assert envelope.payload == expected.encode()
    plain = json.loads(envelope.to_json())
    assert plain["payloadType"] == "application/vnd.lianmo.note.v1+json"
    assert base64.b64decode(plain["payload"]) == envelope.payload
    assert plain["signatures"][0].keys() == {"keyid", "alg", "sig"}
    KEY.secret.public_key().verify(  # type: ignore[union-attr, call-arg]  # an Ed25519 key
        base64.b64decode(plain["signatures"][0]["sig"]),
        b"DSSEv1 35 application/vnd.lianmo.note.v1+json %d %s"
        % (len(expected.encode()), envelope.payload),
    )


@given(st.text(max_size=50), st.integers(0, (1 << 53) - 1))
def test_what_was_signed_comes_back_or_cannot_be_made(text: str, number: int) -> None:
    try:
        note = Note(text=text, number=number)
    except ValueError:
        return  # not NFC, or a control character
    envelope = sign(note, KEY)
    again = Envelope.from_json(envelope.to_json())
    assert again == envelope
    assert again.unverified(Note) == note
    assert hashlib.sha256(again.payload).hexdigest() == note.digest()


@pytest.mark.parametrize("obj", [make_manifest("bank-a", ["tax"]), make_approval("tax", "ab" * 32)])
def test_the_objects_of_a_job_come_back_equal(obj: SignedObject) -> None:
    assert sign(obj, KEY).unverified(type(obj)) == obj


def test_an_approval_never_passes_for_a_manifest() -> None:
    envelope = sign(make_approval("tax", "ab" * 32), KEY)
    with pytest.raises(IntegrityError, match="expected a signed job-manifest"):
        envelope.unverified(JobManifest)
    relabelled = envelope.model_copy(update={"payload_type": payload_type(JobManifest)})
    assert relabelled.pae() != envelope.pae()  # the kind is part of what is signed
    with pytest.raises(IntegrityError):
        relabelled.unverified(JobManifest)
    assert envelope.unverified(Approval)


GOOD = Note(text="a", number=1).payload().decode()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(GOOD.replace('"number":1', '"number":2,"number":1').encode(), id="twice"),
        pytest.param(GOOD.replace("{", '{"admin":true,', 1).encode(), id="extra field"),
        pytest.param(GOOD.replace(',"text":"a"', "").encode(), id="field left out"),
        pytest.param(GOOD.replace('"v":1', '"v":2').encode(), id="another version"),
        pytest.param(GOOD.replace('"number":1', '"number":1.0').encode(), id="1.0"),
        pytest.param(GOOD.replace('"number":1', '"number":1e0').encode(), id="1e0"),
        pytest.param(GOOD.replace('"number":1', '"number":"1"').encode(), id="number as text"),
        pytest.param(GOOD.replace('"number":1', '"number":true').encode(), id="truth as number"),
        pytest.param(GOOD.replace('"number":1', '"number":-0').encode(), id="-0"),
        pytest.param(GOOD.replace('"number":1', '"number":NaN').encode(), id="NaN"),
        pytest.param(GOOD.replace('"number":1', '"number":Infinity').encode(), id="Infinity"),
        pytest.param(GOOD.replace(":1,", f":{1 << 53},", 1).encode(), id="2^53"),
        pytest.param(GOOD.replace(":1,", ":" + "9" * 10_000 + ",", 1).encode(), id="10^10000"),
        pytest.param(GOOD.replace('"a"', '"\\u0061"').encode(), id="escaped"),
        pytest.param(GOOD.replace('"a"', '"e\u0301"').encode(), id="NFD"),
        pytest.param(GOOD.replace('"text"', '"te\u0301xt"').encode(), id="NFD name"),
        pytest.param(GOOD.replace('"a"', '"\\ud800"').encode(), id="lone surrogate"),
        pytest.param(GOOD.replace('"a"', '"\\u0000"').encode(), id="control character"),
        pytest.param(GOOD.replace(",", ", ", 1).encode(), id="a space"),
        pytest.param((GOOD + "\n").encode(), id="line end"),
        pytest.param((GOOD + GOOD).encode(), id="two objects"),
        pytest.param(b"\xef\xbb\xbf" + GOOD.encode(), id="byte order mark"),
        pytest.param(GOOD.encode("utf-16"), id="UTF-16"),
        pytest.param(GOOD.encode().replace(b'"a"', b'"\xff"'), id="not UTF-8"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(f"[{GOOD}]".encode(), id="a list"),
        pytest.param(b"[" * 10_000 + b"]" * 10_000, id="10,000 deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="100,000 deep"),
        pytest.param(
            GOOD.replace('"a"', "[" * 20 + '"a"' + "]" * 20).encode(), id="20 deep in a field"
        ),
    ],
)
def test_a_payload_that_can_be_read_in_two_manners_is_refused(payload: bytes) -> None:
    envelope = around(payload)
    with pytest.raises(IntegrityError):
        envelope.unverified(Note)
    with pytest.raises(IntegrityError):
        Envelope.from_json(envelope.to_json()).unverified(Note)


def test_the_base_case_of_the_refusals_is_accepted() -> None:
    assert around(GOOD.encode()).unverified(Note).text == "a"


def test_a_refusal_names_the_field_and_not_its_value() -> None:
    payload = rfc8785.dumps({**json.loads(GOOD), "text": "91330106Y71047292M\u0007"})
    with pytest.raises(IntegrityError, match="text") as caught:
        around(payload).unverified(Note)
    assert "9133" not in str(caught.value)
    payload = rfc8785.dumps({**json.loads(GOOD), "\u001b[31m": "x"})
    with pytest.raises(IntegrityError) as caught:
        around(payload).unverified(Note)
    assert "\u001b" not in str(caught.value)


def edited(**changes: Any) -> bytes:
    plain = json.loads(sign(Note(), KEY).to_json())
    return json.dumps(plain | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b'"text"',
        edited(extra=1),
        edited(payloadType="application/vnd.lianmo.note.v2+json"),
        edited(payloadType="application/json"),
        edited(payload="not base64!"),
        edited(payload="YQ"),
        edited(payload="YR=="),  # the same byte as YQ==, another text
        edited(payload="YQ==\n"),
        edited(signatures=[]),
        edited(signatures=None),
        edited(signatures=[{"keyid": "00" * 16, "alg": "Ed25519", "sig": "", "public": "x"}]),
        edited(signatures=[{"keyid": "../../etc", "alg": "Ed25519", "sig": ""}]),
        edited(signatures=[{"keyid": "00" * 16, "alg": "", "sig": ""}]),
        edited(signatures=[{"keyid": "00" * 16, "alg": "Ed25519", "sig": "YQ=="}] * 65),
        edited().replace(b'{"payload"', b'{"payload": "YQ==", "payload"', 1),
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Envelope.from_json(data)


def test_ten_megabytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(IntegrityError, match=f"at most {MAX_ENVELOPE}"):
        Envelope.from_json(b"[" * 10_000_000)
    with pytest.raises(ValueError, match="at most 1048576"):
        around(b" " * (MAX_PAYLOAD + 1))


def test_an_object_that_nobody_would_accept_cannot_be_signed() -> None:
    class Long(SignedObject):
        kind: ClassVar[str] = "long"
        parts: tuple[Text, ...]

    with pytest.raises(ValueError, match="at most 1048576"):
        sign(Long(parts=("x" * 2000,) * 600), KEY)


def test_keys_and_signatures_do_not_show_in_representations() -> None:
    envelope = sign(Note(text="canary"), KEY)
    shown = repr(envelope) + repr(envelope.signatures[0]) + repr(KEY)
    assert "canary" not in shown
    assert base64.b64encode(envelope.signatures[0].sig).decode() not in shown
    assert "sig=" not in shown


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_give_an_envelope_or_an_integrity_error(data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        Envelope.from_json(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 60), 1 << 60)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@settings(max_examples=200)
@given(json_values)
def test_strict_json_is_what_the_standard_parser_reads_or_nothing(value: Any) -> None:
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    with contextlib.suppress(IntegrityError):
        assert parse(data) == value
