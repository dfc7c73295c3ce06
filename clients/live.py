"""The node's second process: answers questions on enterprises and serves the bank's local API.

Apart from the node's own process, so that neither a long training nor its interpreter lock delays
an answer. It ends with the node: the node holds the other end of its standard input.

An answer leaves at a multiple of `time_class_ms` after its question was taken, and all of a batch
leave together, so that the time says nothing of what became of one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Protocol

from clients import grants
from clients.completing import Completing
from clients.coordinator_client import CoordinatorClient
from clients.ending import Endings
from clients.forgetting import forget_old
from clients.gate import Gate
from clients.home import Home
from clients.incoming import Incoming
from clients.receipt_desk import ReceiptDesk
from clients.services import services
from clients.store import Store
from clients.use_notices import UseNotices
from clients.verification import Parcel, Provider
from clients.verification_settings import VerificationSettings
from clients.watcher import Watcher
from clients.watching import Watchman
from clients.witnessed import Witnessed
from federation import collector, logs, sealing
from federation.consent_api import Outbox, ParcelEntry, ReplyEntry
from federation.errors import LianmoError, Unavailable
from federation.identity import USAGES
from federation.objects import Usage

log = logging.getLogger("lianmo.live")

WAIT_S = 20.0
FORGET_EVERY_S = 3600.0
NOTICES_EVERY_S = 1.0
BATCHES_OUT = 4  # answered, and not handed in yet
LEAVE_S = 2.0  # for answers that are on their way when the process ends
RECEIPTS_WAITING = 64  # frames
RECEIPTS_REST = 4  # times as long as the work
AGAIN_S = (0.2, 5.0)  # pause after a failure, first and longest


class Answers(Protocol):
    """Turns sealed frames into sealed replies: `Incoming`."""

    def answer(self, parcels: Sequence[Parcel]) -> list[bytes]:
        """The replies in the order of the frames, empty where there is none."""


class AnswerLine:
    """Takes sealed questions from the coordinator and brings the answers back, until stopped."""

    def __init__(
        self,
        provider: Answers,
        client: CoordinatorClient,
        *,
        time_class_s: float,
        receipts: ReceiptLine | None = None,
    ) -> None:
        self._provider, self._client, self._time_class_s = provider, client, time_class_s
        self._receipts, self._stopped = receipts, threading.Event()
        self._room = threading.Semaphore(BATCHES_OUT)
        self._idle, self._in_hand = threading.Condition(), 0  # batches that were taken

    def stop(self) -> None:
        """Take no more; `run` returns when the poll that is held ends.

        What was taken has cost its uses: it is handed in before this returns, or LEAVE_S are over.
        """
        with self._idle:
            self._stopped.set()
            self._idle.wait_for(lambda: not self._in_hand, LEAVE_S)

    def run(self) -> None:
        """Serve until `stop`; what fails is tried again after a growing pause."""
        pause = AGAIN_S[0]
        with ThreadPoolExecutor(1, "answers-out") as out:
            while not self._stopped.is_set():
                try:
                    taken = self._client.take_sealed(WAIT_S).items
                    self._serve(taken, out)
                    pause = AGAIN_S[0]
                except LianmoError as error:
                    extra = {"reason": str(error), "again_s": pause}
                    log.warning("questions not served", extra=extra)
                    self._stopped.wait(pause)
                    pause = min(2 * pause, AGAIN_S[1])
                except Exception:
                    # one batch must not end the answers to all that come after it
                    log.exception("batch of questions lost")
                    self._stopped.wait(pause)

    def _serve(self, taken: Sequence[ParcelEntry], out: Executor) -> None:
        """Answer what was taken; `out` brings the answers back when it is time."""
        began = time.monotonic()
        if self._receipts is not None:
            for item in taken:
                if sealing.is_receipts(item.sealed):
                    self._receipts.put(item)
            taken = [item for item in taken if not sealing.is_receipts(item.sealed)]
        if not taken:
            return
        with self._idle:
            if self._stopped.is_set():  # nothing has been spent on them, and nobody could hand in
                return
            self._in_hand += 1
        try:
            self._answer(taken, began, out)
        except BaseException:
            self._done()
            raise

    def _answer(self, taken: Sequence[ParcelEntry], began: float, out: Executor) -> None:
        parcels = [Parcel(item.sender, item.sealed) for item in taken]
        replies = self._provider.answer(parcels)
        entries = tuple(
            ReplyEntry(id=item.id, sealed=sealed)
            for item, sealed in zip(taken, replies, strict=True)
            if sealed
        )
        elapsed = time.monotonic() - began
        due = began + elapsed + -elapsed % self._time_class_s
        self._room.acquire()  # a coordinator that takes no answers gets no questions answered
        out.submit(self._hand_in, Outbox(items=entries), due)

    def _hand_in(self, body: Outbox, due: float) -> None:
        try:
            time.sleep(max(0.0, due - time.monotonic()))
            self._client.reply_sealed(body)
        except LianmoError as error:
            log.warning("answers not handed in", extra={"reason": str(error)})
        except Exception:
            # the thread has the next batches to bring
            log.exception("answers not handed in")
        finally:
            self._room.release()
            self._done()

    def _done(self) -> None:
        with self._idle:
            self._in_hand -= 1
            self._idle.notify_all()


class ReceiptLine:
    """Completes receipts beside the answers, at most a fifth of the time, so that whoever asks for
    many of them delays nobody's answer."""

    def __init__(
        self, desk: ReceiptDesk, client: CoordinatorClient, *, time_class_s: float
    ) -> None:
        self._desk, self._client, self._time_class_s = desk, client, time_class_s
        self._waiting = queue.Queue[ParcelEntry | None](RECEIPTS_WAITING)

    def put(self, item: ParcelEntry) -> None:
        """A frame that asks for receipts; beyond what can wait it is dropped, and asked again."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(item)

    def stop(self) -> None:
        """Serve no more; without waiting for those that do."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    def run(self) -> None:
        """Serve until `stop`."""
        while (item := self._waiting.get()) is not None:
            began = time.monotonic()
            try:
                self._serve(item, began)
            except LianmoError as error:
                log.warning("receipts not given", extra={"reason": str(error)})
            except Exception:
                # one frame must not end the service of all that come after it
                log.exception("receipts not given")
            time.sleep(RECEIPTS_REST * (time.monotonic() - began))

    def _serve(self, item: ParcelEntry, began: float) -> None:
        sealed = self._desk.answer(Parcel(item.sender, item.sealed))
        time.sleep(-(time.monotonic() - began) % self._time_class_s)
        if sealed:
            entry = ReplyEntry(id=item.id, sealed=sealed)
            self._client.reply_sealed(Outbox(items=(entry,)))


class Repeated:
    """Does something every so often, until stopped."""

    def __init__(self, what: str, once: Callable[[], object], every_s: float) -> None:
        self._what, self._once, self._every_s = what, once, every_s
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Do it no more."""
        self._stopped.set()

    def run(self) -> None:
        """Do it until `stop`; what fails is tried again the next time."""
        while not self._stopped.wait(self._every_s):
            try:
                self._once()
            except LianmoError as error:
                log.warning("not done", extra={"what": self._what, "reason": str(error)})
            except Exception:
                # one time must not end all that come after it
                log.exception("not done", extra={"what": self._what})


class Follower:
    """Keeps the status list fresh, tells owners which watches a bank has ended, and forgets what it
    may keep no longer."""

    def __init__(self, home: Home, store: Store, client: CoordinatorClient, every_s: float) -> None:
        self._home, self._store, self._client, self._every_s = home, store, client, every_s
        self._stopped, self._next_forgetting = threading.Event(), 0.0

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def run(self) -> None:
        """Ask until `stop`."""
        while not self._stopped.is_set():
            self.round()
            self._stopped.wait(self._every_s)

    def round(self) -> None:
        """All of it once, each by itself: no coordinator keeps a bank from forgetting."""
        steps = [("status list", self._sync)]
        if Usage.REQUEST in USAGES[self._home.own().org_kind]:
            steps += [("ends of watches", self._tell), ("answers to forget", self._forget)]
        for what, once in steps:
            try:
                once()
            except LianmoError as error:
                log.warning("not done", extra={"what": what, "reason": str(error)})
            except Exception:
                # without a list the provider refuses by itself; the thread has to go on asking
                log.exception("not done", extra={"what": what})

    def _sync(self) -> None:
        grants.sync(self._home, self._store, self._client, _now())

    def _tell(self) -> None:
        Watcher(self._home, self._store, self._client, _now).tell_ends()

    def _forget(self) -> None:
        if time.monotonic() < self._next_forgetting:
            return
        if count := forget_old(self._home, self._store, _now()):
            log.info("answers forgotten", extra={"count": count})
        self._next_forgetting = time.monotonic() + FORGET_EVERY_S


# --- the process ----------------------------------------------------------------------------------


def has_work(home: Home) -> bool:
    """Whether this kind of organisation asks or answers at all."""
    return bool({Usage.ANSWER, Usage.REQUEST} & set(USAGES[home.own().org_kind]))


@contextlib.contextmanager
def beside(home: Home) -> Iterator[threading.Event]:
    """Run the process beside a node for the length of the block; started again if it ends.

    The event is set once it serves; at once where there is nothing to serve.
    """
    serves = threading.Event()
    if not has_work(home):
        serves.set()
        yield serves
        return
    stopped = threading.Event()
    keeper = _Keeper(home, stopped, serves)
    keeper.start()
    try:
        yield serves
    finally:
        stopped.set()
        keeper.end()


class _Keeper(threading.Thread):
    """Starts the process, and starts it again."""

    def __init__(self, home: Home, stopped: threading.Event, serves: threading.Event) -> None:
        super().__init__(name="live", daemon=True)
        self._home, self._stopped, self._serves = home, stopped, serves
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Until the node stops."""
        pause = 1.0
        while not self._stopped.is_set():
            began = time.monotonic()
            with self._lock:
                if self._stopped.is_set():
                    return
                self._process = process = subprocess.Popen(
                    [sys.executable, "-m", "clients.live"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"LIANMO_HOME": str(self._home.path)},
                )
            with process.stdout or contextlib.nullcontext(b"") as said:
                for _ in said:  # one line, when it serves; the end when it ends
                    self._serves.set()
            code = process.wait()
            if self._stopped.is_set():
                return
            pause = 1.0 if time.monotonic() - began > 60 else min(2 * pause, 30.0)
            log.error("live process ended", extra={"code": code, "again_s": pause})
            self._stopped.wait(pause)

    def end(self) -> None:
        """Close its standard input, and wait a moment."""
        with self._lock:
            process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve(home: Home, serves: Callable[[], None], until: Callable[[], None]) -> None:
    """Answer and serve the local API until `until` returns; `serves` is called when that begins."""
    settings = VerificationSettings.of(home)
    usages = set(USAGES[home.own().org_kind])
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store.open(home.database_url)))
        client = stack.enter_context(CoordinatorClient(home, retry_s=1.0))
        _begin(stack, "status", Follower(home, store, client, settings.status_every_s))
        provider = endings = watcher = receipts = None
        time_class_s = settings.time_class_ms / 1000
        if Usage.ANSWER in usages:
            gate = Gate(home, store, _now)
            provider = Provider(
                home,
                store,
                now=_now,
                services=services(home, store, gate, _now),
                ready=Witnessed(home, store).require,
            )
            endings = Endings(home, store, _now)
            desk = ReceiptDesk(home, store, _now)
            receipts = ReceiptLine(desk, client, time_class_s=time_class_s)
            _begin(stack, "receipts", receipts)
            wait = timedelta(seconds=settings.notice_wait_s)
            notices = UseNotices(home, store, client, _now, wait)
            _begin(stack, "notices", Repeated("notices", notices.round, NOTICES_EVERY_S))
            ready = Witnessed(home, store).require
            watchman = Watchman(home, store, gate, client, _now)

            def watch() -> None:
                ready(_now())
                watchman.round()

            _begin(stack, "watches", Repeated("watches", watch, settings.watch_every_s))
        if Usage.REQUEST in usages:  # alerts come the way that questions go
            watcher = Watcher(home, store, client, _now)
        incoming = Incoming(home, provider=provider, endings=endings, watcher=watcher)
        line = AnswerLine(incoming, client, time_class_s=time_class_s, receipts=receipts)
        _begin(stack, "answers", line)
        if Usage.REQUEST in usages:
            from clients.local_api import serving

            every_s = settings.receipts_every_s
            completing = Completing(home, store, client, _now, after_s=every_s)
            _begin(stack, "completing", Repeated("receipts", completing.round, every_s))
            stack.enter_context(serving(home, store, client, settings))
        collector.spare_what_is_here()
        serves()
        until()


class _Line(Protocol):
    """Something that a thread does until it is stopped."""

    def run(self) -> None:
        """Serve until `stop`."""

    def stop(self) -> None:
        """Serve no more."""


def _begin(stack: contextlib.ExitStack, name: str, line: _Line) -> None:
    """In a thread of its own, for as long as the stack is open."""
    stack.callback(line.stop)
    threading.Thread(target=line.run, name=name, daemon=True).start()


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> int:
    """`python -m clients.live`, in the environment of a node; ends with its standard input."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logs.configure()
    while True:
        try:
            serve(Home.open(), _say_so, _until_end)
        except Unavailable as error:  # the coordinator's card, say, is not there yet
            log.warning("not serving yet", extra={"reason": str(error)})
            if _is_over(AGAIN_S[1]):
                return 0
            continue
        except LianmoError as error:
            log.error("not serving", extra={"reason": str(error)})
            return error.exit_code
        return 0


def _say_so() -> None:
    sys.stdout.write("serves\n")
    sys.stdout.flush()


def _is_over(wait_s: float) -> bool:
    """Whether the node ends within so long. Who served after it would take the place, and the
    socket, of the process beside the next one."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _until_end() -> None:
    while sys.stdin.buffer.read(1 << 10):
        pass


if __name__ == "__main__":
    sys.exit(main())
