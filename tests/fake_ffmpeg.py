"""Ffmpegs that are broken in one way each, for tests: {name: script of /bin/sh}. $REAL is one that works."""

from __future__ import annotations

from pathlib import Path

BROKEN = {
    "prints and succeeds": "echo hello",  # another program
    "fails at once": "exit 3",
    "reads and fails": "cat >/dev/null; echo 'Conversion failed' >&2; exit 1",
    "writes nothing": "cat >/dev/null",
    "crashes": "kill -SEGV $$",
    "has no H.264": '[ "$1" = -version ] && exec "$REAL" -version\n'
    "cat >/dev/null; echo \"Unknown encoder 'libx264'\" >&2; exit 8",
    "hangs": "exec sleep 600",
    "hangs with a child": "sleep 600 & wait",
    "leaves a child that holds the pipes": "cat >/dev/null; sleep 600 &",
    "writes for ever": "exec yes",
    "complains for ever": "exec yes >&2",
    "says that all is well": "cat >/dev/null; echo frame=9; echo progress=end",
    "writes other bytes": "cat",
}
# These work until they meet a file: found when the video is written.
FILES_ALONE = {
    "writes half": 'case "$*" in *rawvideo*faststart*) for last in "$@"; do :; done; head -c 4000 >/dev/null; '
    'printf \'half\' > "${last#file:}";; *) exec "$REAL" "$@";; esac',
    "writes an empty file": 'case "$*" in *faststart*) for last in "$@"; do :; done; cat >/dev/null; '
    ': > "${last#file:}";; *) exec "$REAL" "$@";; esac',
    "writes an empty file and counts it": 'case "$*" in *faststart*) for last in "$@"; do :; done; '
    'cat >/dev/null; : > "${last#file:}";; *"-f null"*) echo frame=9;; *) exec "$REAL" "$@";; esac',
    "drops frames": 'case "$*" in *faststart*) for last in "$@"; do :; done; exec "$REAL" -v error -f rawvideo '
    '-pix_fmt rgb24 -s:v 48x32 -r 16 -i pipe:0 -frames:v 4 -f mp4 -y "$last";; *) exec "$REAL" "$@";; esac',
    "meets a full disk": "case \"$*\" in *faststart*) cat >/dev/null; echo 'No space left on device' >&2; exit 1;; "
    '*) exec "$REAL" "$@";; esac',
}


def install(folder: Path, script: str, monkeypatch) -> Path:
    """Make a script the ffmpeg of this process and its children."""
    from fpsgen.ffmpeg import VARIABLE, ffmpeg

    monkeypatch.setenv("REAL", ffmpeg())
    path = folder / "fake-ffmpeg"
    path.write_text("#!/bin/sh\n" + script + "\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(path))
    return path
