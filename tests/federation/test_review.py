"""What an approver sees, and the draft that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from federation import drafts
from federation.catalogue import Dataset, Field, FieldType, Level, Operation
from federation.errors import NotFound, Refused, UsageError
from federation.objects import JobManifest, JobParty, RegistrySnapshot
from federation.review import review

NOW = datetime(2026, 11, 23, tzinfo=UTC)
REGISTRY = RegistrySnapshot(digest="a" * 64, rows=30_000, region="Testville", as_of="2026-10-31")


def dataset(owner: str, name: str, fields: list[str], level: Level = Level.L3) -> Dataset:
    columns = [Field(name="code", type=FieldType.KEY)]
    columns += [Field(name=field, type=FieldType.NUMBER, level=level) for field in fields]
    if owner == "bank":
        columns.append(Field(name="bad", type=FieldType.LABEL))
    return Dataset(
        name=name,
        title=name,
        owner=owner,
        region="Testville",
        legal_basis="test",
        update_frequency="never",
        provenance="made up",
        as_of="2026-10-31",
        rows=1000,
        fields=tuple(columns),
        created="2026-11-01T00:00:00Z",
    )


CATALOGUE = {
    (entry.owner, entry.name): entry
    for entry in (
        dataset("bank", "loans", ["balance", "age"]),
        dataset("tax", "payments", ["paid", "late"]),
        dataset("court", "cases", ["count"]),
    )
}


def text(**changes: str) -> str:
    given = {"job": "spring", "departments": [("tax", "payments"), ("court", "cases")], **changes}
    return drafts.template(
        bank="bank",
        dataset="loans",
        platform="city",
        customers_max=20_000,
        customers_min=18_000,
        **given,  # type: ignore[arg-type]
    )


def build(source: str, catalogue: Mapping[tuple[str, str], Dataset] = CATALOGUE) -> JobManifest:
    return drafts.build(
        drafts.parse(source),
        catalogue=catalogue,
        registry=REGISTRY,
        cover_rows=REGISTRY.rows,
        package_sha256="b" * 64,
        now=NOW,
    )


def test_the_template_is_a_draft_that_builds_a_manifest_of_all_features() -> None:
    manifest = build(text())
    assert manifest.party("bank").fields == ("balance", "age")
    assert manifest.party("tax").fields == ("paid", "late")
    assert manifest.approvers() == ("tax", "court", "city")
    assert manifest.disclosures
    assert manifest.limits.tokens > 0


def test_a_draft_without_fields_takes_those_that_are_open_to_training() -> None:
    paid, late = (CATALOGUE["tax", "payments"].field(name) for name in ("paid", "late"))
    asked = paid.model_copy(update={"ops": (Operation.SCORE,)})

    def party(*fields: Field) -> JobParty:
        kept = [item for item in CATALOGUE["tax", "payments"].fields if not item.is_feature]
        entry = CATALOGUE["tax", "payments"].model_copy(update={"fields": (*kept, *fields)})
        return build(text(), CATALOGUE | {("tax", "payments"): entry}).party("tax")

    assert party(asked, late).fields == ("late",)
    with pytest.raises(Refused, match="no field of dataset payments is open to training"):
        party(asked)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('dataset = "loans"', 'dataset = "loans"\nfarm = 1', "farm"),
        ("openings = 3", "openings = 99", "openings"),
        ("customers_max = 20000", "customers_max = 2", "customers_min"),
        ('kind = "registry"', 'kind = "everybody"', "cover"),
        ('job = "spring"', "job = ", "not valid TOML"),
        ('org = "court"', 'org = "tax"', "named once"),
    ],
)
def test_a_wrong_draft_is_told_by_the_entry(before: str, after: str, complaint: str) -> None:
    source = text()
    assert before in source
    with pytest.raises(UsageError, match=complaint):
        build(source.replace(before, after))


def test_a_dataset_or_field_that_nobody_offers_is_named_with_its_owner() -> None:
    with pytest.raises(NotFound, match="tax has no published dataset debts"):
        build(text().replace('dataset = "payments"', 'dataset = "debts"'))
    with pytest.raises(Refused, match="no field salary"):
        build(text().replace('dataset = "payments"', 'dataset = "payments"\nfields = ["salary"]'))


def test_core_data_is_refused_when_the_job_is_drafted() -> None:
    core = {**CATALOGUE, ("tax", "payments"): dataset("tax", "payments", ["paid"], Level.L5)}
    with pytest.raises(Refused, match="L5"):
        drafts.build(
            drafts.parse(text()),
            catalogue=core,
            registry=REGISTRY,
            cover_rows=REGISTRY.rows,
            package_sha256="b" * 64,
            now=NOW,
        )


def test_the_reader_s_own_disclosures_come_first_and_exposure_adds_up() -> None:
    manifest = build(text())
    found = review(manifest, CATALOGUE, me="court", tokens_before=90)
    own = ["court" in (item.source, item.to) for item in found.disclosures]
    assert own == sorted(own, reverse=True)
    assert any(own)
    (now, with_earlier), *_ = [(a, b) for org, a, b in found.exposure if org == "court"]
    assert with_earlier == pytest.approx(now + 90 / 18_000)
    assert [text for text in found.warnings if "auditors" not in text] == []


def test_a_job_that_nobody_can_audit_is_said_to_be_one() -> None:
    def warned(of: JobManifest) -> bool:
        return any("no auditors" in item for item in review(of, CATALOGUE, me="tax").warnings)

    assert warned(build(text()))
    named = text().replace("[limits]", '[audit]\nauditors = ["aud-a", "aud-b"]\n\n[limits]', 1)
    manifest = build(named)
    assert manifest.audit.auditors == ("aud-a", "aud-b")
    assert manifest.audit.threshold == 2
    assert not warned(manifest)
    with pytest.raises(UsageError, match="3 auditors are to agree"):
        build(named.replace('"aud-b"]', '"aud-b"]\nthreshold = 3', 1))
    with pytest.raises(UsageError, match="no party of the job audits it"):
        build(named.replace('"aud-b"', '"tax"', 1))


def test_too_much_exposure_and_a_cover_that_shows_customers_are_warned_of() -> None:
    manifest = build(text())
    warned = review(manifest, CATALOGUE, me="tax", tokens_before=1_000).warnings
    assert any("the gate refuses" in item for item in warned)
    shown = build(text().replace('kind = "registry"', 'kind = "customers"', 1))
    assert any("customers" in item for item in review(shown, CATALOGUE, me="tax").warnings)


def test_the_difference_names_what_changed_and_nothing_that_moved() -> None:
    before = build(text())
    fewer = build(
        text(departments=[("court", "cases"), ("tax", "payments")])  # type: ignore[arg-type]
        .replace('dataset = "payments"', 'dataset = "payments"\nfields = ["paid"]')
        .replace("openings = 3", "openings = 2")
    )
    changes = review(fewer, CATALOGUE, me="tax", previous=before).changes
    assert changes[0] == "tax: late is no longer read"
    assert "openings: 3 -> 2" in changes
    assert not any(item.startswith("court:") for item in changes)
    same = review(build(text()), CATALOGUE, me="tax", previous=before)
    assert same.changes == ()
