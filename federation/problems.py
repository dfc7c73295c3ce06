"""What both sides' HTTP APIs answer when it is not 2xx: an RFC 9457 problem, never a value, a path,
SQL or a stack."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from federation.api import PROBLEM_TYPE, Problem, problem_of
from federation.errors import LianmoError

Handler = Callable[[Request, Exception], Coroutine[Any, Any, Response]]


def problem_response(problem: Problem) -> Response:
    """A problem as an answer."""
    return Response(problem.model_dump_json(), problem.status, media_type=PROBLEM_TYPE)


def plain_problem(status: int, detail: str = "") -> Response:
    """A problem that is none of ours."""
    title = HTTPStatus(status).phrase
    return problem_response(Problem(title=title, status=status, detail=detail))


def handlers(
    log: logging.Logger, invalid: Callable[[str], Response], party: str = ""
) -> dict[int | type[Exception], Handler]:
    """FastAPI's `exception_handlers`; invalid: the answer to a request of the wrong shape, given
    which field and why; party: who answers."""

    async def on_lianmo(request: Request, error: Exception) -> Response:
        if not isinstance(error, LianmoError):
            raise error
        return problem_response(problem_of(error, party))

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        response = plain_problem(error.status_code)
        if error.headers and "allow" in {name.lower() for name in error.headers}:
            response.headers.update(error.headers)
        return response

    async def on_invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        first = error.errors()[0]
        place = ".".join(str(part)[:64] for part in first["loc"])
        return invalid(f"{place}: {first['msg']}")

    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("internal error", extra={"error": type(error).__name__})
        return plain_problem(500)

    return {
        LianmoError: on_lianmo,
        HTTPException: on_http,
        RequestValidationError: on_invalid,
        Exception: on_bug,
    }
