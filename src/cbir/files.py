"""Files that are complete or missing, despite full disks, power cuts and second processes."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cbir import StudyError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EROFS, errno.EPERM)
IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
# How long a process waits for the name of the one that has locked a folder.
NAME_SECONDS = 2
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def file_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and move it into place."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name, for a file that is moved to its place when it is complete and on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        synchronise(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # A full disk needs its space.
        raise


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_array(path: Path, dtype: type, shape: tuple[int, ...]):
    """A new `.npy` file as a memory-mapped array.

    Its space is reserved first. Otherwise, a full disk would kill the process when it writes to
    the array, instead of raising OSError here.
    """
    from numpy.lib.format import open_memmap  # few commands need it

    array = open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has no such function
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a folder; wait for one that writes it, and name it."""
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The alternative, a file that only exists, would outlive a process that is killed.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError):  # released at this moment
            # The other process writes its name after it has locked the file.
            until = time.monotonic() + NAME_SECONDS
            while not (holder := path.read_text("utf-8", "replace")) and time.monotonic() < until:
                time.sleep(0.01)
            print(f"waiting for {folder}, in use by {holder or 'another process'}", flush=True)
        lock.acquire()
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(f"process {os.getpid()} on {platform.node()} since {since}", "utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise a StudyError instead of an OSError, as `as_study_error` does."""
    try:
        yield
    except OSError as error:
        raise as_study_error(error, folder) from error


def as_study_error(error: OSError, folder: Path) -> Exception:
    """A StudyError for a file error that the user can fix; any other error unchanged."""
    # h5py and NumPy report a full disk without a number.
    if error.errno in FULL or re.search("No space left|requested and .* written", str(error)):
        return StudyError(
            f"disk full while writing {folder}: free some space and run again; "
            "finished steps are kept"
        )
    if error.errno in READ_ONLY:
        return StudyError(
            f"no access to {folder} ({error.strerror}): make it readable and writable, and run "
            "again"
        )
    if error.errno in IN_THE_WAY:
        path = error.filename2 or error.filename
        return StudyError(f"cannot write {folder}: {path} is in the way: move it and run again")
    if error.errno in WITHOUT_LOCKS:
        return StudyError(
            f"{folder} is on a file system without locks: move the project to another file system"
        )
    return error
