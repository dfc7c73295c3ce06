"""Questions on enterprises, node to node: coordinator, bureau and witness as processes.

    python -m benchmarks verification

`one at a time` is the median of a question alone; `50 a second` are questions that come at that
rate whatever the answers do, with their 50th and 99th percentile; `at once` is what 16 askers get
through. Answers leave at multiples of `time_class_ms`, which is part of every time here. The
reference is the envelope work alone: sign, seal, unseal and verify in one process. Every question
is the first on its firm, so that none is answered from what was told before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from clients import datasets, grants, registries
from clients.consent import HELD, Consents
from clients.coordinator_client import CoordinatorClient
from clients.home import Home
from clients.sandbox import _free_ports
from clients.sources import Source
from clients.store import opened
from clients.verifier import Verifier, Wanted
from federation import sealing
from federation.catalogue import Assurance, Question
from federation.codes import code_for_row
from federation.enquiry import Answered, Comparison
from federation.envelope import Envelope, sign
from federation.errors import Unavailable
from federation.grants import (
    BySubject,
    Capacity,
    Channel,
    GrantItem,
    Language,
    NamedOrg,
    Terms,
    notice_digest,
)
from federation.identity import PrivateKey
from federation.objects import Purpose, Usage, utc_text
from federation.registry import Registry
from federation.verification import Ask

ALONE, RATE, SECONDS, ASKERS, EACH = 100, 50, 8, 16, 40
FIRMS = ALONE + RATE * SECONDS + ASKERS * EACH + 200  # and those asked about until one answers
CODES = np.sort(code_for_row(1, np.arange(20_000)))
KINDS = {
    "platform": ("platform", "91330106Y71047292M"),
    "bank": ("bank", "91310115Y71126484T"),
    "tax": ("department", "91110105Y71205676A"),
    "audit": ("auditor", "91420106Y71364052A"),
}
TITLE = "销售收入"
GRID = ("100000", "1000000", "10000000")
SETTINGS = '[verification]\nissuers = { platform = "A3" }\nsubject_per_hour = 1000000\n'


def rows() -> list[dict[str, object]]:
    """The table's rows."""
    with tempfile.TemporaryDirectory(prefix="lianmo-") as folder, city(Path(folder)) as homes:
        home = homes["bank"]
        given = [granted(homes, code.decode()) for code in CODES[:FIRMS]]
        hold(home, given)
        with opened(home.database_url) as store, CoordinatorClient(home, retry_s=5) as client:
            verifier = Verifier(home, store, client, lambda: datetime.now(UTC))
            firms = iter(given)

            def ask() -> float:
                wanted = about(next(firms).bundle.digest)
                began = time.perf_counter()
                found = verifier.ask(wanted)
                if found.result is not Answered.MATCH:
                    raise RuntimeError(f"answered {found.result}")
                return 1000 * (time.perf_counter() - began)

            _until_it_answers(ask)
            alone = [ask() for _ in range(ALONE)]
            steady = _at_rate(ask)
            rate = _at_once(ask)
            bare = _bare(verifier, about(given[0].bundle.digest))
    median = statistics.median(alone)
    percentiles = statistics.quantiles(steady, n=100)
    load = f"load {os.getloadavg()[0]:.1f}"
    return [
        _row("verify alone", median, "ms, median", f"{bare:.1f}", median / bare, load),
        _row("verify 50/s p50", percentiles[49], "ms", f"{bare:.1f}", percentiles[49] / bare, load),
        _row("verify 50/s p99", percentiles[98], "ms", f"{bare:.1f}", percentiles[98] / bare, load),
        _row("verify at once", rate, "a second, 16 askers", "100", rate / 100, load),
    ]


def about(grant: str) -> Wanted:
    """The question of this benchmark, under a grant."""
    ask = Question.COMPARE, Comparison.GE, "1000000"
    return Wanted(grant, "tax", "firms", "revenue", *ask)


def _row(
    name: str, value: float, unit: str, reference: str, ratio: float, note: str
) -> dict[str, object]:
    return {
        "name": name,
        "value": f"{value:.1f}",
        "unit": unit,
        "reference": reference,
        "ratio": f"{ratio:.2f}",
        "note": note,
    }


def _until_it_answers(ask: Callable[[], float]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            for _ in range(10):  # then what is read and compiled once is there
                ask()
            return
        except (Unavailable, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _at_rate(ask: Callable[[], float]) -> list[float]:
    """Latencies of questions that start at fixed times, counted from those times."""
    found: list[float] = []
    lock, start = threading.Lock(), time.perf_counter() + 0.1

    def one(number: int) -> None:
        due = start + number / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        ask()
        with lock:
            found.append(1000 * (time.perf_counter() - due))

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(one, range(RATE * SECONDS)))
    return found


def _at_once(ask: Callable[[], float]) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(ASKERS) as pool:
        list(pool.map(lambda _: ask(), range(ASKERS * EACH)))
    return ASKERS * EACH / (time.perf_counter() - began)


def _bare(verifier: Verifier, wanted: Wanted) -> float:
    """Milliseconds of signing, sealing, opening and reading one question, and nothing else."""
    key, recipient = PrivateKey.generate(Usage.REQUEST), PrivateKey.generate(Usage.ENCRYPT)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        request, bundle = verifier.request(wanted)
        content = Ask(request=sign(request, key), grant=bundle).to_bytes()
        frame = sealing.seal(sealing.ASK, content, sender="bank", recipient=recipient.spki)
        opened_ = sealing.unseal(sealing.ASK, frame, sender="bank", key=recipient)
        Ask.from_bytes(opened_).request.unverified(type(request))
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


@dataclass(frozen=True, slots=True)
class Given:
    """A grant with what its enterprise signs with."""

    bundle: BySubject
    key: PrivateKey
    proof: tuple[Envelope, Envelope]


# --- the processes --------------------------------------------------------------------------------


@contextlib.contextmanager
def city(folder: Path) -> Iterator[dict[str, Home]]:
    """A coordinator, a bureau and a witness that run; all homes."""
    homes = _homes(folder)
    _publish(homes["tax"], folder)
    processes = []
    try:
        for org, command in (
            ("platform", ("coordinator", "start")),
            ("tax", ("node", "start", "--no-warm")),
            ("audit", ("node", "start", "--witness-only")),
        ):
            environment = {k: v for k, v in os.environ.items() if not k.startswith("LIANMO_")}
            with (folder / f"{org}.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "clients.cli.main", *command],
                    env=environment | {"LIANMO_HOME": str(folder / org)},
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            processes.append(process)
            if process.stdout is None or "ready" not in process.stdout.readline():
                raise RuntimeError((folder / f"{org}.log").read_text()[-500:])
        yield homes
    finally:
        for process in reversed(processes):
            process.terminate()
            process.communicate(timeout=20)  # which closes its pipe, too


def _homes(folder: Path) -> dict[str, Home]:
    port, runtime, relay = _free_ports(3)
    for org, (kind, uscc) in KINDS.items():
        Home.create(
            folder / org,
            org=org,
            kind=kind,
            name=org,
            uscc=uscc,
            region="厦门",
            coordinator_url=f"https://127.0.0.1:{port}",
            relay_address=f"127.0.0.1:{relay}",
            hosts=("127.0.0.1",) if kind == "platform" else (),
            now=datetime.now(UTC) - timedelta(hours=2),
        )
    with (folder / "platform" / "config.toml").open("a") as config:
        config.write(f"[coordinator]\nruntime_port = {runtime}\n")
    with (folder / "tax" / "config.toml").open("a") as config:
        config.write(SETTINGS)
    homes = {org: Home.open(folder / org, environment={}) for org in KINDS}
    for one in homes.values():
        for other in homes.values():
            if one is not other:
                one.trust_card(other.card())
    return homes


def _publish(home: Home, folder: Path) -> None:
    now, table = datetime.now(UTC), folder / "firms.csv"
    lines = [f"{code.decode()},{2_300_000 + row}" for row, code in enumerate(CODES)]
    table.write_text("\n".join(["uscc,revenue", *lines]) + "\n")
    field = {
        "level": "L2",
        "description": TITLE,
        "trade_secret": False,
        "ops": ["verify"],
        "purposes": ["credit-decision"],
        "enquiry": {"ops": ["compare"], "grid": GRID, "bits_budget": 100},
    }
    with opened(home.database_url) as store:
        registries.add(home, store, Registry(CODES, now.date(), "厦门"), now)
        datasets.register(home, store, "firms", Source(file=str(table), key="uscc"), now)
        words = dict.fromkeys(datasets.OWN_WORDS, "依法")
        key = {"uscc": {"level": "L1", "trade_secret": False}}
        datasets.describe(store, "firms", words, {"revenue": field} | key)
        if not datasets.is_in_force(store, datasets.sign_entry(home, store, "firms", now)):
            raise RuntimeError("the entry needs a second person")


def granted(homes: dict[str, Home], subject: str, grantee: str = "bank") -> Given:
    """A grant on this enterprise's revenue, and the keys that speak for the enterprise."""
    now = datetime.now(UTC)
    key, made = PrivateKey.generate(Usage.GRANT), now - timedelta(hours=1)
    card = grants.make_card(key, PrivateKey.generate(Usage.ENCRYPT), subject, "某公司", made)
    certificate = grants.certify(homes["platform"], card, Assurance.A3, made)
    item = GrantItem(
        provider="tax",
        dataset="firms",
        field="revenue",
        title=TITLE,
        ops=(Question.COMPARE,),
        thresholds=GRID,
    )
    terms = Terms(
        subject=subject,
        grantee=grantee,
        purpose=Purpose.CREDIT_DECISION,
        channel=Channel.VERIFY,
        items=(item,),
        names=(NamedOrg(org=grantee, name=grantee), NamedOrg(org="tax", name="tax")),
        max_uses=10_000,
        not_before=utc_text(made),
        expires=utc_text(now + timedelta(days=9)),
        notice_digest="0" * 64,
        nonce=secrets.token_hex(16),
    )
    whole = terms.model_copy(update={"notice_digest": notice_digest(terms, Language.ZH)})
    proof = card, certificate
    bundle = grants.sign_terms(whole, key, proof, Capacity.ENTERPRISE_SEAL, made)
    return Given(bundle, key, proof)


def hold(home: Home, given: Sequence[Given]) -> None:
    """The bank has these grants."""
    with opened(home.database_url) as store, store.together():
        for one in given:
            Consents(store).put(one.bundle, HELD, datetime.now(UTC))


if __name__ == "__main__":
    for line in rows():
        print(line)
