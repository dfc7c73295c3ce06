"""One channel over a relay that may lose, repeat, delay and change frames.

A `Line` makes an ordered, flow-controlled, sealed byte stream of what `federation/relay_frame.py`
describes, and messages of it. The network's thread calls `handle`, `tick` and `linked`; the
program's thread calls `send`, `receive` and `close`. Encryption runs in the program's thread, the
handshake in the network's, so that a peer can connect while this program computes.

What a lying relay gets: nothing that it can read; a changed byte ends the channel; everything else
it can do (withhold, forge ACK, STATE, GONE or an epoch) is silence or an early end.

In memory: WINDOW bytes that the peer has not consumed, two WINDOWs that this program has not, and
one message that is being put together. A program that waits in `send` takes messages in meanwhile
(`read_ahead_bytes`), else two parties that send to each other would wait for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from clients.tls_session import Identity, PeerCertificate, SessionEnded, TlsSession, framed
from federation.errors import IntegrityError, LianmoError, PartyLost, Refused, Unavailable
from federation.relay_frame import CHUNK, MAX_PAYLOAD, WINDOW, Address, Frame, Kind, Report

_COST = 64  # of an empty message in the read-ahead, so that these are bounded as well


@dataclass(frozen=True, slots=True)
class LineConfig:
    """Limits and waits of one channel."""

    max_message_bytes: int = 256 << 20
    read_ahead_bytes: int = 64 << 20  # taken in while this program waits to send
    start_timeout_s: float = 600.0  # until the peer's program is there, in `send`
    stall_timeout_s: float = 600.0  # a peer that is there takes nothing in, in `send`
    peer_timeout_s: float = 120.0  # a peer that was there is not heard of
    linger_s: float = 30.0  # after close: for what the peer has not taken yet
    heartbeat_s: float = 5.0
    probe_after_s: float = 1.0  # frames wait and nothing moves
    introduce_every_s: float = 0.5  # until the peer is first heard


class Line:
    """A `federation.channel.Transport` to one peer in one attempt of one job."""

    def __init__(
        self,
        own: Identity,
        address: Address,
        peer: PeerCertificate,
        post: Callable[[bytes], None],
        why_unlinked: Callable[[], str],
        config: LineConfig,
    ) -> None:
        """`post` takes an encoded frame, or drops it; `why_unlinked` is "" while it does not."""
        self.address = address
        self._post, self._why_unlinked, self._config = post, why_unlinked, config
        self._session = TlsSession(own, address, peer, max_message_bytes=config.max_message_bytes)
        self._epoch = os.urandom(8)
        # Order of locks: _tls, then _state. _tls covers the session and the order of what it seals.
        self._tls, self._state = threading.Lock(), threading.Condition()
        self._established = self._closing = False
        self._failure: LianmoError | None = None
        # sending
        self._sent = self._delivered = 0
        self._unconsumed: deque[tuple[int, int, bytes]] = deque()  # number, size, encoded frame
        self._in_flight = 0
        self._token = self._resent_token = 0
        self._probed_at = self._moved_at = time.monotonic()
        # receiving
        self._received = self._consumed = self._owed = 0
        self._inbox: deque[bytes | memoryview] = deque()
        self._inbox_bytes = 0
        self._messages: deque[bytes] = deque()
        self._message_bytes = 0
        self._gap_told_at = (-1, 0.0)  # what was received then, and when
        # the peer
        self._peer_epoch = b""
        self._waits_until: float | None = None  # while the program waits
        self._heard_at = self._introduced_at = self._moved_at

    # --- the program's thread ---------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Send one message; waits while the peer has WINDOW bytes unconsumed.

        Raises Refused if it is too long, PartyLost if the peer is away, restarted or takes nothing,
        Unavailable without the relay, IntegrityError if the channel was tampered with.
        """
        limit = self._config.max_message_bytes
        if len(frame) > limit:
            raise Refused(
                f"a message of {len(frame)} bytes, the limit of this channel is {limit}",
                party=self.address.party,
                todo="raise max_message_bytes at both parties or make the job smaller",
            )
        self._wait_until_established()
        length, body = framed(frame)
        first = length + body[: CHUNK - len(length)]
        self._send_piece(first)
        for start in range(CHUNK - len(length), len(body), CHUNK):
            self._send_piece(body[start : start + CHUNK])

    def receive(self, timeout_s: float) -> bytes:
        """The next message; raises TimeoutError, or as `send`."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._state:
                self._require_open()
                if self._messages:
                    message = self._messages.popleft()
                    self._message_bytes -= len(message) + _COST
                    return message
                if not (self._inbox and self._established):
                    self._raise_failure()
                    self._wait(deadline)
                    continue
            self._take_in()

    def close(self) -> None:
        """No more frames; what was sent is still delivered, in the background.

        From any thread: whoever waits in `send` or `receive` gets Unavailable.
        """
        with self._tls, self._state:
            if self._closing:
                return
            if self._established and self._failure is None:
                self._emit(self._session.end())
            else:
                self._unconsumed.clear()
                self._delivered = self._sent
            self._closing, self._moved_at = True, time.monotonic()
            self._inbox.clear()
            self._messages.clear()
            self._consumed = self._received
            self._acknowledge()
            self._probe()
            self._state.notify_all()

    def _wait_until_established(self) -> None:
        deadline = time.monotonic() + self._config.start_timeout_s
        with self._state:
            self._require_open()
            self._raise_failure()
            while not self._established:
                try:
                    self._wait(deadline)
                except TimeoutError:
                    what = f"did not open the channel within {self._config.start_timeout_s:.0f} s"
                    raise self._lost(what) from None
                self._require_open()  # closed while the peer was still awaited
                self._raise_failure()

    def _send_piece(self, piece: bytes | memoryview) -> None:
        self._wait_for_credit()
        with self._tls:
            with self._state:  # what ends a session holds _tls: it cannot happen below
                self._require_open()
                self._raise_failure()
            sealed = self._session.seal(piece)
            with self._state:
                self._emit(sealed)

    def _wait_for_credit(self) -> None:
        waited_since = time.monotonic()
        while True:
            with self._state:
                self._require_open()
                self._raise_failure()
                if self._in_flight < WINDOW:
                    return
                can_read = self._inbox and self._message_bytes < self._config.read_ahead_bytes
                if not can_read:
                    since = max(waited_since, self._moved_at)
                    try:
                        self._wait(since + self._config.stall_timeout_s)
                    except TimeoutError:
                        what = f"took nothing for {self._config.stall_timeout_s:.0f} s"
                        raise self._lost(what) from None
                    continue
            self._take_in()

    def _take_in(self) -> None:
        """Decrypt one frame of the inbox."""
        with self._tls:
            with self._state:
                if not self._inbox:
                    return
                self._session.feed(self._next_of_inbox())
            found: list[bytes] = []
            failure: LianmoError | None = None
            try:
                for message in self._session.messages():
                    found.append(message)  # not extend: it may raise after the first
            except SessionEnded:
                failure = self._lost("ended the channel")
            except IntegrityError as error:
                failure = error
            with self._state:
                self._messages.extend(found)
                self._message_bytes += sum(len(item) + _COST for item in found)
                if failure:
                    self._emit(self._session.outgoing())
                    self._fail(failure)
                self._state.notify_all()

    def absent_s(self) -> float | None:
        """Seconds that the program still waits for a peer that is away; None if it is there."""
        now = time.monotonic()
        with self._state:
            if self._waits_until is None or self._failure is not None:
                return None
            if not self._peer_epoch:
                return max(self._waits_until - now, 0.0)
            silent = now - self._heard_at
            if silent < 3 * self._config.heartbeat_s:
                return None
            return max(self._config.peer_timeout_s - silent, 0.0)

    def _wait(self, deadline: float) -> None:
        """Wait for a change, at most until the deadline; raises TimeoutError at it."""
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError
        if self._peer_epoch and now - self._heard_at > self._config.peer_timeout_s:
            seconds = f"{now - self._heard_at:.0f} s"
            if reason := self._why_unlinked():
                raise Unavailable(f"no connection to the relay for {seconds} ({reason})")
            raise self._lost(f"not heard of for {seconds}")
        self._waits_until = deadline
        self._state.wait(min(deadline - now, 0.25))
        self._waits_until = None

    # --- the network's thread ---------------------------------------------------------------------

    def handle(self, frame: Frame) -> None:
        """Take a frame of the peer from the relay."""
        with self._state:
            self._heard_at = time.monotonic()
            if frame.kind is Kind.DATA:
                self._accept(frame)
            elif frame.kind is Kind.ACK:
                self._consumed_by_peer(frame.number)
            else:
                self._handle_report(frame.kind, frame.number, frame.report())
            can_shake = bool(self._inbox) and not self._established and not self._closing
        if can_shake:
            self.shake_hands()

    def shake_hands(self) -> None:
        """Go as far with the handshake as what was received allows."""
        with self._tls:
            while True:
                failure: LianmoError | None = None
                done = False
                try:
                    done = self._session.handshake()
                except IntegrityError as error:
                    failure = error
                with self._state:
                    self._emit(self._session.outgoing())
                    self._established = done
                    if failure:
                        self._fail(failure)
                    self._state.notify_all()
                    if done or failure or not self._inbox:
                        return
                    self._session.feed(self._next_of_inbox())

    def linked(self) -> None:
        """The relay is (again) there: everything on the way may be lost."""
        with self._state:
            self._introduce()
            if self._unconsumed:
                self._probe()

    def tick(self) -> bool:
        """Called a few times a second; false once this line has nothing left to do."""
        now = time.monotonic()
        with self._state:
            if self._closing and (
                self._delivered >= self._sent  # it need not be consumed: the peer's memory has it
                or self._failure is not None
                or now - self._moved_at > self._config.linger_s
            ):
                self._report(Kind.GONE, self._received)
                return False
            if not self._peer_epoch:
                if now - self._introduced_at >= self._config.introduce_every_s:
                    self._introduce()
                return True
            patience = 0.1 if self._closing else self._config.probe_after_s
            stands = bool(self._unconsumed) and now - self._moved_at >= patience
            silent = now - self._heard_at >= self._config.heartbeat_s
            if (stands or silent) and now - self._probed_at >= patience:
                self._probe()
            return True

    def fail(self, failure: LianmoError) -> None:
        """End the line from outside; the program's next call raises."""
        with self._state:
            self._fail(failure)

    # --- with _state held -------------------------------------------------------------------------

    def _accept(self, frame: Frame) -> None:
        expected, size = self._received + 1, len(frame.payload)
        if frame.number > expected:
            self._tell_gap()
        if frame.number != expected or self._inbox_bytes + size > 2 * WINDOW:
            return  # a duplicate, later than a lost one, or of a peer that ignores its credit
        self._received = expected
        if self._closing or isinstance(self._failure, IntegrityError):
            self._consumed = expected  # read by nobody, but the peer need not keep it
            self._acknowledge()
            return
        self._inbox.append(frame.payload)
        self._inbox_bytes += size
        self._state.notify_all()

    def _tell_gap(self) -> None:
        """Ask for what is missing, once for each place where something is, then in intervals."""
        place, at = self._gap_told_at
        now = time.monotonic()
        if place != self._received or now - at > self._config.introduce_every_s:
            self._gap_told_at = (self._received, now)
            self._introduce()

    def _next_of_inbox(self) -> bytes | memoryview:
        payload = self._inbox.popleft()
        self._inbox_bytes -= len(payload)
        self._consumed += 1
        self._owed += len(payload)
        if self._owed >= WINDOW // 4:
            self._acknowledge()
        return payload

    def _handle_report(self, kind: Kind, number: int, report: Report) -> None:
        if kind is Kind.GONE:
            self._unconsumed.clear()
            self._fail(self._lost("closed the channel"))
            return
        if self._peer_epoch and report.epoch != self._peer_epoch:
            todo = "its operator can see why in its log; start the job again"
            what = "restarted and lost its state of this attempt"
            self._fail(PartyLost(what, party=self.address.party, todo=todo))
            return
        self._peer_epoch = report.epoch
        if kind is Kind.SYN:
            if self._unconsumed:
                self._probe()
            else:
                self._report(Kind.STATE, self._received)  # lets it know that we are here
        elif kind is Kind.PROBE:
            self._report(Kind.STATE, self._received, token=report.token, mark=report.mark)
        elif kind is Kind.STATE:
            self._delivered = max(self._delivered, min(number, self._sent))
            self._consumed_by_peer(report.consumed)
            if number < report.mark and report.token > self._resent_token:
                self._resent_token = self._token
                for sent, _, encoded in self._unconsumed:
                    if sent > number:
                        self._post(encoded)

    def _consumed_by_peer(self, number: int) -> None:
        before = self._in_flight
        self._delivered = max(self._delivered, min(number, self._sent))
        while self._unconsumed and self._unconsumed[0][0] <= number:
            self._in_flight -= self._unconsumed.popleft()[1]
        if self._in_flight != before:
            self._moved_at = time.monotonic()
            self._state.notify_all()

    def _emit(self, sealed: bytes) -> None:
        """Send ciphertext; with _tls held as well, which is what keeps it in order."""
        for start in range(0, len(sealed), MAX_PAYLOAD):
            piece = sealed[start : start + MAX_PAYLOAD]
            self._sent += 1
            encoded = Frame(Kind.DATA, self.address, self._sent, piece).encode()
            if not self._unconsumed:
                self._moved_at = time.monotonic()
            self._unconsumed.append((self._sent, len(piece), encoded))
            self._in_flight += len(piece)
            self._post(encoded)

    def _acknowledge(self) -> None:
        self._owed = 0
        self._post(Frame(Kind.ACK, self.address, self._consumed).encode())

    def _introduce(self) -> None:
        self._introduced_at = time.monotonic()
        self._report(Kind.SYN, self._received)

    def _probe(self) -> None:
        self._token += 1
        self._probed_at = time.monotonic()
        self._report(Kind.PROBE, self._sent, token=self._token, mark=self._sent)

    def _report(self, kind: Kind, number: int, *, token: int = 0, mark: int = 0) -> None:
        report = Report(self._epoch, self._consumed, token, mark)
        self._post(Frame(kind, self.address, number, report.encode()).encode())

    def _fail(self, failure: LianmoError) -> None:
        if self._failure is None:
            self._failure = failure
        if isinstance(failure, IntegrityError):
            self._inbox.clear()  # nothing after it can be believed
            self._inbox_bytes = 0
        self._state.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _require_open(self) -> None:
        if self._closing:  # from another thread: this is how a stopped job wakes its program
            raise Unavailable("this end of the channel is closed", party=self.address.party)

    def _lost(self, what: str) -> PartyLost:
        todo = "ask its operator to run `lianmo doctor`; a new attempt goes on where this one ended"
        return PartyLost(what, party=self.address.party, todo=todo)
