"""The command `invsolve`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Console entry point: run a command and exit with its status (0, 1, 2, or 130 after Ctrl-C)."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminate)
    try:
        from invsolve.cli.app import app

        app()
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as in `invsolve list | head`; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave through every `finally`, so that temporary files go."""
    sys.exit(128 + number)
