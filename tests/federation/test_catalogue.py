"""A catalogue entry is well formed, and says by itself what a job may take."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from federation.catalogue import Dataset, Field, FieldType, Level, Operation, require_usable
from federation.errors import RefusalCode, Refused
from federation.objects import Purpose, Role

KEY = Field(name="credit_code", type=FieldType.KEY)
INCOME = Field(name="收入", type=FieldType.NUMBER, unit="CNY", description="declared income")
SECTOR = Field(name="sector", type=FieldType.CATEGORY)
LABEL = Field(name="default", type=FieldType.LABEL)


def entry(*fields: Field) -> Dataset:
    return Dataset(
        name="payments",
        title="Tax paid (纳税)",
        owner="tax",
        region="济宁市",
        legal_basis="tax collection law",
        update_frequency="monthly",
        provenance="golden tax system",
        as_of="2026-10-31",
        rows=30_000,
        fields=fields,
        created="2026-11-01T08:00:00Z",
    )


def usable(dataset: Dataset, *names: str, role: Role = Role.DEPARTMENT, **change: object) -> None:
    terms = {"purpose": Purpose.CREDIT_MODEL_TRAINING, "min_cohort": 50} | change
    require_usable(dataset, names, role=role, **terms)


def test_the_payload_is_canonical_and_survives_a_round_trip() -> None:
    dataset = entry(KEY, INCOME, SECTOR)
    assert Dataset.model_validate_json(dataset.payload()) == dataset
    assert Dataset.model_validate_json(dataset.payload()).digest() == dataset.digest()


@pytest.mark.parametrize(
    "fields",
    [
        (INCOME,),
        (KEY, Field(name="uscc", type=FieldType.KEY), INCOME),
        (KEY, INCOME, INCOME),
        (KEY, LABEL, Field(name="bad", type=FieldType.LABEL)),
        (KEY,),
    ],
)
def test_an_entry_without_exactly_one_key_or_with_a_name_twice_does_not_exist(
    fields: tuple[Field, ...],
) -> None:
    with pytest.raises(ValidationError):
        entry(*fields)


def test_fields_are_trade_secrets_of_level_3_unless_the_owner_says_otherwise() -> None:
    assert INCOME.level is Level.L3
    assert INCOME.trade_secret
    assert INCOME.ops == (Operation.TRAIN,)


def test_the_owner_s_terms_decide_what_a_job_may_take() -> None:
    usable(entry(KEY, INCOME, SECTOR), "收入", "sector")
    usable(entry(KEY, INCOME, LABEL), "收入", role=Role.BANK)
    usable(entry(KEY, LABEL), role=Role.BANK)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (INCOME.model_copy(update={"level": Level.L5}), RefusalCode.FIELD_LEVEL),
        (INCOME.model_copy(update={"ops": (Operation.VERIFY,)}), RefusalCode.FIELD_LEVEL),
        (
            INCOME.model_copy(update={"purposes": (Purpose.CREDIT_DECISION,)}),
            RefusalCode.PURPOSE_NOT_ALLOWED,
        ),
        (INCOME.model_copy(update={"min_cohort": 51}), RefusalCode.SPEC_INVALID),
        (INCOME.model_copy(update={"type": FieldType.LABEL}), RefusalCode.SPEC_INVALID),
        (INCOME.model_copy(update={"name": "other"}), RefusalCode.UNFULFILLABLE),
    ],
)
def test_one_term_less_and_the_field_is_refused(changed: Field, code: RefusalCode) -> None:
    with pytest.raises(Refused) as refused:
        usable(entry(KEY, changed, SECTOR), "收入", "sector")
    assert refused.value.code is code


def test_a_bank_s_label_is_judged_although_no_manifest_lists_it() -> None:
    core = LABEL.model_copy(update={"level": Level.L5})
    with pytest.raises(Refused, match="core data"):
        usable(entry(KEY, INCOME, core), "收入", role=Role.BANK)
    with pytest.raises(Refused, match="no label"):
        usable(entry(KEY, INCOME), "收入", role=Role.BANK)
