"""The signed objects of the federation: an object that exists is well formed (GOVERNANCE.md,
Objects).

Payloads are RFC 8785 JSON, so no floats anywhere: decimals are strings, times RFC 3339 in UTC with
whole seconds. Unknown fields are refused. The id of an object is the SHA-256 of its payload.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from federation import canonical
from federation.errors import RefusalCode
from federation.ledger import Disclosure, What

# --- field types ----------------------------------------------------------------------------------


def _nfc(text: str) -> str:
    # besides control characters, what a reviewer would not see: direction marks, zero-width signs
    if not unicodedata.is_normalized("NFC", text) or any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text
    ):
        raise ValueError("text must be NFC without control and invisible characters")
    return text


def _decimal(text: str) -> str:
    # before it is read: written out, an exponent of ten characters takes gigabytes
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) or format(Decimal(text), "f") != text:
        raise ValueError("not a plain decimal")
    return text


def _utc(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text):
        raise ValueError("times are RFC 3339 in UTC with whole seconds: 2026-01-31T12:00:00Z")
    datetime.fromisoformat(text)
    return text


def _base64(text: str) -> str:
    # one text for one value: a decoder that forgives spaces or padding would allow two
    if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
        raise ValueError("not canonical base64")
    return text


_USCC = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_USCC_SUBJECT = (3, 7, 9, 10, 5, 8, 4, 2)


def _uscc(text: str) -> str:
    # One code without NumPy and pandas, which would triple the start-up of every command;
    # `federation/codes.py` is the whole rule, and a test holds this against it.
    subject = sum(w * int(c, 36) for w, c in zip(_USCC_SUBJECT, text[8:16], strict=True))
    total = sum(pow(3, i, 31) * _USCC.index(c) for i, c in enumerate(text[:17]))
    if text[16:] != "0123456789X"[-subject % 11] + _USCC[-total % 31]:
        raise ValueError("not a unified social credit code: a check character is wrong")
    return text


Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_nfc)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_nfc)]
OrgId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{1,31}$")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
FieldName = Annotated[
    str, StringConstraints(pattern=r"^[^\s\x00-\x1f]{1,64}$"), AfterValidator(_nfc)
]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Uscc = Annotated[
    str, StringConstraints(pattern=r"^[0-9A-HJ-NPQRTUWXY]{18}$"), AfterValidator(_uscc)
]
DigestBegin = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]  # as people give it
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
AlgorithmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
Base64 = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_base64)]
Pem = Annotated[
    str, StringConstraints(max_length=8192, pattern=r"^-----BEGIN [A-Z ]+-----\n[A-Za-z0-9+/=\n-]+")
]
Time = Annotated[str, AfterValidator(_utc)]
Date = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
DecimalText = Annotated[str, StringConstraints(max_length=32), AfterValidator(_decimal)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]


def utc_text(moment: datetime) -> str:
    """A time as it stands in signed objects."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_time(text: str) -> datetime:
    """The time that a signed object's text means."""
    return datetime.fromisoformat(text)


class SignedObject(BaseModel):
    """Base of everything that goes into an envelope; `kind` is part of the signed bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, hide_input_in_errors=True)

    kind: ClassVar[str]
    v: Literal[1] = 1

    def payload(self) -> bytes:
        """Canonical JSON: what is signed."""
        return canonical.dumps(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the payload, the object's id."""
        return hashlib.sha256(self.payload()).hexdigest()


class Part(BaseModel):
    """Base of what stands inside signed objects."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


# --- organisations and their keys -----------------------------------------------------------------


class Usage(StrEnum):
    """What a key is for; a key has exactly one usage."""

    ADMIN = "admin"  # signs the card, that is all other keys
    PROPOSE = "propose"
    APPROVE = "approve"
    GRANT = "grant"
    CERTIFY = "certify"  # enterprises' keys (federation/grants.py)
    REQUEST = "request"
    ANSWER = "answer"
    RUN = "run"
    LOG = "log"
    WITNESS = "witness"
    ENCRYPT = "encrypt"
    MASK = "mask"  # pairwise seeds of zero-sum masks
    NODE = "node"  # Flower's authentication of the node
    TLS = "tls"


class OrgKind(StrEnum):
    """What an organisation is in the network."""

    DEPARTMENT = "department"
    BANK = "bank"
    GUARANTOR = "guarantor"
    UTILITY = "utility"
    PLATFORM = "platform"
    AUDITOR = "auditor"
    ENTERPRISE = "enterprise"  # grants and revokes; takes part in no job


class KeyStatus(StrEnum):
    """Whether a key may be used; a hold can be lifted, a revocation cannot.

    What a retired key signed while it was active still holds; a revoked key's signatures do not,
    unless a log shows that they are older.
    """

    ACTIVE = "active"
    HOLD = "hold"
    RETIRED = "retired"  # a newer key took its place
    REVOKED = "revoked"


KEY_LIFE_MAX = timedelta(days=366)


class KeyRecord(Part):
    """A public key as its organisation's card certifies it."""

    key_id: KeyId  # SHA-256 of the SPKI, its first 16 bytes
    usage: Usage
    alg: AlgorithmName
    spki: Base64  # DER
    holder: Name  # the officer or service that has the private half
    not_before: Time
    not_after: Time
    status: KeyStatus = KeyStatus.ACTIVE
    since: Time | None = None  # of a status that is not active
    reason: Text = ""
    # Of a key that a person keeps apart: its own signature on what it is for, once and for all
    # cards (federation/possession.py). Without one the key signs every card that it stands in.
    proof: Base64 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if hashlib.sha256(base64.b64decode(self.spki)).hexdigest()[:32] != self.key_id:
            raise ValueError("the key id is not that of the key")
        life = utc_time(self.not_after) - utc_time(self.not_before)
        if not timedelta(0) < life <= KEY_LIFE_MAX:
            raise ValueError(f"a key lives at most {KEY_LIFE_MAX.days} days")
        if (self.status is KeyStatus.ACTIVE) != (self.since is None):
            raise ValueError("the end of a key's activity, and only that, has a time")
        return self


class Card(SignedObject):
    """Who an organisation is, and all its public keys.

    Signed by its admin key and, as proof of possession, by each signing key in it that is active
    and brings no proof of its own.
    Whether certificates and keys fit together is checked in `federation/trust.py`.
    """

    kind: ClassVar[str] = "card"

    org: OrgId
    name: Name  # for display; the identity is `uscc`
    org_kind: OrgKind
    uscc: Uscc
    region: Name
    profile: ObjectName = "intl"  # of cryptography; see federation/profile.py
    serial: Annotated[int, Field(ge=1, lt=1 << 53)] = 1  # grows with every new card
    created: Time
    keys: Annotated[tuple[KeyRecord, ...], Field(min_length=1, max_length=256)]
    ca_certificate: Pem
    tls_certificate: Pem
    node_key: Pem | None = None  # as Flower stores it

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({key.key_id for key in self.keys}) != len(self.keys):
            raise ValueError("each key stands once in a card, with one usage")
        admins = [key.status for key in self.keys if key.usage is Usage.ADMIN]
        if admins.count(KeyStatus.ACTIVE) != 1 or KeyStatus.HOLD in admins:
            raise ValueError("a card has exactly one admin key that is not replaced")
        if not self.of_usage(Usage.TLS):
            raise ValueError("a card has an active tls key")
        return self

    def of_usage(self, usage: Usage) -> tuple[KeyRecord, ...]:
        """The keys for that use that are neither on hold nor revoked."""
        return tuple(
            key for key in self.keys if key.usage is usage and key.status is KeyStatus.ACTIVE
        )

    @property
    def admin(self) -> KeyRecord:
        """The key that certifies all others."""
        return self.of_usage(Usage.ADMIN)[0]

    @property
    def first_admin(self) -> KeyRecord:
        """The admin key of the first card: what never changes about an organisation's home."""
        admins = [key for key in self.keys if key.usage is Usage.ADMIN]
        return min(admins, key=lambda key: (key.not_before, key.key_id))

    def fingerprint(self) -> str:
        """What two officers read to each other: SHA-256 of the admin key, in groups of four."""
        text = hashlib.sha256(base64.b64decode(self.admin.spki)).hexdigest()
        return "-".join(text[i : i + 4] for i in range(0, 64, 4))


# --- jobs -----------------------------------------------------------------------------------------


class Role(StrEnum):
    """What a party does in a job."""

    BANK = "bank"
    DEPARTMENT = "department"
    PLATFORM = "platform"


class Purpose(StrEnum):
    """The closed list of purposes; exactly one a job or grant."""

    CREDIT_MODEL_TRAINING = "credit-model-training"
    CREDIT_DECISION = "credit-decision"
    POST_LOAN_MONITORING = "post-loan-monitoring"


class CoverKind(StrEnum):
    """Which rows a job runs over (PROTOCOLS.md section 0)."""

    REGISTRY = "registry"
    DECOY = "decoy"
    CUSTOMERS = "customers"


class JobParty(Part):
    """One party of a job and exactly what it brings."""

    org: OrgId
    role: Role
    dataset: ObjectName | None = None  # None for the platform
    catalogue_digest: Digest | None = None  # of the dataset's signed catalogue entry
    fields: tuple[FieldName, ...] = ()
    # Who must approve for it at least: two from field level L3 up (federation/persons.py).
    persons: Annotated[int, Field(ge=1, le=2)] = 1

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.role is Role.PLATFORM:
            if self.dataset is not None or self.catalogue_digest is not None or self.fields:
                raise ValueError("the platform brings no data")
        elif self.dataset is None or self.catalogue_digest is None:
            raise ValueError(f"{self.org} brings a dataset with its catalogue digest")
        elif len(set(self.fields)) != len(self.fields) or (
            self.role is Role.DEPARTMENT and not self.fields
        ):
            raise ValueError(f"{self.org} brings at least one field, each once")
        return self


class RegistrySnapshot(Part):
    """The public list of enterprises that the job's rows refer to."""

    digest: Digest
    rows: Count
    region: Name
    as_of: Date


class CoverRule(Part):
    """Which registry rows take part; the exact list is the bank's, its size is everybody's."""

    kind: CoverKind = CoverKind.REGISTRY
    decoys: Annotated[int, Field(ge=2, le=1000)] | None = None  # k of decoy:k
    rows: Count

    @model_validator(mode="after")
    def _k_for_decoys_only(self) -> Self:
        if (self.kind is CoverKind.DECOY) != (self.decoys is not None):
            raise ValueError("`decoys` goes with the cover kind `decoy`, and only with it")
        return self


class ScorecardParameters(Part):
    """Binning, fit and scaling of a scorecard (PROTOCOLS.md section 7)."""

    max_bins: Annotated[int, Field(ge=2, le=63)] = 32  # pre-bins a feature, missing bin besides
    min_cohort: Annotated[int, Field(ge=5)] = 50
    monotone: tuple[FieldName, ...] = ()  # features whose bad rate must run one way over the bins
    min_iv: DecimalText = "0.00"  # features below take no part in the fit
    penalty: DecimalText = "1.0"  # L2 on WOE coefficients, as 1/C of scikit-learn
    openings: Annotated[int, Field(ge=0, le=20)] = 3
    resolution: DecimalText = "0.25"  # of an opened training score, in logits
    score_range: DecimalText = "8"  # opened training scores are clipped to +- this, in logits
    evaluation: bool = True  # one score in points a customer is opened at the end
    hold_out: DecimalText = "0.30"
    base_score: Annotated[int, Field(ge=0, le=10_000)] = 600
    base_odds: Annotated[int, Field(ge=1, le=100_000)] = 20  # goods to one bad at the base score
    pdo: Annotated[int, Field(ge=1, le=1000)] = 40  # points that double the odds
    reason_codes: Annotated[int, Field(ge=0, le=10)] = 4

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        ranges = {
            "min_iv": ("0", "10"),
            "penalty": ("0.0001", "1000000"),
            "resolution": ("0.01", "4"),
            "score_range": ("1", "32"),
            "hold_out": ("0.05", "0.9"),
        }
        for name, (low, high) in ranges.items():
            if not Decimal(low) <= Decimal(getattr(self, name)) <= Decimal(high):
                raise ValueError(f"{name} is between {low} and {high}")
        return self


class TreesParameters(Part):
    """Binning, growth and limits of boosted trees (PROTOCOLS.md section 7)."""

    max_bins: Annotated[int, Field(ge=2, le=63)] = 32  # pre-bins a feature, missing bin besides
    min_cohort: Annotated[int, Field(ge=5)] = 50  # training customers of a leaf
    trees: Annotated[int, Field(ge=1, le=1000)] = 30
    # Trees that put queries to the departments, from the first; later ones grow on the bank's
    # features and on the thresholds that are open by then, which asks nobody. None: all.
    joint_trees: Annotated[int, Field(ge=1, le=1000)] | None = None
    growth: Literal["depth", "leaf"] = "depth"
    max_depth: Annotated[int, Field(ge=1, le=10)] = 5
    max_leaves: Annotated[int, Field(ge=2, le=1024)] = 32  # of a tree grown leaf by leaf
    hessians: bool = True  # False: half the queries; curvature of a department's bins is estimated
    thresholds: Annotated[int, Field(ge=1, le=126)] = 3  # distinct, of a department's feature
    # Departments are not asked about smaller nodes: few customers a bin are named by their sums.
    ask_customers: Annotated[int, Field(ge=0)] = 500
    learning_rate: DecimalText = "0.2"
    l2: DecimalText = "1.0"
    min_child_weight: DecimalText = "1.0"  # least sum of hessians in a leaf
    min_gain: DecimalText = "0.0"
    row_sample: DecimalText = "1.0"  # part of the training customers that a tree is grown on
    feature_sample: DecimalText = "1.0"  # part of the features that a tree may use
    validation: DecimalText = "0.0"  # part of the training customers that decides when to stop
    patience: Annotated[int, Field(ge=0, le=1000)] = 0  # trees without gain there; 0: never stop
    increasing: tuple[FieldName, ...] = ()  # features in which the risk never falls
    decreasing: tuple[FieldName, ...] = ()  # features in which the risk never rises
    bad_weight: DecimalText = "1.0"  # of a bad customer, a good one weighs 1
    hold_out: DecimalText = "0.30"
    base_score: Annotated[int, Field(ge=0, le=10_000)] = 600
    base_odds: Annotated[int, Field(ge=1, le=100_000)] = 20  # goods to one bad at the base score
    pdo: Annotated[int, Field(ge=1, le=1000)] = 40  # points that double the odds
    reason_codes: Annotated[int, Field(ge=0, le=10)] = 4

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        shares = {"learning_rate": (0, 1), "row_sample": (0, 1), "feature_sample": (0, 1)}
        for name, (low, high) in shares.items():
            if not low < Decimal(getattr(self, name)) <= high:
                raise ValueError(f"{name} is above {low} and at most {high}")
        for name in ("validation", "hold_out"):
            if not 0 <= Decimal(getattr(self, name)) <= Decimal("0.9"):
                raise ValueError(f"{name} is between 0 and 0.9")
        for name in ("l2", "min_child_weight", "min_gain"):
            if not 0 <= Decimal(getattr(self, name)) <= 10**6:
                raise ValueError(f"{name} is between 0 and 1,000,000")
        if not Decimal("0.01") <= Decimal(self.bad_weight) <= 100:
            raise ValueError("bad_weight is between 0.01 and 100")
        if self.patience and not Decimal(self.validation):
            raise ValueError("patience needs a validation part to watch")
        if set(self.increasing) & set(self.decreasing):
            raise ValueError("a feature is increasing or decreasing, not both")
        if (self.joint_trees or 1) > self.trees:
            raise ValueError("joint_trees is at most the number of trees")
        return self


class NeuralParameters(Part):
    """A network that banks with the same fields train together (PROTOCOLS.md section 7)."""

    model: Literal["mlp", "tabular", "installed"] = "mlp"
    # Of `installed`: a factory under the entry point group `lianmo.models`, and the digest of its
    # package as every party has it (`federation/tasks/neural_model.py`).
    module: Name | None = None
    module_sha256: Digest | None = None
    categories: tuple[FieldName, ...] = ()  # all other fields are numbers
    buckets: Annotated[int, Field(ge=2, le=4096)] = 32  # that a category's text is hashed into
    embedding: Annotated[int, Field(ge=1, le=64)] = 4
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(max_length=6)] = (
        64,
        32,
    )
    rounds: Annotated[int, Field(ge=1, le=1000)] = 20
    epochs: Annotated[int, Field(ge=1, le=20)] = 1  # of a bank's own customers, each round
    batch: Annotated[int, Field(ge=8, le=65536)] = 256
    learning_rate: DecimalText = "0.01"
    weight_decay: DecimalText = "0.0001"
    strategy: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    proximal: DecimalText = "0.01"  # of fedprox
    server_rate: DecimalText = "0.01"  # of fedadam
    clip: DecimalText = "10"  # L2 norm of what a bank's weights move by in a round
    # With a budget every step is one noisy sum over all banks; `noise` is the multiplier that keeps
    # `rounds` x `steps` of them within (epsilon, delta) for each customer.
    epsilon: DecimalText | None = None
    delta: DecimalText = "0.00001"
    noise: DecimalText | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 10  # a round, with a budget
    sample_rate: DecimalText = "0.02"  # part of its customers that a bank draws for a step
    example_clip: DecimalText = "1"  # L2 norm of one customer's gradient
    bad_weight: DecimalText = "1.0"
    hold_out: DecimalText = "0.30"
    base_score: Annotated[int, Field(ge=0, le=10_000)] = 600
    base_odds: Annotated[int, Field(ge=1, le=100_000)] = 20
    pdo: Annotated[int, Field(ge=1, le=1000)] = 40
    min_cohort: Annotated[int, Field(ge=5)] = 50  # customers of a class at each bank

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        ranges = {
            "learning_rate": ("0.000001", "1"),
            "weight_decay": ("0", "1"),
            "proximal": ("0", "100"),
            "server_rate": ("0.000001", "10"),
            "clip": ("0.01", "1000"),
            "delta": ("0.000000000001", "0.01"),
            "sample_rate": ("0.0001", "1"),
            "example_clip": ("0.001", "100"),
            "bad_weight": ("0.01", "100"),
            "hold_out": ("0.05", "0.9"),
        }
        for name, (low, high) in ranges.items():
            if not Decimal(low) <= Decimal(getattr(self, name)) <= Decimal(high):
                raise ValueError(f"{name} is between {low} and {high}")
        if (self.model == "installed") != (
            self.module is not None and self.module_sha256 is not None
        ):
            raise ValueError("`module` with its digest goes with the model `installed`")
        if self.epsilon is not None and not 0 < Decimal(self.epsilon) <= 1000:
            raise ValueError("epsilon is above 0 and at most 1000")
        if (self.epsilon is None) != (self.noise is None):
            raise ValueError("a budget has its noise multiplier, and only a budget has one")
        if self.noise is not None and not 0 < Decimal(self.noise) <= 1000:
            raise ValueError("noise is above 0 and at most 1000")
        return self


class QueryParameters(Part):
    """Parameters of the linear query that the job's figures need (PROTOCOLS.md section 3)."""

    t_bits: Annotated[int, Field(ge=8, le=40)]
    reply_bits: Annotated[int, Field(ge=32, le=52)]
    vmax: Annotated[int, Field(ge=1, le=1 << 20)]


def is_private(parameters: object) -> bool:
    """Whether the task keeps a budget of differential privacy."""
    return isinstance(parameters, NeuralParameters) and parameters.epsilon is not None


class Limits(Part):
    """What the job may use at most; the owners' gates hold it to that."""

    customers_max: Count  # the true number stays unknown
    row_keys: Count  # so many the bank can get from a department, whatever it does: `alignment`
    customers_min: Count  # the bank's claim; exposure = tokens / customers_min
    tokens: Count  # linear queries a department answers at most
    tokens_between: Count = 0  # of department to department, a pair
    wall_time_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 3600
    # Runs of the job at most, the first one included: a party that was lost costs one. What is
    # disclosed is declared of one run, so all of them together disclose that so many times at most.
    attempts: Annotated[int, Field(ge=1, le=5)] = 3


PARAMETERS: dict[str, type[ScorecardParameters | TreesParameters | NeuralParameters]] = {
    "scorecard": ScorecardParameters,
    "trees": TreesParameters,
    "neural": NeuralParameters,
}
OF_SEVERAL_BANKS = frozenset(
    {"neural", "scorecard", "trees"}
)  # tasks that sum over banks before they open
OF_BANKS_ALONE = frozenset({"neural"})  # without departments


class AuditRule(Part):
    """Who can open the bank's queries afterwards (`federation.escrow`); nobody by default."""

    auditors: Annotated[tuple[OrgId, ...], Field(max_length=64)] = ()
    threshold: Annotated[int, Field(ge=2, le=64)] = 2  # so many of them together

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if len(set(self.auditors)) != len(self.auditors):
            raise ValueError("each auditor is named once")
        if self.auditors and self.threshold > len(self.auditors):
            raise ValueError(f"{self.threshold} auditors are to agree, {len(self.auditors)} named")
        return self


class DeclaredDisclosure(Part):
    """One line of what one run of the job discloses; see `federation.ledger`."""

    source: OrgId
    to: OrgId
    what: What
    count: Count
    bits: Annotated[int, Field(ge=0, le=64)]
    per_enterprise: bool = False

    def entry(self) -> Disclosure:
        """The same as the ledger holds it."""
        return Disclosure(
            self.source, self.to, self.what, self.count, self.bits, self.per_enterprise
        )


class JobManifest(SignedObject):
    """Everything that a job is: what is approved is the digest of this object."""

    kind: ClassVar[str] = "job-manifest"

    job: ObjectName
    created: Time
    purpose: Purpose
    task: Literal["scorecard", "trees", "neural"] = "scorecard"
    parties: tuple[JobParty, ...]
    registry: RegistrySnapshot
    cover: CoverRule
    alignment: Literal["voprf", "set"]  # how row keys are agreed on (protocols/row_key_agreement)
    package_sha256: Digest
    parameters: ScorecardParameters | TreesParameters | NeuralParameters  # those of the task
    query: QueryParameters | None = None  # None without departments
    limits: Limits
    disclosures: tuple[DeclaredDisclosure, ...]
    audit: AuditRule = AuditRule()
    outputs: tuple[OrgId, ...]  # who receives the model's report
    not_before: Time
    expires: Time
    previous: Digest | None = None

    _viewed: str = PrivateAttr(default="")

    @field_validator("parameters", mode="before")
    @classmethod
    def _of_the_task(cls, value: object, info: ValidationInfo) -> object:
        # By the task's name, never by which class happens to fit.
        kind = PARAMETERS.get(str(info.data.get("task")), ScorecardParameters)
        return value if isinstance(value, Part) else kind.model_validate(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if type(self.parameters) is not PARAMETERS[self.task]:
            raise ValueError("the parameters are those of another task")
        orgs = [party.org for party in self.parties]
        if len(set(orgs)) != len(orgs):
            raise ValueError("each organisation is named once")
        banks, departments = self.of_role(Role.BANK), self.of_role(Role.DEPARTMENT)
        if not banks or (len(banks) > 1 and self.task not in OF_SEVERAL_BANKS):
            raise ValueError(f"a job of {self.task} has one bank")
        if bool(departments) == (self.task in OF_BANKS_ALONE):
            raise ValueError("departments take part in every task but those of banks alone")
        if (self.query is None) != (not departments):
            raise ValueError("query parameters go with departments, and only with them")
        if not departments and len({self.party(org).fields for org in banks}) != 1:
            raise ValueError("banks that train alone have the same fields, in the same order")
        if len(self.of_role(Role.PLATFORM)) > 1:
            raise ValueError("a job has at most one platform")
        if not set(self.outputs) <= set(orgs):
            raise ValueError("outputs go to parties of the job")
        if set(self.audit.auditors) & set(orgs):
            raise ValueError("no party of the job audits it")
        if self.audit.auditors and (len(banks) > 1 or self.task == "neural"):
            # Each bank of several would have to seal its own seed; the neural task has no queries.
            raise ValueError("auditors are for jobs in which one bank puts queries")
        if self.not_before >= self.expires:
            raise ValueError("the job expires before it may begin")
        if not 0 < self.limits.customers_min <= self.limits.customers_max <= self.cover.rows:
            raise ValueError("0 < customers_min <= customers_max <= rows of the cover")
        if self.limits.row_keys < self.limits.customers_max:
            raise ValueError("a row key for each of customers_max")
        return self

    def of_role(self, role: Role) -> tuple[str, ...]:
        """The organisations with that role, in the manifest's order."""
        return tuple(party.org for party in self.parties if party.role is role)

    @property
    def bank(self) -> str:
        """The label owner; of several the proposer, or the one that this view is about."""
        return self._viewed or self.of_role(Role.BANK)[0]

    def seen_from(self, bank: str) -> Self:
        """The same manifest, digest and all, as what lies between one bank and the departments."""
        if bank not in self.banks:
            raise ValueError(f"{bank} is no bank of the job")
        view = self.model_copy()
        view._viewed = bank
        return view

    @property
    def banks(self) -> tuple[str, ...]:
        """All label owners, the proposer first."""
        return self.of_role(Role.BANK)

    @property
    def platform(self) -> str:
        """The platform, empty if it is no party."""
        return next(iter(self.of_role(Role.PLATFORM)), "")

    @property
    def departments(self) -> tuple[str, ...]:
        """The feature owners, in the manifest's order."""
        return self.of_role(Role.DEPARTMENT)

    @property
    def scorecard(self) -> ScorecardParameters:
        """The parameters of a scorecard; TypeError if the task is another one."""
        if not isinstance(self.parameters, ScorecardParameters):
            raise TypeError(f"{self.task} is not a scorecard")
        return self.parameters

    @property
    def trees(self) -> TreesParameters:
        """The parameters of boosted trees; TypeError if the task is another one."""
        if not isinstance(self.parameters, TreesParameters):
            raise TypeError(f"{self.task} is not boosted trees")
        return self.parameters

    @property
    def neural(self) -> NeuralParameters:
        """The parameters of a network; TypeError if the task is another one."""
        if not isinstance(self.parameters, NeuralParameters):
            raise TypeError(f"{self.task} is not a network")
        return self.parameters

    def party(self, org: str) -> JobParty:
        """The entry of one organisation; KeyError if it has none."""
        return {party.org: party for party in self.parties}[org]

    def approvers(self) -> tuple[str, ...]:
        """Who must approve: everybody but the proposer, whose signature is on the manifest."""
        return tuple(party.org for party in self.parties if party.org != self.bank)


class Narrowing(Part):
    """What an owner would approve instead: less of the same job (federation/narrowing.py)."""

    drop_fields: tuple[FieldName, ...] = ()  # of this owner's own
    openings: Annotated[int, Field(ge=0, le=20)] | None = None  # of a scorecard, at most
    evaluation: Literal[False] | None = None  # of a scorecard: no score a customer at the end
    trees: Annotated[int, Field(ge=1, le=1000)] | None = None  # that ask the departments, at most
    attempts: Annotated[int, Field(ge=1, le=5)] | None = None  # at most
    expires: Time | None = None  # at the latest

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if len(set(self.drop_fields)) != len(self.drop_fields):
            raise ValueError("a field is dropped once")
        if self == type(self).model_construct():
            raise ValueError("a narrowing takes something away")
        return self


class Decision(StrEnum):
    """What an approver says."""

    APPROVE = "approve"
    REFUSE = "refuse"
    WITHDRAW = "withdraw"


class Approval(SignedObject):
    """One organisation's word on exactly one manifest."""

    kind: ClassVar[str] = "approval"

    manifest: Digest
    org: OrgId
    decision: Decision
    code: RefusalCode | None = None
    words: Text = ""
    narrowing: Narrowing | None = None  # a counter-proposal; nothing runs because of it
    created: Time
    valid_from: Time
    valid_until: Time
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if (self.decision is Decision.REFUSE) != (self.code is not None):
            raise ValueError("a refusal, and only a refusal, has a justification code")
        if self.narrowing is not None and self.decision is not Decision.REFUSE:
            raise ValueError("a counter-proposal goes with a refusal")
        if self.valid_from >= self.valid_until:
            raise ValueError("the approval ends before it begins")
        return self


class Committed(Part):
    """What one party committed to before the run, as the signer of a record saw it."""

    org: OrgId
    what: Name  # seed, nonce, customers, labels, columns, matrix NAME, escrow, agreement
    digest: Digest


class RunRecord(SignedObject):
    """What one party really did in one attempt, signed by its node's `run` key."""

    kind: ClassVar[str] = "run-record"

    job: ObjectName
    manifest: Digest
    org: OrgId
    attempt: Count
    package_sha256: Digest  # as this node computed it
    fab_sha256: Digest
    run_config_sha256: Digest
    snapshot: Digest  # of the rows and columns that the gate handed out, salted
    commitments: tuple[Digest, ...]  # of seed and matrix, made before the run
    committed: tuple[Committed, ...] = ()  # by all parties, in the order of seeing it
    transcript: tuple[tuple[OrgId, Digest, Digest], ...]  # peer, frames sent, frames received
    disclosures: tuple[DeclaredDisclosure, ...]
    tokens: Count
    output: Digest | None  # of this party's part of the model
    outcome: Literal["succeeded", "failed", "refused", "stopped"]
    stage: Text
    started: Time
    ended: Time
