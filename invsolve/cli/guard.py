"""Exit statuses of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from invsolve.cli.errors import UserError


def guarded(command: Callable[[], int]) -> NoReturn:
    """Run a command and leave with its exit status.

    A `UserError` is one sentence on stderr and status 2; Ctrl-C is status 130.
    """
    from invsolve.cli.progress import show_error

    try:
        status = command()
    except UserError as error:
        show_error(str(error))
        status = 2
    except KeyboardInterrupt:
        show_error("interrupted; nothing half-written is left.")
        status = 130
    sys.stdout.flush()
    raise typer.Exit(status)
