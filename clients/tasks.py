"""Which program a manifest's task is, at this party; and what of its result is kept as files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import pandas as pd

from clients import gate
from clients.attempts import all_of, summed
from clients.home import Home
from clients.runner import Admission, Outcome
from federation.ledger import Disclosure
from federation.objects import Role, utc_text
from federation.report import (
    Ran,
    Report,
    render_html,
    report_json,
    report_of,
    report_of_network,
    report_of_trees,
)
from federation.tables import BankData
from federation.tasks import boosting, trees_files
from federation.tasks.boosting import TreesResult
from federation.tasks.cover import receive_cover, send_cover
from federation.tasks.model_files import model_to_json, part_to_json
from federation.tasks.party import Party
from federation.tasks.scorecard import run_bank, run_department

REPORT_JSON, REPORT_HTML, SCORES = "report.json", "report.html", "scores.parquet"


def run_task(home: Home, party: Party, admission: Admission) -> Outcome:
    """Run this party's side of the job's task on what the gate hands out."""
    opened = cast(gate.Admission, admission)
    if party.manifest.party(party.me).role is Role.BANK:
        return _bank(home, party, opened)
    return _department(party, opened)


def _bank(home: Home, party: Party, opened: gate.Admission) -> Outcome:
    send_cover(party, opened.cover)
    data = opened.bank_data()
    if party.manifest.task == "neural":
        return _bank_of_network(home, party, opened, data)
    if party.manifest.task == "trees":
        return _bank_of_trees(home, party, opened, data)
    result = run_bank(party, data)
    result = replace(result, disclosures=_over_attempts(home, party))
    report = report_of(
        result,
        party.manifest,
        created=utc_text(datetime.now(UTC)),
        approvals=opened.job.approvals,
        names=_names(home, party),
    )
    return Outcome(
        model=model_to_json(result.model),
        files={**_report_files(report), SCORES: _scores(data, result)},
        tokens=result.tokens,
        commitments=tuple(item.hex() for item in result.commitments),
    )


def _bank_of_trees(home: Home, party: Party, opened: gate.Admission, data: BankData) -> Outcome:
    result = boosting.run_bank(party, data)
    result = replace(result, disclosures=_over_attempts(home, party))
    report = report_of_trees(
        result,
        data,
        party.manifest,
        created=utc_text(datetime.now(UTC)),
        approvals=opened.job.approvals,
        names=_names(home, party),
    )
    scores = _scores(data, result, _reasons(party, data, result))
    return Outcome(
        model=trees_files.trees_to_json(result.model),
        files={**_report_files(report), SCORES: scores},
        tokens=result.tokens,
        commitments=tuple(item.hex() for item in result.commitments),
    )


def _bank_of_network(home: Home, party: Party, opened: gate.Admission, data: BankData) -> Outcome:
    from federation.tasks.horizontal import run_bank as train  # PyTorch takes its time
    from federation.tasks.neural_files import neural_to_json

    result = train(party, data)
    report = report_of_network(
        result,
        party.manifest,
        created=utc_text(datetime.now(UTC)),
        approvals=opened.job.approvals,
        names=_names(home, party),
    )
    return Outcome(
        model=neural_to_json(result.model),
        files={**_report_files(report), SCORES: _scores(data, result)},
    )


def _over_attempts(home: Home, party: Party) -> tuple[Disclosure, ...]:
    """What the job disclosed, this attempt included: a step that an earlier one finished was told
    then, and is not told again."""
    attempts = all_of(home.runs(party.manifest.job), party.manifest.digest())
    return summed(entry for attempt in attempts for entry in attempt.disclosed()[1])


def _names(home: Home, party: Party) -> dict[str, str]:
    trust = home.trust()
    return {item.org: trust.card(item.org).name for item in party.manifest.parties}


def _report_files(report: Report) -> dict[str, bytes]:
    return {
        REPORT_JSON: json.dumps(report_json(report), ensure_ascii=False, indent=1).encode(),
        REPORT_HTML: render_html(report).encode(),
    }


def _reasons(party: Party, data: BankData, result: TreesResult) -> list[str]:
    """Of each customer the features that raise its risk most, the worst first."""
    own = {(party.me, column.name): column for column in data.columns}
    goes_left = result.model.by_bits(own, result.bits)
    moved = result.model.contributions(goes_left, data.customers)
    codes = result.model.reason_codes(moved, party.manifest.trees.reason_codes)
    return [", ".join(names) for names in codes]


def _scores(data: BankData, result: Ran, reasons: list[str] | None = None) -> bytes:
    """The bank's own customers with what it opened of them; stays in its home."""
    columns: dict[str, object] = {
        "credit_code": data.codes.astype(str),
        "bad": result.labels,
        "test": result.test,
        "points_alone": result.alone_scores,
    }
    if result.scores is not None:
        columns["points"] = result.scores
    if reasons is not None:
        columns["reasons"] = reasons
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _department(party: Party, opened: gate.Admission) -> Outcome:
    data = opened.department_data(receive_cover(party, opened.registry))
    if party.manifest.task == "trees":
        trees = boosting.run_department(party, data)
        return Outcome(
            model=trees_files.trees_part_to_json(trees),
            tokens=trees.tokens,
            commitments=tuple(item.hex() for item in trees.commitments),
        )
    part = run_department(party, data)
    return Outcome(
        model=part_to_json(part),
        tokens=part.tokens,
        commitments=tuple(item.hex() for item in part.commitments),
    )
