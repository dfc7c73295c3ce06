"""How processes log: one line an event, its ids as `key=value`, to stderr.

Events carry ids that the other party can look up (STYLE.md section 7); never a value, key, credit
code or bank label.
"""

from __future__ import annotations

import logging
import time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class EventFormatter(logging.Formatter):
    """Time in UTC, level, logger, message, then what was given as `extra`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line; values with spaces are quoted, line ends are never written."""
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        pairs = "".join(f" {key}={_shown(value)}" for key, value in extra.items())
        return super().formatMessage(record).replace("\n", " ") + pairs


def configure(level: int = logging.INFO) -> None:
    """Log events of our packages at `level`, others' from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("clients", "federation", "lianmo", "protocols", "server"):
        logging.getLogger(name).setLevel(level)
    flower = logging.getLogger("flwr")  # brings its own handler, and would say everything twice
    flower.handlers.clear()
    flower.setLevel(logging.WARNING)
    flower.propagate = True


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() for c in text) else text
