"""How processes log: one line an event, its ids as `key=value`, to stderr and to a file that is
turned over before it grows too long.

Events carry ids that the other party can look up (STYLE.md section 7); never a value, key, credit
code or bank label.
"""

from __future__ import annotations

import logging
import os
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE_BYTES, FILES_KEPT = 10 << 20, 9  # the newest 100 MB at most
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


class EventFile(RotatingFileHandler):
    """For its owner's eyes. A disk that takes nothing stops no program: stderr has the line too."""

    def __init__(self, file: Path, *, size: int = FILE_BYTES, kept: int = FILES_KEPT) -> None:
        super().__init__(file, maxBytes=size, backupCount=kept, encoding="utf-8", delay=True)

    def _open(self) -> TextIOWrapper:
        os.close(os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the library would print a traceback."""


def configure(level: int = logging.INFO, *, file: Path | None = None) -> None:
    """Log events of our packages at `level`, others' from warnings on; to `file` as well."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        handlers.append(EventFile(file))  # of one process: two would turn it over for each other
    for handler in handlers:
        handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    for name in ("clients", "federation", "lianmo", "protocols", "server"):
        logging.getLogger(name).setLevel(level)
    flower = logging.getLogger("flwr")  # brings its own handler, and would say everything twice
    flower.handlers.clear()
    flower.setLevel(logging.WARNING)
    flower.propagate = True


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() for c in text) else text
