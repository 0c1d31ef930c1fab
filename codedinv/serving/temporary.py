"""Folders for models that were never saved: gone with the process that made them, however it ends.

A process that is killed cannot clean up, so the next one does. Whether an owner lives is told by a
lock on a file in its folder and not by its process id, which means nothing to another container
that shares /tmp.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

_PREFIX = "codedinv-bundle-"
_LOCK = "owner.lock"


class TemporaryFolder:
    """A new folder that is deleted by `remove`, else at the end of this process.

    Only the process that made it deletes it: a forked child has the same objects and must not.
    Those that dead processes left are swept away first.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        _sweep()
        # Under another name until it is locked, or a sweep elsewhere would take it for abandoned.
        made = Path(tempfile.mkdtemp(prefix="codedinv-new-"))
        lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(_PREFIX + made.name.removeprefix("codedinv-new-")))
        self._finalizer = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def remove(self) -> None:
        """Deletes the folder; in any process but its owner does nothing, and so does twice."""
        self._finalizer()


def is_temporary(path: str | Path) -> bool:
    """Is this in some server's temporary folder?"""
    return any(parent.name.startswith(_PREFIX) for parent in Path(path).parents)


def _remove(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _sweep() -> None:
    """Deletes the folders that no living process holds."""
    for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):  # another user's, or gone already
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
