"""Errors as a person meets them: which party, what happened, what to do; each with an exit code.

    LianmoError        1  something failed
      UsageError       2  the request itself is wrong
      Refused          3  a policy said no
      IntegrityError   4  a signature, digest or check of the protocol does not hold
      NotFound         5  no such object
      Conflict         6  exists already, or is stale
      Unavailable      7  not reachable now; try again
        PartyLost      7  a party of the job is away or stopped
        NotKept        7  this party's own disk or database takes nothing

No message holds a data value, a key or a credit code.
"""

from __future__ import annotations

from enum import StrEnum


class RefusalCode(StrEnum):
    """Why an owner says no (GOVERNANCE.md, Approval); outwards only the coarse code travels."""

    CONSENT_INVALID = "CONSENT_INVALID"
    SPEC_INVALID = "SPEC_INVALID"
    INSUFFICIENT_BUDGET = "INSUFFICIENT_BUDGET"
    UNFULFILLABLE = "UNFULFILLABLE"
    DECLINED = "DECLINED"
    PURPOSE_NOT_ALLOWED = "PURPOSE_NOT_ALLOWED"
    FIELD_LEVEL = "FIELD_LEVEL"


class LianmoError(Exception):
    """What happened, with the party and the stage where it is known, and the next step."""

    exit_code = 1

    def __init__(self, what: str, *, party: str = "", stage: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what, self.party, self.stage, self.todo = what, party, stage, todo

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.party, self.stage and f"stage {self.stage}")))
        text = f"{where}: {self.what}" if where else self.what
        return f"{text}; {self.todo}" if self.todo else text


class UsageError(LianmoError):
    """The request itself is wrong: a bad file, option or parameter."""

    exit_code = 2


class Refused(LianmoError):
    """A policy said no."""

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        code: RefusalCode = RefusalCode.SPEC_INVALID,
        party: str = "",
        stage: str = "",
        todo: str = "",
    ) -> None:
        super().__init__(what, party=party, stage=stage, todo=todo)
        self.code = code


class IntegrityError(LianmoError):
    """A signature, a digest or a check of the protocol does not hold."""

    exit_code = 4


class NotFound(LianmoError):
    """No such object."""

    exit_code = 5


class Conflict(LianmoError):
    """It exists already, or the request was made against an older state."""

    exit_code = 6


class Unavailable(LianmoError):
    """Not reachable now."""

    exit_code = 7


class PartyLost(Unavailable):
    """A party of the job is away, or stopped by itself."""


class NotKept(Unavailable):
    """This party's own disk or database takes nothing: no room, or no right to write."""
