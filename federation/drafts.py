"""From a bank's `job.toml` to the manifest that everybody approves.

A draft says what a person decides: which datasets and fields, which rows, which limits. The rest of
the manifest (query parameters, token count, disclosures) follows from it by the task's own rules,
which the reviewers' and the owners' nodes compute again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from federation.catalogue import Dataset, Operation, require_usable
from federation.errors import LianmoError, NotFound, RefusalCode, Refused, UsageError
from federation.objects import (
    AuditRule,
    CoverKind,
    CoverRule,
    FieldName,
    JobManifest,
    JobParty,
    Limits,
    NeuralParameters,
    ObjectName,
    OrgId,
    Purpose,
    RegistrySnapshot,
    Role,
    ScorecardParameters,
    Time,
    TreesParameters,
    is_private,
    utc_text,
    utc_time,
)
from federation.persons import persons_for
from federation.privacy import noise_for
from federation.tasks import registry as registry_of_tasks
from federation.tasks import row_keys, trees_plan


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetDraft(_Part):
    """Which dataset of whom, and which of its fields; none named means all features."""

    org: OrgId
    dataset: ObjectName
    fields: tuple[FieldName, ...] | None = None


class CoverDraft(_Part):
    """Which registry rows the job runs over."""

    kind: CoverKind = CoverKind.REGISTRY
    decoys: int | None = None


class LimitsDraft(_Part):
    """What the job may use at most."""

    customers_max: Annotated[int, Field(ge=1)]
    customers_min: Annotated[int, Field(ge=1)]
    wall_time_s: Annotated[int, Field(ge=60, le=30 * 86400)] = 3600
    attempts: Annotated[int, Field(ge=1, le=5)] | None = None  # 3; with a privacy budget 1


class JobDraft(_Part):
    """A bank's `job.toml`."""

    job: ObjectName
    purpose: Purpose = Purpose.CREDIT_MODEL_TRAINING
    days: Annotated[int, Field(ge=1, le=365)] = 30
    until: Time | None = None  # the job ends then at the latest, whatever `days` says
    platform: OrgId | None = None
    bank: DatasetDraft
    other_bank: tuple[DatasetDraft, ...] = ()  # further label owners
    department: tuple[DatasetDraft, ...] = ()
    cover: CoverDraft = CoverDraft()
    limits: LimitsDraft
    audit: AuditRule = AuditRule()
    scorecard: ScorecardParameters = ScorecardParameters()
    trees: TreesParameters | None = None  # a [trees] table makes it a job of boosted trees
    neural: NeuralParameters | None = None  # a [neural] table: banks alone train a network

    @field_validator("neural", mode="before")
    @classmethod
    def _with_noise(cls, given: object) -> object:
        """The noise that a budget needs, unless the draft says another one."""
        if isinstance(given, dict) and given.get("epsilon") is not None and "noise" not in given:
            return given | {"noise": _noise(given)}
        return given

    @property
    def parameters(self) -> ScorecardParameters | TreesParameters | NeuralParameters:
        """Those of the job's task."""
        return self.neural or self.trees or self.scorecard

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if len({"scorecard", "trees", "neural"} & self.model_fields_set) > 1:
            raise ValueError("a job has one task: [scorecard], [trees] or [neural]")
        if not self.department and self.neural is None:
            raise ValueError("a job has at least one [[department]], unless banks train alone")
        return self

    @model_validator(mode="after")
    def _orgs_once(self) -> Self:
        banks = (self.bank, *self.other_bank)
        orgs = [part.org for part in (*banks, *self.department)]
        if len(set(orgs)) != len(orgs):
            raise ValueError("each organisation is named once")
        return self


def _noise(given: dict[str, object]) -> str:
    plain = NeuralParameters.model_validate({**given, "epsilon": None, "noise": None})
    steps, rate = plain.rounds * plain.steps, float(plain.sample_rate)
    found = noise_for(float(str(given["epsilon"])), rate, steps, float(plain.delta))
    return f"{found:.2f}"


def parse(text: str) -> JobDraft:
    """The draft in a `job.toml`; raises UsageError that names every wrong entry."""
    try:
        return JobDraft.model_validate(tomllib.loads(text), strict=False)
    except tomllib.TOMLDecodeError as error:
        todo = "correct the draft; `lianmo job new` writes one with comments"
        raise UsageError(f"not valid TOML: {error}", todo=todo) from None
    except ValidationError as error:
        raise UsageError(
            "; ".join(_complaints(error)), todo="see `lianmo job new --help`"
        ) from None


def _complaints(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(str(part) for part in item['loc']) or 'the file'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    ]


TEMPLATE = """\
# A joint-modelling job. `lianmo job submit {job}.toml` signs it and asks every owner.
job = "{job}"
purpose = "credit-model-training"
days = 30 # the job and its approvals end after this
{platform}
[bank]
org = "{bank}"
dataset = "{dataset}"
# fields = ["..."] # without this line: every feature that is open to training
{departments}
[cover]
kind = "registry" # every enterprise of the snapshot: departments do not learn who is a customer
# kind = "decoy"     # customers and k-1 decoys for each; then also: decoys = 10
# kind = "customers" # shows the departments exactly who the customers are

[limits]
customers_max = {customers_max} # row keys are made for so many; the true number stays yours
customers_min = {customers_min} # what you promise to have at least; exposure = queries / this
attempts = 3 # runs at most: one that lost a party is followed by another, and discloses again

# [audit] # two of these together can open your queries afterwards; nobody else ever can
# auditors = ["audit_a", "audit_b", "audit_c"]
# threshold = 2

"""

SCORECARD = """\
[scorecard]
openings = {openings} # rounded partial scores opened for each customer while fitting; 0: none
evaluation = true # one score in whole points a customer is opened at the end, for the report
"""

TREES = """\
[trees] # boosted trees; `lianmo job estimate {job}.toml` says what they would cost
trees = {trees}
max_depth = {max_depth}
learning_rate = "{learning_rate}"
thresholds = {thresholds} # distinct ones of a department's feature; each shows a bit a customer
hessians = {hessians} # false: half the questions
{joint}{offers}"""


def template(
    job: str,
    *,
    bank: str,
    dataset: str,
    departments: Sequence[tuple[str, str]],
    platform: str | None,
    customers_max: int,
    customers_min: int,
    openings: int = 3,
    task: str = "scorecard",
) -> str:
    """A `job.toml` with comments that teach.

    Trees begin with the first settings within the exposure budget; the cheaper ones are named.
    """
    parts = [f'\n[[department]]\norg = "{org}"\ndataset = "{name}"\n' for org, name in departments]
    whole = TEMPLATE.format(
        job=job,
        bank=bank,
        dataset=dataset,
        departments="".join(parts),
        platform=f'platform = "{platform}"\n' if platform else "",
        customers_max=customers_max,
        customers_min=customers_min,
    )
    if task == "trees":
        return whole + _trees_section(job, customers_min)
    return whole + SCORECARD.format(openings=openings)


def _trees_section(job: str, customers_min: int) -> str:
    usual = TreesParameters()
    found = trees_plan.offers(usual, customers_min)
    taken = found[0].parameters if found else usual
    lines = [
        f"# exposure {item.exposure:.4f}, {item.tokens} questions: {item.what}" for item in found
    ]
    if not found:
        lines = [f"# {customers_min:,} customers are too few for any trees within exposure 0.05"]
    return TREES.format(
        job=job,
        trees=taken.trees,
        max_depth=taken.max_depth,
        learning_rate=taken.learning_rate,
        thresholds=taken.thresholds,
        hessians=str(taken.hessians).lower(),
        joint=f"joint_trees = {taken.joint_trees}\n" if taken.joint_trees else "",
        offers="".join(f"{line}\n" for line in ["# Within a department's budget:", *lines]),
    )


def build(
    draft: JobDraft,
    *,
    catalogue: Mapping[tuple[str, str], Dataset],
    registry: RegistrySnapshot,
    cover_rows: int,
    package_sha256: str,
    now: datetime,
    previous: str | None = None,
) -> JobManifest:
    """The manifest of a draft.

    catalogue: the signed entries, by owner and dataset name. Raises NotFound for a dataset that is
    not published, Refused for a field that its owner does not open, UsageError for figures that do
    not fit together, ParameterError-like reasons from the query as UsageError.
    """
    bank = _party(draft.bank, Role.BANK, draft, catalogue)
    others = [_party(item, Role.BANK, draft, catalogue) for item in draft.other_bank]
    departments = [_party(item, Role.DEPARTMENT, draft, catalogue) for item in draft.department]
    platform = [JobParty(org=draft.platform, role=Role.PLATFORM)] if draft.platform else []
    task = registry_of_tasks.task_of(draft.parameters)
    query, tokens, between = task.plan(
        rows=cover_rows,
        customers_max=draft.limits.customers_max,
        bank_fields=len(bank.fields),
        department_fields={party.org: len(party.fields) for party in departments},
        parameters=draft.parameters,
        banks=1 + len(others),
    )
    alignment, number = row_keys.agreed(draft.limits.customers_max)
    try:
        manifest = JobManifest(
            job=draft.job,
            created=utc_text(now),
            purpose=draft.purpose,
            task=registry_of_tasks.name_of(draft.parameters),
            parties=(bank, *others, *departments, *platform),
            registry=registry,
            cover=CoverRule(kind=draft.cover.kind, decoys=draft.cover.decoys, rows=cover_rows),
            alignment=alignment,
            package_sha256=package_sha256,
            parameters=draft.parameters,
            query=query,
            limits=Limits(
                customers_max=draft.limits.customers_max,
                row_keys=number,
                customers_min=draft.limits.customers_min,
                tokens=tokens,
                tokens_between=between,
                wall_time_s=draft.limits.wall_time_s,
                attempts=draft.limits.attempts or (1 if is_private(draft.parameters) else 3),
            ),
            disclosures=(),
            audit=draft.audit,
            outputs=(bank.org, *(party.org for party in others)),
            not_before=utc_text(now),
            expires=utc_text(_end(draft, now)),
            previous=previous,
        )
    except ValidationError as error:
        raise UsageError("; ".join(_complaints(error))) from None
    return manifest.model_copy(update={"disclosures": task.declare(manifest)})


def of_manifest(manifest: JobManifest, job: str) -> JobDraft:
    """The draft from which a manifest like this one would come again, under another name."""

    def part(org: str) -> DatasetDraft:
        party = manifest.party(org)
        return DatasetDraft(org=org, dataset=party.dataset or "", fields=party.fields)

    limits = manifest.limits
    life = utc_time(manifest.expires) - utc_time(manifest.not_before)
    return JobDraft.model_validate(
        {
            "job": job,
            "purpose": manifest.purpose,
            "days": max(1, life.days),
            "platform": next(iter(manifest.of_role(Role.PLATFORM)), None),
            "bank": part(manifest.bank),
            "other_bank": tuple(part(org) for org in manifest.banks[1:]),
            "department": tuple(part(org) for org in manifest.departments),
            "cover": CoverDraft(kind=manifest.cover.kind, decoys=manifest.cover.decoys),
            "limits": LimitsDraft(
                customers_max=limits.customers_max,
                customers_min=limits.customers_min,
                wall_time_s=max(60, limits.wall_time_s),
                attempts=limits.attempts,
            ),
            "audit": manifest.audit,
            manifest.task: manifest.parameters,
        }
    )


def _end(draft: JobDraft, now: datetime) -> datetime:
    end = now + timedelta(days=draft.days)
    return end if draft.until is None else min(end, utc_time(draft.until))


def _party(
    item: DatasetDraft,
    role: Role,
    draft: JobDraft,
    catalogue: Mapping[tuple[str, str], Dataset],
) -> JobParty:
    entry = catalogue.get((item.org, item.dataset))
    if entry is None:
        todo = f"ask {item.org} to run `lianmo catalogue publish {item.dataset}`"
        raise NotFound(f"{item.org} has no published dataset {item.dataset}", todo=todo)
    fields = item.fields
    if fields is None:
        fields = tuple(f.name for f in entry.features if Operation.TRAIN in f.ops)
        if not fields and role is Role.DEPARTMENT:
            what = f"no field of dataset {item.dataset} is open to training"
            todo = f"ask {item.org} to offer some: `lianmo catalogue set {item.dataset}`"
            code = RefusalCode.FIELD_LEVEL
            raise Refused(what, code=code, party=item.org, todo=todo)
    try:
        require_usable(
            entry,
            fields,
            role=role,
            purpose=draft.purpose,
            min_cohort=draft.parameters.min_cohort,
        )
    except LianmoError as error:
        error.todo = error.todo or "change the fields or the parameters in the draft"
        raise
    return JobParty(
        org=item.org,
        role=role,
        dataset=item.dataset,
        catalogue_digest=entry.digest(),
        fields=fields,
        persons=persons_for(entry, fields, role),
    )
