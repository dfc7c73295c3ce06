"""A second person who approves, with a real key that the organisation's admin key certified."""

from __future__ import annotations

import base64
from datetime import datetime

from clients import approvers
from clients.home import Home
from clients.store import Store
from federation.envelope import Envelope, sign
from federation.identity import PrivateKey
from federation.objects import Usage
from federation.possession import KeyRequest


def request_of(key: PrivateKey, org: str, holder: str) -> Envelope:
    """What `lianmo org approver new` writes beside a key, for a key without a file."""
    spki = base64.b64encode(key.spki).decode()
    asked = KeyRequest(org=org, usage=key.usage, alg=key.alg, spki=spki, holder=holder)
    return sign(asked, key)


def certified(home: Home, store: Store, holder: str, now: datetime) -> PrivateKey:
    """The key of one more person."""
    key = PrivateKey.generate(Usage.APPROVE)
    approvers.add(home, store, request_of(key, home.org, holder), now)
    return key
