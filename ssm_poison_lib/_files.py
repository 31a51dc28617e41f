"""Files that are complete or absent, and folders that one process at a time writes to."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["locked", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends; a block that fails leaves no
    trace.

    Raises:
        OSError: with the file's name: full disk, no permission, a read-only folder.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    for left in path.parent.glob(f"{escape(path.name)}.*.partial"):  # by a process that was killed
        with suppress(OSError):
            left.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` during the block. The lock ends with its process, however that
    ends.

    Raises:
        BlockingIOError: if somebody else holds it, another OSError if it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "ab")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder has removed it meanwhile: take the one that is there now
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files: there it stays, unlocked
            path.unlink()
        file.close()


def _lock(file: BinaryIO) -> None:
    """Lock an open file without waiting.

    Raises:
        BlockingIOError: if it is locked.
    """
    if sys.platform == "win32":
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
