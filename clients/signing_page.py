"""The page on which an enterprise reads a grant and signs it, on a phone as well (ADR 11).

One file without a network: its policy allows its own script and nothing else, so whoever hands it
out cannot see what is signed, and the key is one that the browser does not give out.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from federation.errors import Unavailable

FILE = Path(__file__).parent / "pages" / "grant.html"
SCRIPT = re.compile(r"<script>(.*?)</script>", re.S)
PLACE = "sha256-SCRIPT"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src '{}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page() -> bytes:
    """The page, with its script's digest in its policy."""
    text = FILE.read_text(encoding="utf-8")
    return text.replace(PLACE, _script_digest(text), 1).encode()


def _script_digest(text: str) -> str:
    found = SCRIPT.search(text)
    if found is None:
        raise RuntimeError("the page has no script")
    digest = hashlib.sha256(found.group(1).encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def serve(port: int, ready: Callable[[str], None]) -> None:
    """Serve the page, and nothing else, on loopback until interrupted."""
    content = page()
    policy = POLICY.format(_script_digest(content.decode()))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_page = self.path.partition("?")[0] == "/"
            self.send_response(200 if is_page else 404)
            body = content if is_page else b""
            for name, value in (
                ("content-type", "text/html; charset=utf-8"),
                ("content-length", str(len(body))),
                ("content-security-policy", policy),
                ("cache-control", "no-store"),
                ("referrer-policy", "no-referrer"),
                ("x-content-type-options", "nosniff"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: who reads a notice is nobody's business."""

    try:
        server = HTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        reason = (error.strerror or "error").lower()
        todo = "choose another --port"
        raise Unavailable(f"cannot listen on 127.0.0.1:{port} ({reason})", todo=todo) from None
    with server:
        ready(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()
