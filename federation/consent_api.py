"""The bodies with which sealed questions, events on grants and receipts travel through the
coordinator. It carries them and reads none of what matters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from federation.api import Body
from federation.envelope import Base64Bytes, Envelope
from federation.grants import BySubject, Listed
from federation.objects import Digest, KeyId, OrgId
from federation.sealing import LEAST, MAX_SEALED, OVERHEAD, USE

TAKE_MAX = 64  # parcels handed out at once
TAKE_BYTES = 4 << 20  # of these, but for a single one; far below what nodes read of an answer
ASK_TIMEOUT_S = 20.0  # below the clients' read timeout

NOTICE_MAX = 2 * LEAST[USE] + OVERHEAD  # a receipt with all its cosignatures needs half of it

Sealed = Annotated[Base64Bytes, Field(max_length=MAX_SEALED, repr=False)]


class ParcelEntry(Body):
    """A sealed question for the caller."""

    id: Digest
    sender: OrgId
    sealed: Sealed


class Inbox(Body):
    """What waited for the caller."""

    items: tuple[ParcelEntry, ...]


class ReplyEntry(Body):
    """A sealed answer to a parcel."""

    id: Digest
    sealed: Sealed


class NoticeBody(Body):
    """A sealed receipt for whoever has the private half of this key."""

    mailbox: KeyId
    sealed: Annotated[Base64Bytes, Field(max_length=NOTICE_MAX, repr=False)]


class Outbox(Body):
    """Answers of the caller, and receipts for subjects."""

    items: Annotated[tuple[ReplyEntry, ...], Field(max_length=TAKE_MAX)]
    notices: Annotated[tuple[NoticeBody, ...], Field(max_length=TAKE_MAX)] = ()


class NoticeEntry(Body):
    """A receipt in a mailbox."""

    number: int
    sender: OrgId
    sealed: Sealed


class Notices(Body):
    """Receipts after number `after`, the oldest first."""

    items: tuple[NoticeEntry, ...]


class RevocationBody(Body):
    """An issuer's revocation of a certificate, and the certificate: it has to be its own."""

    revocation: Envelope
    certificate: Envelope


class EventBundles(Body):
    """Events that were asked for, as their signers handed them in."""

    items: tuple[BySubject, ...]


class EventsWanted(Body):
    """Which events a status list's reader lacks."""

    events: Annotated[tuple[Listed, ...], Field(max_length=256)]


class GrantsNamed(Body):
    """Grants whose events somebody wants who has them: nobody else can name them."""

    grants: Annotated[tuple[Digest, ...], Field(max_length=256)]


class Taken(Body):
    """An event or revocation that the coordinator has and will list."""

    digest: Digest


class StatusBody(Body):
    """The newest status list."""

    status: Envelope
