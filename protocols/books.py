"""What both ends must remember of tokens, whatever crashes: an interface that nodes make durable.

A token is spent for good when the digest of its query is written down, at both ends, before a byte
leaves (PROTOCOLS.md section 3). Same secret and two vectors: the department reads their difference.
Fresh errors or fresh noise for equal values: averaging takes the noise away (CRYPTO_REVIEW.md F3).
So every write here returns only when it would survive a crash, and a second write under a token
with another digest raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from protocols.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class BatchId:
    """One batch of tokens of one querier on one matrix label, in one attempt of a job."""

    manifest: bytes
    attempt: int
    querier: str
    matrix: str
    batch: int

    def token(self, index: int) -> TokenId:
        return TokenId(self, index)


@dataclass(frozen=True, slots=True)
class TokenId:
    """One token of a batch."""

    batch: BatchId
    index: int


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What a department sends again for an equal digest."""

    digest: bytes
    payload: bytes = field(repr=False)


class SpentBook(Protocol):
    """The querier's: which tokens are spent, on what digest, and what is still in flight."""

    def digest(self, token: TokenId) -> bytes | None:
        """The digest that the token was spent on, or None."""

    def spend(self, token: TokenId, digest: bytes, message: bytes) -> None:
        """Durable before it returns. An equal digest again changes nothing, another raises."""

    def message(self, token: TokenId) -> bytes | None:
        """The bytes in flight, until answered."""

    def answered(self, token: TokenId) -> None:
        """Forget the bytes in flight; the digest stays."""


class AnswerBook(Protocol):
    """The department's: which batches it granted, and the one answer of each token."""

    def grant(self, batch: BatchId, digest: bytes) -> None:
        """Durable. The same digest again changes nothing; another request for the batch raises."""

    def answered(self, token: TokenId) -> StoredAnswer | None:
        """The token's answer, if it was ever spent."""

    def record(self, token: TokenId, answer: StoredAnswer) -> None:
        """Durable before it returns; raises ProtocolError if the token has another answer."""


class MemorySpentBook:
    """A SpentBook that forgets with its process: for tests, examples and runs in one process."""

    def __init__(self) -> None:
        self._digests: dict[TokenId, bytes] = {}
        self._messages: dict[TokenId, bytes] = {}

    def digest(self, token: TokenId) -> bytes | None:
        return self._digests.get(token)

    def spend(self, token: TokenId, digest: bytes, message: bytes) -> None:
        if self._digests.setdefault(token, digest) != digest:
            raise ProtocolError("the token is spent on another query")
        self._messages.setdefault(token, message)

    def message(self, token: TokenId) -> bytes | None:
        return self._messages.get(token)

    def answered(self, token: TokenId) -> None:
        self._messages.pop(token, None)


class MemoryAnswerBook:
    """An AnswerBook that forgets with its process."""

    def __init__(self) -> None:
        self._granted: dict[BatchId, bytes] = {}
        self._answers: dict[TokenId, StoredAnswer] = {}

    def grant(self, batch: BatchId, digest: bytes) -> None:
        if self._granted.setdefault(batch, digest) != digest:
            raise ProtocolError("the batch was granted for another request")

    def answered(self, token: TokenId) -> StoredAnswer | None:
        return self._answers.get(token)

    def record(self, token: TokenId, answer: StoredAnswer) -> None:
        if self._answers.setdefault(token, answer) != answer:
            raise ProtocolError("the token has another answer")
