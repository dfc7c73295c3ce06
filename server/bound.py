"""Runs a module of ours as `python -m` would, in a process that ends when its parent does.

A coordinator that was killed leaves no relay behind that would hold the port against the next one.
Where the kernel has no such promise (anything but Linux) the process simply goes on.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """`python -m server.bound MODULE ARGUMENTS`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    name, arguments = sys.argv[1], sys.argv[2:]
    code: int = importlib.import_module(name).main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
