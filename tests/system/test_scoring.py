"""Scores and alerts over real processes: a joint scorecard is trained, firms grant, the bank scores
and is told; then everything ends and the receipts still verify, and starts again among faults.

One federation serves all tests of this file, in their order: bank, two departments, a witness and
the coordinator, each a process of its own with its own home, over TLS.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clients.scorer import Scored
from federation.audit import Receipt, verify_receipt
from federation.objects import Usage
from federation.scoring import Score, ScoreSource
from tests.faults.question_world import QuestionWorld
from tests.faults.questions import Campaign, Plan
from tests.system.network import PLATFORM
from tests.system.real_nodes import BANK, wait_for
from tests.system.score_city import (
    CANARY,
    DATASETS,
    DEPARTMENTS,
    FIRM,
    GRID,
    JOB,
    KINDS,
    LITTLE,
    ROW_OF,
    SECOND,
    STRANGER,
    City,
)
from tests.system.secrets_scan import disguises, found_in

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DEBOUNCE_S = 6
FAULTS = (
    Plan(1, "kill", PLATFORM, 0.5, 0.3),
    Plan(2, "kill-live", BANK, 0.5, 0.3),
    Plan(3, "nonsense", PLATFORM, 0.5, 1.0),
)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuestionWorld]:
    with QuestionWorld(tmp_path_factory.mktemp("s")) as city:
        for firm in ROW_OF:
            drafting = ("model", "draft", JOB, "--uses", "300")
            city.grants[firm] = city.granted(firm, *drafting)
        yield city


def told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a score says, without what makes each a score of its own."""
    assert entry["points"] is not None
    return {name: entry[name] for name in ("points", "band", "model", "reasons", "job", "grant")}


def test_command_and_api_give_the_score_of_the_pooled_plaintext_signed(city: City) -> None:
    pooled, grant = city.pooled(), city.grants["firm"]
    by_command = city.lianmo(BANK, "model", "score", FIRM, "--grant", grant[:16])
    status, by_api = city.score_by_api(FIRM, grant)
    assert status == 201
    assert told(by_command) == told(by_api)
    assert by_api["points"] == pooled[ROW_OF["firm"]]
    assert {source["org"] for source in by_api["sources"]} == set(DEPARTMENTS)
    assert by_api["reasons"]
    trust, model = city.home("tax").trust(), city.model().digest().hex()
    for name in (by_command["id"], by_api["id"]):
        kept = city.stored(name)
        assert kept.envelope is not None
        now = datetime.now(UTC)
        signed = trust.verify(kept.envelope, Score, Usage.RUN, now, org=BANK).object
        assert (signed.points, signed.model, signed.subject) == (
            pooled[ROW_OF["firm"]],
            model,
            FIRM,
        )


def test_a_batch_with_a_firm_that_granted_nothing_gives_the_others_scores(city: City) -> None:
    pooled, grants = city.pooled(), city.grants
    items = [
        {"grant": grants["firm"], "applicant": FIRM},
        {"grant": grants["firm"], "applicant": STRANGER},
        {"grant": "0" * 64, "applicant": STRANGER},
        {"grant": grants["second"], "applicant": SECOND},
    ]
    status, batch = city.api("POST", "/v1/scores/batches", {"items": items})
    assert status == 200
    first, stolen, unknown, last = batch["items"]
    assert first["score"]["points"] == pooled[ROW_OF["firm"]]
    assert last["score"]["points"] == pooled[ROW_OF["second"]]
    assert [item["problem"]["status"] for item in (stolen, unknown)] == [403, 404]
    assert {item["score"] for item in (stolen, unknown)} == {None}


def test_a_department_killed_in_the_middle_gives_no_wrong_total_and_comes_back(city: City) -> None:
    right, grant = int(city.pooled()[ROW_OF["firm"]]), city.grants["firm"]
    with ThreadPoolExecutor(4) as pool:
        # the utility holds the question, the tax bureau has answered: then it is gone
        held = city.live("power")
        assert held is not None
        before = uses(city, "tax")
        os.kill(held, signal.SIGSTOP)
        answers = [pool.submit(city.score_by_api, FIRM, grant)]
        wait_for(lambda: uses(city, "tax"), lambda found: found > before)
        killed = city.kill_live("power")
        back = wait_for(lambda: city.live("power"), lambda pid: pid not in (None, killed))
        # and again while scores are made one after the other
        answers += [pool.submit(city.score_by_api, FIRM, grant) for _ in range(12)]
        time.sleep(0.5)
        assert city.kill_live("power") == back
        found = [answer.result(60) for answer in answers]
    for status, body in found:
        if status == 201:
            assert body["points"] == right
        else:
            assert (status, body["party"]) == (503, "power"), body
    _, again = wait_for(lambda: city.score_by_api(FIRM, grant), lambda answered: answered[0] == 201)
    assert again["points"] == right
    kept = city.api("GET", "/v1/scores?limit=200")[1]["items"]
    of_firm = [item["points"] for item in kept if item["grant"] == grant]
    assert set(of_firm) <= {right, None}
    for org in DEPARTMENTS:
        assert city.lianmo(org, "audit", "verify")["ok"]


def uses(city: City, org: str) -> int:
    """How often a department has let grants be used, by its log."""
    entries = city.lianmo(org, "audit", "show")
    return sum(e["action"] == "asked" and e["outcome"] == "admitted" for e in entries)


def test_after_revocation_every_department_refuses(city: City) -> None:
    grant = city.grants["second"]
    assert city.score_by_api(SECOND, grant)[0] == 201
    city.lianmo("second", "grant", "revoke", grant[:16])
    _, body = wait_for(
        lambda: city.score_by_api(SECOND, grant), lambda answered: answered[0] == 403
    )
    assert body["party"] in DEPARTMENTS
    city.lianmo(BANK, "model", "score", SECOND, "--grant", grant[:16], code=3)

    def refused_as_revoked() -> set[str]:
        """Who has; each has the event by its own round, and is asked until then."""
        city.score_by_api(SECOND, grant)
        logs = {org: city.lianmo(org, "audit", "show") for org in DEPARTMENTS}
        return {org for org in logs if "REVOKED" in {e.get("reason") for e in logs[org]}}

    wait_for(refused_as_revoked, lambda orgs: orgs == set(DEPARTMENTS))
    before = {org: uses(city, org) for org in DEPARTMENTS}
    assert city.score_by_api(SECOND, grant)[0] == 403
    assert {org: uses(city, org) for org in DEPARTMENTS} == before
    assert city.score_by_api(FIRM, city.grants["firm"])[0] == 201  # the other firm's still counts


def test_a_rule_that_starts_to_hold_is_told_once_without_the_value(city: City) -> None:
    item = f"power/{DATASETS['power']}/owed:compare@{GRID[1]}"
    asked = ("--item", item, "--channel", "watch", "--uses", "4")
    drafting = ("grant", "draft", *asked, "--purpose", "post-loan-monitoring")
    grant = city.granted("firm", *drafting)
    rule = ("arrears", "--grant", grant[:16], "--provider", "power", "--field", "owed")
    how = ("--dataset", DATASETS["power"], "--arg", GRID[1], "--debounce", str(DEBOUNCE_S))
    watch = city.lianmo(BANK, "verify", "watch", "add", *rule, *how, "--severity", "critical")
    city.refresh(LITTLE)
    assert city.alerts() == []
    city.refresh(CANARY)
    first = wait_for(city.alerts, bool)
    city.refresh(CANARY + 1)  # it goes on to hold
    assert city.alerts() == first
    assert [(a["rule"], a["severity"], a["org"]) for a in first] == [
        ("arrears", "critical", "power")
    ]
    assert first[0]["watch"] == watch["watch"]
    assert not {"value", "field", "arg", "subject"} & first[0].keys()


def test_a_second_start_within_the_debounce_is_told_after_it(city: City) -> None:
    city.refresh(LITTLE)
    city.refresh(CANARY)
    found = wait_for(city.alerts, lambda alerts: len(alerts) > 1)
    assert len(found) == 2
    second, first = (pd.Timestamp(alert["created"]) for alert in found)
    assert (second - first).total_seconds() >= DEBOUNCE_S


def test_the_watched_value_is_at_its_owner_alone(city: City) -> None:
    patterns = {"owed": disguises(CANARY)}
    seen = {
        org: [path for path in places(city, org) if found_in(path.read_bytes(), patterns)]
        for org in KINDS
    }
    assert seen.pop("power"), "the scanner finds it where it is"
    assert not any(seen.values()), seen


def test_an_ended_watch_is_looked_at_no_more_and_its_receipt_says_so(city: City) -> None:
    (watch,) = city.lianmo(BANK, "verify", "watch", "list")
    status, ended = city.api("POST", f"/v1/watches/{watch['watch']}/end")
    assert (status, ended["ended"], ended["is_told"]) == (200, "removed", True)
    receipt = str(city.folder / "end.receipt")
    city.lianmo(BANK, "verify", "watch", "remove", watch["watch"], "--receipt", receipt)
    assert city.lianmo("licence", "receipt", "verify", receipt)["verified"]
    looks, alerts = city.looks(), city.alerts()
    for owed in (LITTLE, CANARY):
        table = city.tables["power"]
        table.loc[table["code"] == FIRM, "owed"] = owed
        city.write("power")
        city.lianmo("power", "data", "refresh", DATASETS["power"])
        time.sleep(2)  # four of its rounds
    assert (city.looks(), city.alerts()) == (looks, alerts)
    entries = city.lianmo("power", "audit", "show")
    assert [entry["action"] for entry in entries].count("watch-ended") == 1


def places(city: City, org: str) -> list[Path]:
    files = [path for path in (city.folder / org).rglob("*") if path.is_file()]
    log = city.folder / f"{org}.log"
    return [*files, *([log] if log.exists() else [])]


def test_with_every_process_gone_all_receipts_verify(city: City) -> None:
    scored = [
        item["id"]
        for item in city.api("GET", "/v1/scores?limit=200")[1]["items"]
        if item["points"] is not None
    ]
    answers = {source.answer for name in scored for source in sources(city.stored(name))}
    answers |= {alert["alert"] for alert in city.alerts()}
    # the firms have their own receipt of every part of a score and of every alert
    wait_for(lambda: history(city), lambda told: answers <= told)
    wait_for(lambda: city.stored(scored[0]), lambda kept: is_cosigned(*kept.receipts.values()))
    for org in list(city.processes):
        city.kill(org)
    folder = city.folder / "receipts"
    city.lianmo(BANK, "verify", "watch", "alerts", "--receipts", str(folder / "alerts"))
    page = str(city.folder / "page.html")
    city.lianmo(
        *(BANK, "model", "explain", scored[0], "--out", page),
        *("--receipts", str(folder / "score")),
    )
    files = sorted(folder.rglob("*.receipt"))
    assert len(files) == 2 + len(DEPARTMENTS)
    for file in files:
        assert city.lianmo("licence", "receipt", "verify", str(file))["verified"]
    trust = city.home("licence").trust()
    for name in scored:
        proven = {org: verify_receipt(one, trust).org for org, one in receipts(city, name)}
        assert proven == {org: org for org in DEPARTMENTS}


@pytest.fixture(scope="module")
def campaign(city: QuestionWorld) -> Campaign:
    city.start_coordinator()
    city.start_nodes()
    return Campaign(city)


@pytest.mark.parametrize("plan", FAULTS, ids=str)
def test_all_starts_again_and_whatever_fails_then_no_answer_is_wrong(
    campaign: Campaign, plan: Plan
) -> None:
    """Rounds of tests/faults; `python -m tests.faults --kind questions` draws others."""
    found = campaign.run(plan)
    assert found.problems == [], str(found)


def history(city: City) -> set[str]:
    """Digests of all answers and alerts that the firms have receipts of."""
    return {use["answer"] for firm in ROW_OF for use in city.lianmo(firm, "grant", "history")}


def sources(kept: Scored) -> tuple[ScoreSource, ...]:
    assert kept.score is not None
    return kept.score.sources


def receipts(city: City, name: str) -> list[tuple[str, Receipt]]:
    return list(city.stored(name).receipts.items())


def is_cosigned(*found: Receipt) -> bool:
    return {item.status for item in found} == {"cosigned"}
