"""One effect for one key: what became of a POST to the local API is kept under its
`Idempotency-Key`, and given again.

A question whose outcome a crash has hidden is not put again, as it may have cost a use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Header
from sqlalchemy import delete, update
from starlette.responses import Response

from clients.store import IdempotencyRow, Store
from federation.api import PROBLEM_TYPE, Body, problem_of
from federation.errors import LianmoError, Unavailable
from federation.grants import GRANT_LIFE
from federation.objects import utc_text
from federation.problems import plain_problem

KEY_LIFE = GRANT_LIFE + timedelta(days=7)  # then no grant is in force that it could cost a use of
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9_-]{16,64}$")]
_INTERRUPTED = Unavailable(
    "interrupted while it was served: the question may have cost a use",
    todo="look for it in GET /v1/verifications, then ask again with a new key",
)


class Once:
    """Keeps what became of a POST under its key."""

    def __init__(self, org: str, store: Store, now: Callable[[], datetime]) -> None:
        """org: whose API it is."""
        self.org, self._store, self._now = org, store, now
        self._interrupted = problem_of(_INTERRUPTED, org).model_dump_json().encode()
        self._lost = set[str]()  # keys of which the disk did not take what became of them
        self._end_interrupted()

    def serve(
        self, path: str, key: str, body: Body, effect: Callable[[], tuple[int, Body]]
    ) -> Response:
        """Do it, or give the answer that the same request had."""
        content = f"{path}\0{body.model_dump_json()}".encode()
        fingerprint = hashlib.sha256(content).hexdigest()
        if (known := self._claim(key, fingerprint)) is not None:
            return known
        try:
            status, answer = effect()
            kind, data = "application/json", answer.model_dump_json().encode()
        except LianmoError as error:
            problem = problem_of(error, self.org)
            status, kind, data = problem.status, PROBLEM_TYPE, problem.model_dump_json().encode()
        except BaseException:
            self._settle(key, 503, PROBLEM_TYPE, self._interrupted)
            raise
        return self._settle(key, status, kind, data)

    def _claim(self, key: str, fingerprint: str) -> Response | None:
        now = self._now()
        with self._store.writing(IdempotencyRow) as session:
            old = utc_text(now - KEY_LIFE)
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.created < old))
            row = session.get(IdempotencyRow, key)
            if row is None:
                row = IdempotencyRow(
                    key=key, fingerprint=fingerprint, content_type="", created=utc_text(now)
                )
                session.add(row)
                return None
            if row.fingerprint not in ("", fingerprint):  # "": forgotten with its answer
                return plain_problem(422, "this Idempotency-Key was used for another request")
            if row.status is None and key in self._lost:  # as after a crash
                row.status, row.content_type, row.body = 503, PROBLEM_TYPE, self._interrupted
            if row.status is None:
                return plain_problem(409, "the first request with this Idempotency-Key is served")
            return Response(row.body, row.status, media_type=row.content_type)

    def _settle(self, key: str, status: int, kind: str, data: bytes) -> Response:
        """Keep what became of it; the answer to give, which is the one that is kept."""
        try:
            with self._store.writing(IdempotencyRow) as session:
                row = session.get(IdempotencyRow, key)
                # a process that began while this one ended has called it interrupted, and said so
                if row is not None and row.status is not None:
                    return Response(row.body, row.status, media_type=row.content_type)
                if row is not None:
                    row.status, row.content_type, row.body = status, kind, data
        except LianmoError:
            self._lost.add(key)
            raise
        return Response(data, status, media_type=kind)

    def _end_interrupted(self) -> None:
        """What a crash cut off: whether the question was answered, nobody here knows."""
        with self._store.writing(IdempotencyRow) as session:
            session.execute(
                update(IdempotencyRow)
                .where(IdempotencyRow.status.is_(None))
                .values(status=503, content_type=PROBLEM_TYPE, body=self._interrupted)
            )
