"""What a user did wrong, in one sentence."""

from __future__ import annotations

import errno
import os


class UserError(Exception):
    """Input or options that cannot work; the message is one sentence with the value and the remedy."""


def explain_os_error(error: OSError, doing: str) -> UserError:
    """One sentence for a failed file operation.

    Args:
        error: what the system said.
        doing: what was tried, for example "writing restored/a.png".
    """
    remedy = {
        errno.ENOSPC: "the disk is full; free some space or choose another -o",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another -o",
        errno.EFBIG: "the file grew larger than this system allows; choose another -o or a smaller image",
        errno.EACCES: "permission denied; choose a place you may use",
        errno.EPERM: "permission denied; choose a place you may use",
        errno.EROFS: "the file system is read-only; choose another -o",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EEXIST: "a file of that name is in the way",
        errno.EISDIR: "there is a folder of that name",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ENOENT: "no such file or folder",
    }.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{doing} failed: {remedy}.")


def show_path(path: str | os.PathLike[str]) -> str:
    """A path as a user reads it: relative to here where that is shorter, without undecodable bytes."""
    text = os.fspath(path)
    try:
        relative = os.path.relpath(text)
    except ValueError:  # another drive
        relative = text
    short = relative if len(relative) < len(text) else text
    return short.encode(errors="surrogateescape").decode(errors="replace")
