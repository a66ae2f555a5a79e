"""Files: written whole or not at all, and read without trust. A leaf: imports other leaves alone.

A file is written as a hidden temporary in its own folder, synced, and renamed; the folder is synced too. What a killed
run leaves is a temporary that the next run in the same folder removes.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from fpsgen.errors import BAD_INPUT, DISK, LOCKED, FpsgenError, may_not_be_read
from fpsgen.fields import parse_json, parse_toml
from fpsgen.text import show

OWN_PREFIX = ".fpsgen-"  # of the names of hidden files that fpsgen makes
_SUFFIX = ".part"


# ---------------------------------------------------------------- writing


@contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty temporary beside `path`, to be written by its name; it becomes `path` when the block ends.

    If the block raises, nothing is left. Raises FileExistsError where `path` exists and `overwrite` is not set, also
    when it came into being meanwhile; FpsgenError DISK where it is a folder or cannot be written.
    """
    path = Path(path)
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            raise FpsgenError(f"{show(path, 300)} is a folder, not a file", "choose another name", DISK)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that no file can have is said before the work
        raise cannot_write(path, error) from error
    else:
        if not overwrite:
            raise FileExistsError(str(path))
    with temporary(path) as (part, release):
        mode = part.stat().st_mode
        yield part
        try:
            if part.stat().st_mode != mode:  # a library put a file of its own in this one's place
                part.chmod(stat.S_IMODE(mode))
            sync(part)
            if sys.platform == "win32":  # an open file gets no new name there; elsewhere its lock is held to the end
                release()
            if overwrite:
                os.replace(part, path)
            else:
                _claim(part, path)
            sync(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise cannot_write(path, error) from error


@contextmanager
def temporary(path: str | Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yields an empty, hidden file beside `path`, and what lets go of it; it is removed when the block ends.

    No other run removes it meanwhile. An OSError of the block is FpsgenError DISK about `path`.
    """
    path = Path(path)
    part, descriptor = _create(path)
    held = [descriptor]

    def release() -> None:
        while held:
            os.close(held.pop())

    try:
        yield part, release
    except FileExistsError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        release()
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(data: bytes, path: str | Path, overwrite: bool = False) -> Path:
    """Write a file whole or not at all. Raises as `atomic`."""
    with atomic(path, overwrite) as part, part.open("wb") as file:
        file.write(data)
    return Path(path)


def write_text(text: str, path: str | Path, overwrite: bool = False) -> Path:
    """Write UTF-8 text whole or not at all, line ends as they are. Raises as `atomic`."""
    return write_bytes(text.encode("utf-8"), path, overwrite)


@contextmanager
def writing_tensors() -> Iterator[None]:
    """Within it, a safetensors file that cannot be written is an OSError, not the library's own error."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error)) from error


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it, if they are not there. Raises FpsgenError DISK."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise FpsgenError(f"{show(path, 300)} is not a folder", "choose another place with -o", DISK) from None
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    return Path(path)


def absolute(path: str | Path) -> Path:
    """The path from the root on. Raises FpsgenError DISK where the working folder was removed."""
    try:
        return Path(path).absolute()
    except OSError as error:
        raise FpsgenError("the working folder was removed", "change to one that exists", DISK) from error


def sync(path: str | Path) -> None:
    """Ask the disk to keep a file, or the names in a folder, now. Raises OSError."""
    if os.path.isdir(path):
        if sys.platform == "win32":  # folders cannot be opened there
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR)  # Windows syncs nothing that was opened for reading
    try:
        _sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: str | Path) -> int:
    """Remove temporaries in `folder` that no living run holds, and say how many."""
    removed = 0
    for part in Path(folder).glob(f"{OWN_PREFIX}*{_SUFFIX}*"):
        with suppress(OSError):
            descriptor = os.open(part, os.O_RDWR)
            try:
                if _try_lock(descriptor) is True:
                    part.unlink()
                    removed += 1
            finally:
                os.close(descriptor)
    return removed


def cannot_write(path: str | Path, error: Exception) -> FpsgenError:
    """The DISK error for a path that cannot be written, with what helps against this cause."""
    number = getattr(error, "errno", None)
    why = getattr(error, "strerror", None) or error
    remedy = "check its permissions, or choose another place with -o"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free space on the disk, or choose another folder with -o"
    elif number == errno.ENAMETOOLONG or isinstance(error, ValueError):
        remedy = "choose another name with -o"
    elif number == errno.ENOTDIR:
        remedy = "choose another place with -o"
    elif number == errno.ENOENT:
        remedy = _folder_removed() or "make the folder, or choose another with -o"
    return FpsgenError(f"{show(path, 300)} cannot be written: {show(why)}", remedy, DISK)


_OF_THE_SYSTEM = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space on the disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close other programs, or raise the limit of open files (ulimit -n)"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}


def system_error(error: Exception) -> FpsgenError | None:
    """The DISK error for an OSError whose cause is the machine and not fpsgen: permissions, a full or broken disk, a
    name that is too long, no more open files. None for others.
    """
    if not isinstance(error, OSError) or error.errno not in _OF_THE_SYSTEM:
        return None
    place = f"{show(error.filename, 300)}: " if error.filename else ""
    return FpsgenError(f"{place}{show(error.strerror)}", _OF_THE_SYSTEM[error.errno], DISK)


# ---------------------------------------------------------------- locks


@contextmanager
def lock(path: str | Path, busy: str, remedy: str) -> Iterator[bool]:
    """Hold a lock file for the length of the block; it goes with the process, however that ends. The file stays.

    Yields whether it is held: False on a file system that knows no locks, which the caller has to say. busy: the
    message if another process holds it; its pid and host are added. Raises FpsgenError LOCKED or DISK.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise FpsgenError(f"{busy}{_holder(path)}", remedy, LOCKED) from None
    except NotImplementedError:
        yield False
        return
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL):
            yield False
            return
        raise cannot_write(path, error) from error
    try:
        with suppress(OSError):  # Windows lets nobody write what is locked
            Path(path).write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        yield True
    finally:
        held.release()


def used_alone(folder: Path) -> AbstractContextManager[bool]:
    """Within it no other run works in the folder, which exists. Raises FpsgenError LOCKED, DISK."""
    busy = f"{show(folder)} is used by another run"
    return lock(folder / ".lock", busy, "wait for it, or name another folder with -o")


def _holder(path: str | Path) -> str:
    with suppress(OSError, ValueError):
        pid, host = Path(path).read_text(encoding="utf-8")[:300].split()
        return f" (process {int(pid)} on {show(host, 80)})"
    return ""


# ---------------------------------------------------------------- reading


def read_bytes(path: str | Path, limit: int, what: str, code: int = BAD_INPUT) -> bytes:
    """A regular file of at most `limit` bytes; never waits on a pipe or device. what: how messages name it.

    Raises FpsgenError `code`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise _cannot_read(what, error, code) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
            raise FpsgenError(f"{what} is {kind}, not a file", "name a regular file", code)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _cannot_read(what, error, code) from error
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise FpsgenError(f"{what} is larger than {_size(limit)}", "see whether it is the file that was meant", code)
    return data


def read_text(path: str | Path, limit: int, what: str, code: int = BAD_INPUT) -> str:
    """A UTF-8 file of at most `limit` bytes, without a byte order mark. Raises FpsgenError `code`."""
    return decode(read_bytes(path, limit, what, code), what, code)


def read_json(path: str | Path, limit: int, what: str, code: int = BAD_INPUT) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes, see `parse_json`."""
    return parse_json(read_text(path, limit, what, code), what, code)


def read_toml(path: str | Path, limit: int, what: str, code: int = BAD_INPUT) -> dict[str, Any]:
    """The table in a TOML file of at most `limit` bytes, see `parse_toml`."""
    return parse_toml(read_text(path, limit, what, code), what, code)


@contextmanager
def open_tensors(path: str | Path, code: int = BAD_INPUT) -> Iterator[Any]:
    """A safetensors file as safetensors.safe_open gives it, for torch.

    Raises SafetensorError; OSError for what is no regular file: safe_open would wait for a pipe; FpsgenError `code`
    for one that may not be read: safe_open would say that it is not there.
    """
    from safetensors import safe_open

    if not os.path.isfile(path):
        raise OSError("it is no file")
    if not os.access(path, os.R_OK):
        raise may_not_be_read(show(path), code)
    with safe_open(path, framework="pt") as file:
        yield file


def decode(data: bytes, what: str, code: int = BAD_INPUT) -> str:
    """UTF-8 bytes as text without a byte order mark. Raises FpsgenError `code` with line and byte of what is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise FpsgenError(f"{what} is UTF-16 text (from byte 0)", "save it as UTF-8", code) from None
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        where = f"byte 0x{data[error.start]:02x} at offset {error.start}, line {line}"
        raise FpsgenError(f"{what} is not UTF-8 text: {where}", "save it as UTF-8", code) from None


# ---------------------------------------------------------------- parts


def _create(path: Path) -> tuple[Path, int]:
    """A new, empty, locked temporary beside `path`, open. Raises FpsgenError DISK."""
    while True:
        part = path.with_name(f"{OWN_PREFIX}{secrets.token_hex(6)}{_SUFFIX}")
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except (OSError, ValueError) as error:
            raise cannot_write(path, error) from error
        if _try_lock(descriptor) is not False and os.path.exists(part):
            return part, descriptor
        os.close(descriptor)  # another run's sweep was quicker than the lock


def _try_lock(descriptor: int) -> bool | None:
    """Whether an advisory lock on the open file was free and is held now; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows: nobody removes a file that another holds open
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _claim(part: Path, path: Path) -> None:
    """Give `part` its name unless that exists by now. Raises FileExistsError."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise FileExistsError(str(path)) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(str(path)) from None
        os.replace(part, path)


def _sync_descriptor(descriptor: int) -> None:
    if sys.platform == "darwin":  # fsync leaves data in the drive's cache there
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _cannot_read(what: str, error: Exception, code: int) -> FpsgenError:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return FpsgenError(f"{what} is not there", _folder_removed() or "check the name", code)
    if number in (errno.EACCES, errno.EPERM):
        return may_not_be_read(what, code)
    if number == errno.ENAMETOOLONG or isinstance(error, ValueError):
        return FpsgenError(f"{what} is no name that a file can have", "check the name", code)
    why = getattr(error, "strerror", None) or error
    return FpsgenError(f"{what} cannot be read: {show(why)}", "check the name and the disk", code)


def _folder_removed() -> str:
    """The remedy where the working folder was removed, else nothing."""
    try:
        os.getcwd()
    except OSError:
        return "the working folder was removed: change to one that exists"
    return ""


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count} bytes"
