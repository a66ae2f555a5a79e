"""The ffmpeg program: found, tried, and run so that it always ends. A leaf.

It is called with a list of arguments, in a process group of its own that ends with it, watched for standstill, and
what it says is kept to its last lines.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.text import show

PATIENCE = 30.0  # seconds without progress, beside what the work itself may take
VARIABLE = "IMAGEIO_FFMPEG_EXE"
_TAIL = 1 << 16  # bytes kept of what it says


def ffmpeg() -> str:
    """Path of the ffmpeg to use: IMAGEIO_FFMPEG_EXE, else imageio-ffmpeg's own. Raises FpsgenError ENVIRONMENT."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise FpsgenError("no ffmpeg was found", _remedy(), ENVIRONMENT) from error


def raw_input(width: int, height: int, fps: float) -> list[str]:
    """Arguments for RGB frames on standard input."""
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s:v", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0"]


def encode(size: tuple[int, int] | None = None, picture: tuple[int, int] | None = None) -> list[str]:
    """Arguments for H.264 without a loss that the eye sees, in the colours and the pixel format that players know.

    size: (width, height) to scale to with a Lanczos filter, None to leave it. picture: what the frames take of it, in
    the middle of black bars; None: all.
    """
    inner = picture or size
    scale = f"scale={inner[0]}:{inner[1]}:flags=lanczos+accurate_rnd," if inner else ""
    scale += f"pad={size[0]}:{size[1]}:-1:-1," if size and picture not in (None, size) else ""
    to_video = "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd,"
    tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    same = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    x264 = ["-c:v", "libx264", "-preset", "medium", "-crf", "18", "-pix_fmt", "yuv420p"]
    return ["-an", "-vf", scale + to_video + tags, *x264, *same]


def check_ffmpeg() -> None:
    """Encode one small frame, so that a broken ffmpeg is found before there is work to lose. Takes about 0.1 s.

    Raises FpsgenError ENVIRONMENT: absent, not executable, another program, no H.264, crashes, does not end.
    """
    to_pipe = ["-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "pipe:1"]
    done = run([*raw_input(16, 16, 1), *encode(), *to_pipe], bytes(16 * 16 * 3))
    if done.code == 0 and done.out[4:8] == b"ftyp" and b"avc1" in done.out:
        return
    name = show(Path(ffmpeg()))
    if done.late:
        raise FpsgenError(f"ffmpeg ({name}) does not end", _remedy(), ENVIRONMENT)
    version = run(["-version"], bare=True)
    if not version.out.startswith(b"ffmpeg version"):
        raise FpsgenError(f"{name} is not ffmpeg", _remedy(), ENVIRONMENT)
    if "ncoder" in done.said:
        raise FpsgenError(f"ffmpeg ({name}) cannot encode H.264: {done.said}", _remedy(), ENVIRONMENT)
    why = done.said or (f"it ended with code {done.code}" if done.code else "it wrote no MP4")
    raise FpsgenError(f"ffmpeg ({name}) does not work: {why}", _remedy(), ENVIRONMENT)


class Done(NamedTuple):
    """How a run ended. code: exit code. out: standard output. said: its last line on stderr. late: stopped by us."""

    code: int
    out: bytes
    said: str
    late: bool


def run(arguments: list[str], data: bytes = b"", work: float = 0.0, limit: int = 1 << 26, bare: bool = False) -> Done:
    """Run it to its end with `data` (at most what a pipe holds) on standard input and keep `limit` bytes of output."""
    with Process(arguments, work, bare=bare) as process:
        process.write(data)
        process.close_input()
        out = process.read_exactly(limit)
        code = process.wait() if len(out) < limit else -1
        return Done(code, out, process.said, process.late)


class Process:
    """A running ffmpeg. Leaving the `with` block ends it and all that it started.

    It is stopped, and `late` is set, when nothing was written to it or read from it for PATIENCE seconds and `work`,
    the seconds that the work itself may take.
    Raises FpsgenError ENVIRONMENT where it cannot be started.
    """

    def __init__(self, arguments: list[str], work: float = 0.0, bare: bool = False) -> None:
        self._command = [ffmpeg(), *(arguments if bare else ["-hide_banner", "-nostdin", "-v", "error", *arguments])]
        self._patience = PATIENCE + work
        self.late = False
        self.tail = b""  # the end of what it said on stderr
        self._reaping = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        except (OSError, ValueError) as error:
            raise _cannot_start(self._command[0], error) from error
        self._stdin: Any = self._process.stdin
        self._stdout: Any = self._process.stdout
        self._stderr: Any = self._process.stderr
        self._progress()
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._listen, self._watch)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._kill(reap=True)
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        for pipe in (self._stdin, self._stdout, self._stderr):
            with suppress(OSError):
                pipe.close()

    def write(self, data: Any) -> bool:
        """Give it bytes. False where it has ended already; `wait` tells why."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        try:
            while view:
                view = view[self._stdin.write(view) :]
                self._progress()
        except OSError:
            return False
        return True

    def read(self, size: int) -> bytes:
        """At most `size` bytes that it wrote, b"" at the end."""
        data = self._stdout.read(size)
        self._progress()
        return data or b""

    def read_exactly(self, size: int) -> bytes:
        """`size` bytes, fewer at the end."""
        parts = []
        while size > 0 and (part := self.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close_input(self) -> None:
        """No more bytes come."""
        with suppress(OSError):
            self._stdin.close()
        self._progress()

    def wait(self) -> int:
        """Its exit code, once it has ended by itself or for being late. What else it writes is dropped."""
        self.close_input()
        while self._stdout.read(1 << 16):
            pass
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        self._kill(reap=True)  # its children, which may have outlived it
        self._ended.set()
        self._threads[0].join(5)
        return self._process.returncode

    @property
    def said(self) -> str:
        """Its last line on stderr."""
        lines = self.tail.decode("utf-8", "replace").strip().splitlines()
        return show(lines[-1], 200) if lines else ""

    def _progress(self) -> None:
        self._deadline = time.monotonic() + self._patience

    def _listen(self) -> None:
        with suppress(OSError, ValueError):
            while data := self._stderr.read(1 << 16):
                self.tail = (self.tail + data)[-_TAIL:]

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            if time.monotonic() > self._deadline:
                self.late = True
                self._kill()
                return

    def _kill(self, reap: bool = False) -> None:
        """End it and its children. It is reaped last: until then its number names this group and no other."""
        with self._reaping:
            if self._process.returncode is not None:
                return
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
            if reap:
                self._process.wait()


def _cannot_start(name: str, error: Exception) -> FpsgenError:
    if isinstance(error, FileNotFoundError):
        why = "is not there"
    elif isinstance(error, PermissionError):
        why = "may not be run"
    else:
        why = f"cannot be started: {show(getattr(error, 'strerror', None) or error)}"
    busy = getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
    remedy = "close other programs, or raise the limits of this one (ulimit -a)" if busy else _remedy()
    return FpsgenError(f"ffmpeg ({show(Path(name))}) {why}", remedy, ENVIRONMENT)


def _remedy() -> str:
    if os.environ.get(VARIABLE):
        return f"unset {VARIABLE}, or let it name an ffmpeg that works"
    return "pip install --force-reinstall imageio-ffmpeg"
