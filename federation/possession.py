"""That whoever asked for a key to be certified has its private half, said once and for all cards.

A person who approves keeps the key apart from the organisation's node. Were it to sign each new
card, as the keys of the home do, nobody could renew a TLS certificate while that person is away.
So the person signs a request: this key, of this organisation, for this one use, held by me. The
request's signature goes into the key's record, and a card with it needs no other of that key.
"""

from __future__ import annotations

import base64
from typing import ClassVar

from federation.envelope import Envelope, payload_type, pre_authentication
from federation.errors import IntegrityError
from federation.objects import AlgorithmName, Base64, KeyRecord, Name, OrgId, SignedObject, Usage
from federation.profile import CryptoProfile


class KeyRequest(SignedObject):
    """A key that asks its organisation's admin to be certified; signed by itself."""

    kind: ClassVar[str] = "key-request"

    org: OrgId
    usage: Usage
    alg: AlgorithmName
    spki: Base64
    holder: Name


def is_proven(suite: CryptoProfile, org: str, key: KeyRecord) -> bool:
    """Whether the record itself proves that the organisation, for this holder and use, has it."""
    if key.proof is None:
        return False
    asked = KeyRequest(org=org, usage=key.usage, alg=key.alg, spki=key.spki, holder=key.holder)
    message = pre_authentication(payload_type(KeyRequest), asked.payload())
    spki, proof = base64.b64decode(key.spki), base64.b64decode(key.proof)
    return suite.is_signature(key.alg, spki, message, proof)


def proof_of(envelope: Envelope, suite: CryptoProfile) -> tuple[KeyRequest, str]:
    """A request that proves itself, and the proof for the key's record.

    Raises IntegrityError if it is signed by another key than the one that it is about.
    """
    asked = envelope.unverified(KeyRequest)
    first, *more = envelope.signatures
    spki = base64.b64decode(asked.spki)
    if (
        more
        or asked.alg != suite.algorithm(asked.usage)
        or not suite.is_key(asked.alg, spki)
        or not suite.is_signature(asked.alg, spki, envelope.pae(), first.sig)
    ):
        todo = "make a new one with `lianmo org approver new`"
        raise IntegrityError("the request is not signed by its own key", party=asked.org, todo=todo)
    return asked, base64.b64encode(first.sig).decode()
