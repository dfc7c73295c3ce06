"""The coordinator's API as functions: this home's certificate, the coordinator's pinned, no proxy.

Pinned is the coordinator's trusted card: only its own authority is loaded, and the leaf must be the
one in the card. So nothing that somebody else certified, or that an environment variable inserts,
gets an answer in. Requests that a lost connection cut off are sent again: GET and PUT are
repeatable, POSTs carry an Idempotency-Key. What comes back is believed by nobody: envelopes in it
are verified by whoever uses them.
"""

from __future__ import annotations

import random
import secrets
import ssl
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from clients.home import Home
from federation import certificates
from federation.api import (
    API,
    PROBLEM_TYPE,
    CatalogueEntry,
    Events,
    Health,
    JobDetail,
    JobSummary,
    OrganisationEntry,
    Page,
    Problem,
    ProgressAnswer,
    ProgressBody,
    Registration,
    StopBody,
    error_of,
)
from federation.consent_api import (
    EventBundles,
    EventsWanted,
    GrantsNamed,
    Inbox,
    Notices,
    Outbox,
    RevocationBody,
    StatusBody,
    Taken,
)
from federation.envelope import Envelope
from federation.errors import IntegrityError, LianmoError, NotFound, Unavailable, UsageError
from federation.grants import BySubject
from federation.network import Bundle
from federation.objects import OrgKind
from federation.trust import TrustStore
from federation.witness_api import Accepted, Board, Published, SeenNotes

JSON_TYPE = {"content-type": "application/json"}
RETRY_S = 3.0  # a person waits; a node gives its own, longer one
B = TypeVar("B", bound=BaseModel)


def platform_of(trust: TrustStore) -> str:
    """The one platform that this home trusts."""
    found = [org for org in trust if trust.card(org).org_kind is OrgKind.PLATFORM]
    if len(found) != 1:
        todo = "compare its fingerprint, then `lianmo org trust CARD`"
        what = "no platform is trusted here" if not found else "several platforms are trusted here"
        raise NotFound(what, todo=todo)
    return found[0]


def coordinator_url(home: Home) -> str:
    """Where the coordinator is."""
    if home.config.coordinator_url is None:
        todo = "set `coordinator_url` in config.toml, or LIANMO_COORDINATOR_URL"
        raise UsageError("this home names no coordinator", party=home.org, todo=todo)
    return home.config.coordinator_url.rstrip("/")


def tls_context(home: Home) -> ssl.SSLContext:
    """TLS 1.3 with this home's certificate, to nobody but the trusted platform."""
    trust = home.trust()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=trust.tls_ca(platform_of(trust)))
    context.check_hostname = False  # stricter: one authority, that of this very organisation
    try:
        context.load_cert_chain(*home.tls_files)
    except ssl.SSLError:
        what = "tls.crt is no certificate for keys/tls.pem"
        raise IntegrityError(what, party=home.org, todo="restore both from a backup") from None
    return context


class CoordinatorClient:
    """One connection pool to the coordinator; safe to use from several threads."""

    def __init__(self, home: Home, *, retry_s: float = RETRY_S) -> None:
        self._home = home
        self.platform = platform_of(home.trust())
        self._retry_s, self._max_bytes = retry_s, home.config.max_response_bytes
        self._http = httpx.Client(
            base_url=coordinator_url(home) + API,
            verify=tls_context(home),
            timeout=httpx.Timeout(
                home.config.request_timeout_s, connect=home.config.connect_timeout_s
            ),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- organisations and catalogue --------------------------------------------------------------

    def health(self) -> Health:
        """That the coordinator answers, and which release it runs."""
        return self._call(Health, "GET", "/health")

    def date(self) -> str:
        """The coordinator's clock, as in the Date header of its answer."""
        return str(self._send("GET", "/health")[0].headers.get("date", ""))

    def register(self, card: Envelope) -> Registration:
        """Show this organisation's card."""
        return self._call(Registration, "PUT", "/organisations/me", card)

    def organisations(self) -> tuple[OrganisationEntry, ...]:
        """Every admitted organisation."""
        return tuple(self._pages(OrganisationEntry, "/organisations"))

    def organisation(self, org: str) -> OrganisationEntry:
        """One admitted organisation."""
        return self._call(OrganisationEntry, "GET", f"/organisations/{org}")

    def publish(self, dataset: str, entry: Envelope) -> CatalogueEntry:
        """Publish what this organisation says about a dataset."""
        return self._call(CatalogueEntry, "PUT", f"/catalogue/{dataset}", entry)

    def catalogue(self) -> Iterator[CatalogueEntry]:
        """Every published dataset entry."""
        return self._pages(CatalogueEntry, "/catalogue")

    # --- network ----------------------------------------------------------------------------------

    def network(self) -> Bundle:
        """The founders' documents that the coordinator has."""
        return Bundle.from_json(self._send("GET", "/network")[1])

    def hand_in(self, bundle: Bundle) -> Bundle:
        """Give documents to be given on; returns all there are."""
        headers = dict(JSON_TYPE)
        return Bundle.from_json(self._send("POST", "/network", bundle.to_json(), headers)[1])

    # --- jobs -------------------------------------------------------------------------------------

    def submit(self, manifest: Envelope) -> JobDetail:
        """Propose a job."""
        return self._call(JobDetail, "POST", "/jobs", manifest)

    def jobs(self) -> Iterator[JobSummary]:
        """The jobs that name this organisation, newest first."""
        return self._pages(JobSummary, "/jobs")

    def job(self, job: str) -> JobDetail:
        """A job with all that was signed for it."""
        return self._call(JobDetail, "GET", f"/jobs/{job}")

    def approve(self, job: str, approval: Envelope) -> JobDetail:
        """Hand in this organisation's signed word: approve, refuse or withdraw."""
        return self._call(JobDetail, "POST", f"/jobs/{job}/approvals", approval)

    def progress(self, job: str, body: ProgressBody) -> ProgressAnswer:
        """Say how far this party is; hear whether the job goes on."""
        return self._call(ProgressAnswer, "POST", f"/jobs/{job}/progress", body, key="")

    def events(self, job: str, *, after: int = 0, wait: float = 0) -> Events:
        """What happened to a job after event `after`; waits at most `wait` seconds for it."""
        return self._call(Events, "GET", f"/jobs/{job}/events?after={after}&wait={wait:g}")

    def stop(self, job: str, words: str = "") -> JobDetail:
        """End a job for all its parties."""
        return self._call(JobDetail, "POST", f"/jobs/{job}/stop", StopBody(words=words))

    # --- questions on enterprises, and their grants -----------------------------------------------

    def ask_sealed(self, provider: str, sealed: bytes) -> bytes:
        """A provider's sealed answer; the same bytes again are the same question."""
        headers = {"content-type": "application/octet-stream"}
        return self._send("POST", f"/sealed/{provider}", sealed, headers)[1]

    def take_sealed(self, wait_s: float) -> Inbox:
        """The sealed questions that wait for this organisation's node."""
        return self._call(Inbox, "GET", f"/sealed?wait={wait_s:g}")

    def reply_sealed(self, body: Outbox) -> None:
        """Hand in sealed answers and notices."""
        self._send("POST", "/sealed", body.model_dump_json().encode(), JSON_TYPE)

    def hand_in_event(self, bundle: BySubject) -> Taken:
        """Hand in a pause, resumption or revocation of a grant."""
        return self._call(Taken, "POST", "/grants/events", bundle)

    def revoke_certificate(self, revocation: Envelope, certificate: Envelope) -> Taken:
        """Hand in the revocation of a subject's certificate."""
        body = RevocationBody(revocation=revocation, certificate=certificate)
        return self._call(Taken, "POST", "/grants/certificate-revocations", body)

    def status_list(self) -> Envelope:
        """The newest list of what happened to grants."""
        return self._call(StatusBody, "GET", "/grants/status").status

    def grant_events(self, entries: Sequence[str]) -> tuple[BySubject, ...]:
        """The events of these entries of a status list."""
        body = EventsWanted(events=tuple(entries))
        return self._call(EventBundles, "POST", "/grants/events/wanted", body, key="").items

    def events_of_grants(self, grants: Sequence[str]) -> tuple[BySubject, ...]:
        """The events on these grants."""
        body = GrantsNamed(grants=tuple(grants))
        return self._call(EventBundles, "POST", "/grants/events/of", body, key="").items

    def notices(self, mailbox: str, after: int = 0) -> Notices:
        """Sealed receipts for a key of this organisation's card."""
        return self._call(Notices, "GET", f"/grants/notices/{mailbox}?after={after}")

    # --- witnesses --------------------------------------------------------------------------------

    def publish_checkpoint(self, body: Published) -> Accepted:
        """Show this log's newest checkpoint to its witnesses."""
        return self._call(Accepted, "PUT", "/witness/checkpoint", body)

    def cosign(self, body: SeenNotes) -> Accepted:
        """Hand in this organisation's cosignatures."""
        return self._call(Accepted, "PUT", "/witness/cosignatures", body)

    def witness_board(self, after: int, wait_s: float) -> Board:
        """Checkpoints and cosignatures since version `after`; waits for the first."""
        return self._call(Board, "GET", f"/witness?after={after}&wait={wait_s:g}")

    # --- inside -----------------------------------------------------------------------------------

    def _pages(self, kind: type[B], path: str) -> Iterator[B]:
        cursor: str | None = None
        while True:
            query = f"?cursor={cursor}" if cursor else ""
            page = self._parse(Page[kind], self._send("GET", path + query)[1])  # type: ignore[valid-type]
            yield from page.items
            if (cursor := page.next) is None:
                return

    def _call(
        self,
        kind: type[B],
        method: str,
        path: str,
        body: Envelope | BaseModel | None = None,
        *,
        key: str | None = None,
    ) -> B:
        """`key`: of a POST; None draws one, "" sends none (of progress only the newest counts)."""
        content = body.to_json() if isinstance(body, Envelope) else None
        if content is None and body is not None:
            content = body.model_dump_json().encode()
        headers = dict(JSON_TYPE) if content is not None else {}
        if method == "POST" and key != "":
            headers["idempotency-key"] = key or secrets.token_hex(16)
        return self._parse(kind, self._send(method, path, content, headers)[1])

    def _parse(self, kind: type[B], data: bytes) -> B:
        try:
            return kind.model_validate_json(data)
        except ValidationError:
            todo = "compare the releases with `lianmo doctor`"
            what = f"answered with something that is not a {kind.__name__.split('[')[0]}"
            raise IntegrityError(what, party=self.platform, todo=todo) from None

    def _send(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[httpx.Response, bytes]:
        """The answer; raises the error that a problem stands for, Unavailable after retries."""
        deadline, delay = time.monotonic() + self._retry_s, 0.1
        while True:
            try:
                response, data = self._once(method, path, content, headers or {})
            except httpx.TransportError as error:
                failure = self._unreachable(error)
            except RuntimeError:
                if not self._http.is_closed:
                    raise
                raise Unavailable("this process is ending", party=self._home.org) from None
            else:
                if response.is_success:
                    return response, data
                failure = self._problem(response, data)
                if response.status_code not in (502, 503, 504):
                    raise failure
            if time.monotonic() + delay > deadline:
                raise failure
            time.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, no secret
            delay = min(delay * 2, 5.0)

    def _once(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str]
    ) -> tuple[httpx.Response, bytes]:
        with self._http.stream(method, path, content=content, headers=headers) as response:
            self._require_pinned(response)
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > self._max_bytes:
                    what = f"answered with more than {self._max_bytes} bytes"
                    raise IntegrityError(what, party=self.platform)
            return response, bytes(data)

    def _require_pinned(self, response: httpx.Response) -> None:
        stream: Any = response.extensions["network_stream"]
        if (tls := stream.get_extra_info("ssl_object")) is None:
            raise httpx.ReadError("closed before its certificate was looked at")
        shown = tls.getpeercert(True)
        card = self._home.trust().card(self.platform)  # just now: it may have renewed its keys
        if shown != certificates.der(card.tls_certificate):
            todo = "if it has renewed its certificate, trust its new card"
            what = "showed another certificate than the one in its trusted card"
            raise IntegrityError(what, party=self.platform, todo=todo)

    def _unreachable(self, error: httpx.TransportError) -> LianmoError:
        url = self._http.base_url
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            todo = "compare its card's fingerprint with the platform's"
            what = f"what answers at {url.host}:{url.port} is not the trusted platform"
            return IntegrityError(what, party=self.platform, todo=todo)
        what = f"cannot be reached at {url.host}:{url.port} ({type(error).__name__})"
        if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
            # TLS 1.3 tells a client that its certificate was refused only when it first reads
            what += "; perhaps it does not trust this organisation's card"
        return Unavailable(what, party=self.platform, todo="run `lianmo doctor`")

    def _problem(self, response: httpx.Response, data: bytes) -> LianmoError:
        if response.headers.get("content-type", "").startswith(PROBLEM_TYPE):
            try:
                return error_of(Problem.model_validate_json(data), party=self.platform)
            except ValidationError:
                pass
        title = f"answered with HTTP status {response.status_code}"
        return error_of(Problem(title=title, status=response.status_code), party=self.platform)
