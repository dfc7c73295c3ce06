"""What comes sealed to a node, opened once, each to whom it is for.

Questions, sign-ups and ends of watches come to owners, alerts to banks; an organisation of a kind
that both asks and answers (a guarantor) gets all of them on one line. Outside they look alike.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from clients.ending import Endings
from clients.home import Home
from clients.verification import Parcel, Provider
from clients.watcher import Watcher
from federation import sealing
from federation.errors import IntegrityError, LianmoError
from federation.identity import PrivateKey
from federation.objects import Usage
from federation.trust import TrustStore
from federation.watch import is_alert, is_end

log = logging.getLogger("lianmo.live")


class Incoming:
    """One home's frames; for `AnswerLine`."""

    def __init__(
        self,
        home: Home,
        *,
        provider: Provider | None = None,
        endings: Endings | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._home, self._provider = home, provider
        self._endings, self._watcher = endings, watcher
        self._key: tuple[TrustStore, PrivateKey] | None = None

    def answer(self, parcels: Sequence[Parcel]) -> list[bytes]:
        """The replies in the order of the frames, empty where there is none."""
        replies = [b""] * len(parcels)
        questions, ends = dict[int, Parcel](), dict[int, Parcel]()
        for place, parcel in enumerate(map(self._opened, parcels)):
            content = parcel.content or b""
            if self._watcher is not None and is_alert(content):
                replies[place] = _one_by_one(self._watcher.answer, [parcel])[0]
            elif self._endings is not None and is_end(content):
                ends[place] = parcel
            else:
                questions[place] = parcel
        if self._endings is not None and ends:
            answers = _aside(self._endings.answer, list(ends.values()))
            for place, answer in zip(ends, answers, strict=True):
                replies[place] = answer
        if self._provider is not None and questions:
            answers = self._provider.answer(list(questions.values()))
            for place, answer in zip(questions, answers, strict=True):
                replies[place] = answer
        return replies

    def _opened(self, parcel: Parcel) -> Parcel:
        """With what was sealed; as it is where it does not open: refused like any question."""
        trust = self._home.trust()
        if self._key is None or self._key[0] is not trust:  # a card has changed, perhaps our own
            self._key = trust, self._home.key(Usage.ENCRYPT)
        try:
            content = sealing.unseal(
                sealing.ASK, parcel.sealed, sender=parcel.sender, key=self._key[1]
            )
        except IntegrityError:
            return parcel
        return dataclasses.replace(parcel, content=content)


Answer = Callable[[Sequence[Parcel]], list[bytes]]


def _aside(answer: Answer, parcels: Sequence[Parcel]) -> list[bytes]:
    """Replies to frames that are no questions: together, or where that fails each by itself."""
    try:
        return answer(parcels)
    except LianmoError as error:
        log.warning("frames not answered together", extra={"reason": error.what})
    except Exception:
        # one frame must not take the answers to all others with it
        log.exception("frames not answered together")
    return _one_by_one(answer, parcels)


def _one_by_one(answer: Answer, parcels: Sequence[Parcel]) -> list[bytes]:
    replies = [b""] * len(parcels)
    for place, parcel in enumerate(parcels):
        try:
            replies[place] = answer([parcel])[0]
        except LianmoError as error:
            log.warning("frame not answered", extra={"reason": error.what})
        except Exception:
            # as above
            log.exception("frame not answered")
    return replies
