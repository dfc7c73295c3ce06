"""The enterprise's page, in a real browser: what it shows and signs is what Python reads."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import grants, signing_page
from federation.catalogue import Assurance
from federation.codes import code_for_row
from federation.envelope import Envelope
from federation.grants import (
    BySubject,
    Capacity,
    Channel,
    Grant,
    GrantEvent,
    GrantItem,
    Language,
    NamedOrg,
    Terms,
    notice,
    notice_digest,
    require_grant,
    verify_by_subject,
)
from federation.objects import Purpose, Usage, utc_text
from tests.federation.parties import make_org, trust_of

FIRM = "91330106Y71047292M"
FLOW = """
<script>
(async () => {
  const terms = %s;
  const key = await makeKey("%s", "某公司");
  key.certificate = {payload: base64(utf8(canonical({assurance: "A3"})))};
  const grant = await signGrant(terms, key);
  const event = await signChange(await digest(grant.signed), "revoke", key);
  const altered = {...terms, max_uses: terms.max_uses + 1};
  const found = {zh: noticeOf(terms, "zh"), en: noticeOf(terms, "en"), card: key.card,
    grant: grant.signed, event: event.signed, whole: await isWhole(terms),
    altered: await isWhole(altered), extractable: key.secret.extractable};
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
})().catch(error => { document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(String(error)); });
</script></body>"""

MISTAKES = """
<script>
(async () => {
  const seen = {codes: %s.map(isCode), needs: [], wide: 0};
  const look = () => { show(); seen.needs.push($("needs").textContent); };
  keep = async () => {};  // a browser without a clock keeps nothing
  lang = "en"; look();
  $("code").value = "%s"; $("name").value = ""; await $("make").onclick();
  $("code").value = "91330106Y71047293M"; $("name").value = "x"; await $("make").onclick();
  seen.key = key; seen.said = $("key-state").textContent;
  $("code").value = " %s "; await $("make").onclick(); look();
  key.certificate = {payload: base64(utf8(canonical({assurance: "A3"})))};
  await openDraft(JSON.stringify(%s)); look();
  $("agree").checked = true; look();
  $("agree").checked = false; tell("sign-state", "signed", "f".repeat(64)); look();
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(seen);
})();
</script></body>"""

AGREED = """
<script>
(async () => {
  key = await makeKey("%s", "某公司");
  key.certificate = {payload: base64(utf8(canonical({assurance: "A3"})))};
  const seen = [], look = () => seen.push([$("agree").checked, $("go").disabled]);
  await openDraft(JSON.stringify(%s)); look();
  $("agree").checked = true; $("agree").onchange(); look();
  await openDraft(JSON.stringify(%s)); look();
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(seen);
})();
</script></body>"""


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI"):
        pytest.fail("this test needs Chromium")
    pytest.skip("this test needs Chromium")


def terms(now: datetime, channel: Channel, lang: Language) -> Terms:
    item = GrantItem.model_validate(
        {
            "provider": "tax",
            "dataset": "firms",
            "field": "revenue",
            "title": "上年度销售收入（“含税”） / revenue\\",
            "ops": () if channel is Channel.SCORE else ("compare", "count"),
            "periods": ("2024", "2025", "current"),
            "thresholds": () if channel is Channel.SCORE else ("100000", "0.5"),
        }
    )
    plain: dict[str, Any] = {
        "subject": FIRM,
        "grantee": "bank-a",
        "purpose": Purpose.CREDIT_DECISION,
        "channel": channel,
        "model": "a" * 64 if channel is Channel.SCORE else None,
        "items": (item,),
        "names": (NamedOrg(org="bank-a", name="厦门某银行"), NamedOrg(org="tax", name="税务局")),
        "max_uses": 3,
        "not_before": utc_text(now),
        "expires": utc_text(now + timedelta(days=30)),
        "notice_lang": lang,
        "notice_digest": "0" * 64,
        "nonce": "0123456789abcdef" * 2,
    }
    made = Terms.model_validate(plain)
    return made.model_copy(update={"notice_digest": notice_digest(made, lang)})


def run(page: Path) -> Any:
    command = [
        browser(),
        "--headless=new",
        "--disable-gpu",
        "--virtual-time-budget=8000",
        "--window-size=500,900",
    ]
    command += ["--no-sandbox", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{page}"], capture_output=True, text=True, timeout=200, check=True
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stdout[-500:]
    return json.loads(unescape(found.group(1)))


@pytest.mark.parametrize(
    ("channel", "lang"), [(Channel.VERIFY, Language.ZH), (Channel.SCORE, Language.EN)]
)
def test_the_browser_shows_our_notice_and_signs_what_a_provider_believes(
    tmp_path: Path, channel: Channel, lang: Language
) -> None:
    now = datetime.now(UTC)
    wanted = terms(now, channel, lang)
    text = signing_page.page().decode()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    file = tmp_path / "page.html"
    plain = json.dumps(wanted.model_dump(mode="json"))
    file.write_text(text.replace("</body>", FLOW % (plain, FIRM)), encoding="utf-8")
    found = run(file)
    assert isinstance(found, dict), found
    assert {lang: found[lang.value] for lang in Language} == {
        lang: notice(wanted, lang) for lang in Language
    }
    assert (found["whole"], found["altered"], found["extractable"]) == (True, False, False)

    issuer = make_org("licence", "department", now=now - timedelta(days=1))
    card = Envelope.model_validate(found["card"])
    word = grants.certify(Issuer(issuer), card, Assurance.A3, now)  # type: ignore[arg-type] # only org and key are asked
    trust, later = trust_of(issuer), now + timedelta(seconds=30)
    issuers = {"licence": Assurance.A3}
    bundle = BySubject(signed=Envelope.model_validate(found["grant"]), card=card, certificate=word)
    grant = require_grant(verify_by_subject(bundle, Grant, trust, issuers, later))
    assert grant.capacity is Capacity.LEGAL_REPRESENTATIVE
    assert {k: getattr(grant, k) for k in Terms.model_fields} == {
        k: getattr(wanted, k) for k in Terms.model_fields
    }
    event = bundle.model_copy(update={"signed": Envelope.model_validate(found["event"])})
    said = verify_by_subject(event, GrantEvent, trust, issuers, later).object
    assert (said.grant, said.change) == (bundle.digest, "revoke")


def test_the_page_names_what_is_wrong_or_missing_and_stays_as_wide_as_the_screen(
    tmp_path: Path,
) -> None:
    """A key of a mistyped code would be of no use, and the page makes one only."""
    known = [code.decode() for code in code_for_row(1, np.arange(200))]
    spoilt = [
        code[:place] + ("1" if code[place] == "0" else "0") + code[place + 1 :]
        for place, code in enumerate(known[:18])
    ]
    draft = terms(datetime.now(UTC), Channel.VERIFY, Language.ZH).model_dump(mode="json")
    text = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", signing_page.page().decode()
    )
    file = tmp_path / "page.html"
    flow = MISTAKES % (json.dumps([*known, *spoilt, "123", ""]), FIRM, FIRM, json.dumps(draft))
    file.write_text(text.replace("</body>", flow), encoding="utf-8")
    found = run(file)
    assert found["codes"] == [True] * 200 + [False] * 20
    assert found["key"] is None
    assert "18 characters" in found["said"]
    before = "Still needed before you can sign: "
    assert found["needs"] == [
        before + "the draft, a key, the certificate, your tick above",
        before + "the draft, the certificate, your tick above",
        before + "your tick above",
        "",
        "",
    ]
    assert found["wide"] == 0


def test_agreeing_to_one_draft_is_not_agreeing_to_the_next(tmp_path: Path) -> None:
    drafts = [
        json.dumps(terms(datetime.now(UTC), channel, Language.ZH).model_dump(mode="json"))
        for channel in (Channel.VERIFY, Channel.SCORE)
    ]
    text = signing_page.page().decode()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", AGREED % (FIRM, *drafts)), encoding="utf-8")
    assert run(file) == [[False, True], [True, False], [False, True]]


class Issuer:
    """As much of a home as certifying needs."""

    def __init__(self, org: Any) -> None:
        self.org, self._org = org.id, org

    def key(self, usage: Usage) -> Any:
        return self._org.key(usage)


def test_the_page_allows_its_own_script_and_no_network() -> None:
    text = signing_page.page().decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy.group(1)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    digest = hashlib.sha256(scripts[0].encode()).digest()
    assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy.group(1)
    assert not re.search(r"https?://|<link|<img|<iframe|fetch\(|XMLHttp|WebSocket", text)


def test_the_page_is_served_on_loopback_with_its_policy() -> None:
    urls: list[str] = []
    ready = threading.Event()

    def told(url: str) -> None:
        urls.append(url)
        ready.set()

    threading.Thread(target=signing_page.serve, args=(0, told), daemon=True).start()
    assert ready.wait(10)
    with urllib.request.urlopen(urls[0], timeout=10) as answer:  # noqa: S310 - our own loopback
        assert answer.read() == signing_page.page()
        assert "script-src 'sha256-" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
