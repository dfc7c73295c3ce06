"""What a finished job left in this home: the report, as a page and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clients.home import Home
from federation.errors import NotFound

REPORT_JSON, REPORT_HTML = "report.json", "report.html"  # as clients/tasks.py writes them


def report(home: Home, job: str) -> tuple[Path, dict[str, Any]]:
    """The page's path and the report's data.

    Raises NotFound for a job that did not finish here, or whose report another party has.
    """
    folder = home.runs(job)
    page, data = folder / REPORT_HTML, folder / REPORT_JSON
    if not page.is_file() or not data.is_file():
        todo = f"`lianmo job status {job}` says where it is; the report is with the bank"
        raise NotFound(f"there is no report of {job} here", party=home.org, todo=todo)
    return page, json.loads(data.read_text(encoding="utf-8"))
