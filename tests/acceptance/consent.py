"""A bank, a tax bureau, an issuer and a firm, in one process with real homes, for grants' tests.

world.ask() puts a whole question through seal, order of checks, log and answer; `say` changes any
field of grant or request on the way, as an attacker would.
"""

from __future__ import annotations

import base64
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from clients import datasets, grants, registries
from clients.audit import AuditLog
from clients.consent import Consents, Debits
from clients.gate import Gate
from clients.home import Home
from clients.services import services
from clients.sources import Source
from clients.store import Store
from clients.use_notices import UseNotices
from clients.verification import Parcel, Provider
from clients.verifier import Verifier
from clients.witness_book import OwnCheckpoint, OwnState
from federation import sealing
from federation.audit import Action, AuditEntry, Result
from federation.catalogue import Assurance, Dataset, Question
from federation.checkpoints import cosign, merged
from federation.codes import code_for_row
from federation.consent_api import NoticeBody, Outbox
from federation.enquiry import Answered, Comparison
from federation.envelope import Envelope, sign
from federation.grants import (
    BySubject,
    Capacity,
    Change,
    Channel,
    Grant,
    GrantEvent,
    GrantItem,
    Language,
    NamedOrg,
    StatusList,
    Terms,
    notice_digest,
)
from federation.identity import PrivateKey
from federation.objects import Purpose, Usage, utc_text
from federation.registry import Registry
from federation.trust import TrustStore
from federation.verification import Answer, Ask, VerificationRequest
from protocols import merkle
from tests.clients.persons import certified

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CODES = np.sort(code_for_row(1, np.arange(60)))
REGISTRY = Registry(CODES, NOW.date(), "厦门市")
FIRM, OTHER_FIRM, NO_RECORD_FIRM, NEVER_SEEN = (CODES[i].decode() for i in (3, 4, 5, 6))
BANKS = ("bank-a", "bank-b")
KINDS = {
    "platform": ("platform", "91330106Y71047292M"),
    "tax": ("department", "91310115Y71126484T"),
    "licence": ("department", "91110105Y71205676A"),
    "bank-a": ("bank", "91420106Y71364052A"),
    "bank-b": ("bank", CODES[50].decode()),
}
GRID = ("100000", "500000", "1000000", "5000000", "10000000", "50000000", "100000000")
REVENUE = 3_210_000.5  # of FIRM: cell 3, [1000000, 5000000)
PERIODS = tuple(f"2025-{month:02}" for month in range(1, 13))
SETTINGS = '[verification]\nissuers = { licence = "A3", platform = "A2" }\n'

FIELDS: dict[str, dict[str, Any]] = {
    "revenue": {
        "description": "上年度销售收入",
        "ops": ["train", "verify"],
        "purposes": ["credit-decision", "credit-model-training"],
        "enquiry": {"ops": ["exists", "compare"], "grid": GRID, "bits_budget": 4},
    },
    "assets": {  # the same wide open: only the grid is in the way
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {"ops": ["compare"], "grid": GRID, "bits_budget": 4096},
    },
    "court-2025": {
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {
            "ops": ["count"],
            "grid": ["1", "3"],
            "periods": ["2024", "2025"],
            "columns": ["court-2024", "court-2025"],
            "no_record": True,
        },
    },
    "name": {
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {"ops": ["equals"], "normaliser": "name-1", "bits_budget": 2},
    },
    "staff": {
        "level": "L2",
        "trade_secret": False,
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {
            "ops": ["band"],
            "grid": ["10", "100"],
            "min_assurance": "A1",
        },
    },
    "district": {
        "level": "L2",
        "trade_secret": False,
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {"ops": ["value"], "min_assurance": "A1", "bits_budget": 64},
    },
    "monthly": {
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {
            "ops": ["compare"],
            "grid": GRID,
            "bits_budget": 4096,
            "periods": PERIODS,
            "columns": ["monthly", *(f"monthly-{n}" for n in range(2, 13))],
        },
    },
}


@dataclass
class Firm:
    """An enterprise with its keys; no home."""

    uscc: str
    grant: PrivateKey = field(default_factory=lambda: PrivateKey.generate(Usage.GRANT))
    encrypt: PrivateKey = field(default_factory=lambda: PrivateKey.generate(Usage.ENCRYPT))
    card: Envelope = field(init=False, repr=False)
    certificate: Envelope = field(init=False, repr=False)

    def certified_by(self, issuer: Home, assurance: Assurance, now: datetime = NOW) -> Firm:
        made = now - timedelta(hours=2)
        self.card = grants.make_card(self.grant, self.encrypt, self.uscc, "某公司", made)
        self.certificate = grants.certify(issuer, self.card, assurance, made)
        return self


@dataclass
class Box:
    """A coordinator that takes notices."""

    notices: list[NoticeBody] = field(default_factory=list)

    def reply_sealed(self, body: Outbox) -> None:
        self.notices += body.notices


class World:
    """One provider, two banks, a firm with an A3 certificate; the clock is an attribute."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder, self.now = folder, NOW
        self.homes = {org: Home.open(folder / org, environment={}) for org in KINDS}
        self.url = url or self.homes["tax"].database_url
        self.store = Store.open(self.url)
        self.stores = {org: Store.open(self.homes[org].database_url) for org in BANKS}
        self.firm = Firm(FIRM).certified_by(self.homes["licence"], Assurance.A3)
        self.events: list[BySubject] = []
        self.uncertified: list[str] = []  # entries of status lists
        self.sequence = 0
        self.start()

    @classmethod
    def create(cls, folder: Path) -> None:
        """The homes, with data registered and published at the tax bureau."""
        homes = {}
        for org, (kind, uscc) in KINDS.items():
            homes[org] = Home.create(
                folder / org,
                org=org,
                kind=kind,
                name=f"{org} 某单位",
                uscc=uscc,
                region="厦门市",
                now=NOW - timedelta(days=1),
            )
        with (folder / "tax" / "config.toml").open("a") as config:
            config.write(SETTINGS)
        tax = homes["tax"] = Home.open(folder / "tax", environment={})
        store = Store.open(tax.database_url)
        registries.add(tax, store, REGISTRY, NOW)
        second = certified(tax, store, "李娜", NOW - timedelta(hours=3))
        for one in homes.values():
            for other in homes.values():
                if one is not other:
                    one.trust_card(other.card())
        lines = [
            "uscc,revenue,assets,court-2024,court-2025,name,staff,district,"
            + ",".join(["monthly", *(f"monthly-{n}" for n in range(2, 13))])
        ]
        for row, code in enumerate(CODES):
            if code.decode() in (NO_RECORD_FIRM, NEVER_SEEN):
                continue
            value = REVENUE if code.decode() == FIRM else 40_000 * (row + 1) ** 2
            name = "厦门（集美）贸易有限责任公司" if code.decode() == FIRM else f"公司{row}"
            cells = [code.decode(), value, value, row % 2, 2 if code.decode() == FIRM else 0, name]
            lines.append(",".join(map(str, [*cells, row, "集美", *[value] * 12])))
        table = folder / "firms.csv"
        table.write_text("\n".join(lines) + "\n")
        source = Source(file=str(table), key="uscc")
        datasets.register(tax, store, "firms", source, NOW - timedelta(hours=2))
        datasets.describe(store, "firms", dict.fromkeys(datasets.OWN_WORDS, "依法"), FIELDS)
        when = NOW - timedelta(hours=1)
        datasets.sign_entry(tax, store, "firms", when)
        signed = datasets.sign_entry(tax, store, "firms", when, second)
        assert datasets.is_in_force(store, signed)
        store.close()

    # --- the provider

    def start(self) -> None:
        """A fresh process of the provider, as far as memory goes."""
        tax = self.homes["tax"]
        gate = Gate(tax, self.store, lambda: self.now)
        asked = services(tax, self.store, gate, lambda: self.now)
        self.provider = Provider(tax, self.store, now=lambda: self.now, services=asked)
        self.audit = AuditLog(tax, self.store)
        self.consents, self.debits = Consents(self.store), Debits(self.store)
        if self.sequence == 0:
            self.refresh()

    def status(self, *, sequence: int | None = None, age: timedelta = timedelta(0)) -> Envelope:
        """A list of the platform's, of all events so far."""
        self.sequence += sequence is None
        made = self.now - age
        said = StatusList(
            org="platform",
            sequence=self.sequence if sequence is None else sequence,
            created=utc_text(made),
            next_update=utc_text(made + timedelta(minutes=30)),
            events=tuple(sorted(event.proof_digest[:32] for event in self.events)),
            certificates=tuple(self.uncertified),
        )
        return sign(said, self.homes["platform"].key(Usage.GRANT))

    def refresh(self) -> None:
        """The provider takes all events and a fresh list, as its node does by itself."""
        tax = self.homes["tax"]
        for event in self.events:
            grants.take_event(tax, self.store, event, self.now)
        self.consents.put_status(self.status(), tax.trust(), self.now)

    def entries(self) -> list[AuditEntry]:
        return self.audit.entries()

    def refusals(self) -> list[AuditEntry]:
        return [entry for entry in self.entries() if entry.outcome is Result.REFUSED]

    def asked(self) -> list[AuditEntry]:
        return [
            e for e in self.entries() if e.action is Action.ASKED and e.outcome is Result.ADMITTED
        ]

    def catalogue(self) -> Dataset:
        stored = self.store.entries.get("firms")
        assert stored.envelope is not None
        return Envelope.from_json(stored.envelope).unverified(Dataset)

    # --- grants

    def item(self, name: str = "revenue", **changes: Any) -> GrantItem:
        ops: dict[str, tuple[str, ...]] = {
            "revenue": ("compare", "exists"),
            "assets": ("compare",),
            "monthly": ("compare",),
            "court-2025": ("count",),
            "name": ("equals",),
            "staff": ("band",),
            "district": ("value",),
        }
        plain: dict[str, Any] = {
            "provider": "tax",
            "dataset": "firms",
            "field": name,
            "title": FIELDS[name].get("description", f"依法: {name}"),
            "ops": ops[name],
            "thresholds": GRID if "compare" in ops[name] else (),
        }
        if name == "court-2025":
            plain |= {"thresholds": ("1", "3"), "periods": ("2024", "2025")}
        if name == "monthly":
            plain["periods"] = PERIODS
        return GrantItem.model_validate(plain | changes)

    def terms(self, **changes: Any) -> Terms:
        items = changes.pop("items", None) or (self.item(changes.pop("field", "revenue")),)
        grantee = changes.get("grantee", "bank-a")
        providers = list(dict.fromkeys(item.provider for item in items))
        plain: dict[str, Any] = {
            "subject": FIRM,
            "grantee": grantee,
            "purpose": Purpose.CREDIT_DECISION,
            "channel": Channel.VERIFY,
            "items": items,
            "names": tuple(
                NamedOrg(org=o, name=f"{o} 某单位") for o in dict.fromkeys([grantee, *providers])
            ),
            "max_uses": 1,
            "not_before": utc_text(self.now - timedelta(hours=1)),
            "expires": utc_text(self.now + timedelta(days=30)),
            "notice_lang": Language.ZH,
            "notice_digest": "0" * 64,
            "nonce": secrets.token_hex(16),
        } | changes
        terms = Terms.model_validate(plain)
        return terms.model_copy(update={"notice_digest": notice_digest(terms, Language.ZH)})

    def grant(self, firm: Firm | None = None, **changes: Any) -> BySubject:
        firm = firm or self.firm
        return grants.sign_terms(
            self.terms(**({"subject": firm.uscc} | changes)),
            firm.grant,
            (firm.card, firm.certificate),
            Capacity.ENTERPRISE_SEAL,
            self.now - timedelta(minutes=1),
        )

    def change(self, grant: BySubject, change: Change, number: int = 1, **said: Any) -> BySubject:
        plain = {
            "grant": grant.digest,
            "change": change,
            "number": number,
            "created": utc_text(self.now),
            "effective": utc_text(self.now),
        } | said
        signed = sign(GrantEvent.model_validate(plain), self.firm.grant)
        event = BySubject(signed=signed, card=self.firm.card, certificate=self.firm.certificate)
        self.events.append(event)
        return event

    # --- questions

    def request(self, grant: BySubject, **changes: Any) -> VerificationRequest:
        said = grant.signed.unverified(Grant)
        item = said.items[0]
        verifier = changes.get("verifier", said.grantee)
        op = Question(changes.pop("op", item.ops[0]))
        plain: dict[str, Any] = {
            "channel": said.channel,
            "request": secrets.token_hex(16),
            "grant": grant.digest,
            "verifier": verifier,
            "provider": "tax",
            "subject": said.subject,
            "purpose": said.purpose,
            "created": utc_text(self.now),
            "expires": utc_text(self.now + timedelta(seconds=120)),
            "nonce": secrets.token_hex(16),
            "reply_key": self.homes[verifier].key(Usage.ENCRYPT).key_id,
            "dataset": item.dataset,
            "field": item.field,
            "op": op,
            "period": item.periods[0],
        }
        if op in (Question.COMPARE, Question.COUNT):
            plain |= {"comparison": Comparison.GE, "arg": item.thresholds[0]}
        if op is Question.EQUALS:
            plain["arg"] = "厦门(集美)贸易有限公司"
        return VerificationRequest.model_validate(plain | changes)

    def sealed(self, request: VerificationRequest, grant: BySubject, **how: Any) -> bytes:
        """The frame; `signer` and `key` of another, `sender` as an attacker may claim."""
        signer = self.homes[how.get("signer", request.verifier)]
        signed = sign(request, how.get("key") or signer.key(Usage.REQUEST))
        return self.seal(Ask(request=signed, grant=grant).to_bytes(), how.get("sender", signer.org))

    def seal(self, content: bytes, sender: str) -> bytes:
        card = self.homes["tax"].own()
        recipient = base64.b64decode(card.of_usage(Usage.ENCRYPT)[0].spki)
        return sealing.seal(sealing.ASK, content, sender=sender, recipient=recipient)

    def answer_to(self, frame: bytes, sender: str = "bank-a") -> bytes:
        replies = self.provider.answer([Parcel(sender, frame)])
        return replies[0]

    def ask(self, grant: BySubject, **changes: Any) -> Answer:
        """A question and its answer, verified as the bank does."""
        request = self.request(grant, **changes)
        return self.verified(request, self.answer_to(self.sealed(request, grant), request.verifier))

    def verified(self, request: VerificationRequest, reply: bytes) -> Answer:
        return self.verifier(request.verifier).open(request, reply)[0]

    def verifier(self, bank: str = "bank-a") -> Verifier:
        return Verifier(self.homes[bank], self.stores[bank], self, lambda: self.now)

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        """The carrier of a verifier: straight to the provider."""
        assert provider == "tax"
        return self.answer_to(sealed)

    # --- receipts, completed later

    def witnessed(self, *orgs: str) -> None:
        """The log as it is now has been cosigned; by default by as many as have to."""
        homes = [self.homes[org] for org in orgs or ("licence", "bank-b")]
        take_cosigned(self.homes["tax"], self.store, homes, self.now)

    def told(self) -> list[NoticeBody]:
        """What the provider's node tells subjects by now."""
        box = Box()
        tax, wait = self.homes["tax"], timedelta(seconds=60)
        UseNotices(tax, self.store, box, lambda: self.now, wait).round()
        return box.notices

    def uses(self, grant: BySubject) -> int:
        return self.debits.uses(grant.digest)[0]

    def counters(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Uses and budgets, as the tables have them."""
        from sqlalchemy import select

        from clients.store import ConsentRow, LeakRow

        with self.store.reading() as session:
            uses = {r.digest: r.uses for r in session.scalars(select(ConsentRow)) if r.uses}
            bits = {r.scope: r.millibits for r in session.scalars(select(LeakRow))}
        return uses, bits

    def close(self) -> None:
        for store in (self.store, *self.stores.values()):
            store.close()


def cosigned_by(
    signed: merkle.SignedCheckpoint, witnesses: Sequence[Home], trust: TrustStore, now: datetime
) -> merkle.SignedCheckpoint:
    """A checkpoint with the cosignatures of these."""
    notes = {h.org: cosign(signed, h.own(), h.key(Usage.WITNESS), now) for h in witnesses}
    return merged(notes, signed, trust)


def take_cosigned(owner: Home, store: Store, witnesses: Sequence[Home], now: datetime) -> None:
    """The owner's log as it is now is cosigned, and its node knows."""
    signed, _ = AuditLog(owner, store).published()
    whole = cosigned_by(signed, witnesses, owner.trust(), now)
    OwnCheckpoint(store).put(OwnState(whole.to_text(), utc_text(now)))


def copied(template: Path, folder: Path, url: str | None = None) -> World:
    """The template's homes in another place."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return World(folder, url)


REFUSED = Answered.REFUSED
