"""docs/windows.md: which tile, key block and window a stated density becomes at the usual sizes.

`python -m tools.density_table` writes it; with --check it changes nothing and fails where the file differs. Nothing is
measured: all of it is counted from the grid (fpsgen/attention/windows.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

from fpsgen.attention.presets import PRESETS
from fpsgen.attention.windows import Size3, count, density_window, filled, fit_blocks, window_density
from fpsgen.models.catalog.registry import find_spec
from fpsgen.pipeline.size import fit_aspect
from tools.command_line import parser_of

PATH = Path("docs/windows.md")
SIZES = {"480p": (832, 480), "720p": (1280, 720)}
ASPECTS = {"16:9": (16, 9), "9:16": (9, 16), "1:1": (1, 1)}
FRAMES = (33, 49, 81, 121)
DENSITIES = sorted({profile.density for schedule in PRESETS.values() for profile in schedule.profiles} - {None})

HEAD = """# Windows for a stated density

A profile of a [schedule](schedules.md) may state its density, the share of all pairs of tokens that attention keeps,
instead of a window. Each token grid then gets the window that comes nearest. This page shows which windows the
densities of the presets become. `python -m tools.density_table` writes it; a test keeps it up to date.

- **Tokens**: the grid, as frames x rows x columns; all sizes here have this order.
- **Block**: what a window counts, and what has a scale of its own: at most 128 tokens.
- **Tile**: the queries that share a window: three blocks in a row.
- **Blocks**: how many there are along each axis.
- **Filled**: the share of the kernel's key rows and query rows that hold tokens. A block takes 128 key rows, and the
  kernel works on 192 query rows at a time. The product of the two shares decides how long a kept pair takes.
- **12 % and so on**: the window in blocks for that density, and the density that it really keeps, within 10 % of what
  was asked for.

How the block is chosen:

1. All profiles of a schedule have the same block, so tokens keep their places from step to step. So only blocks count
   that have a window for every density.
2. Of these, the block that fills most of the kernel sets the mark; those within 3 % of it stay.
3. Of those left, the one wins that fills more and has more even windows.

At 81 frames a block holds all 21 frames of the latent: its windows cut the picture and never time.
"""


def table() -> str:
    """The document."""
    heads = ["Size", "Frames", "Tokens", "Block", "Tile", "Blocks", "Filled", *(f"{d:.0%}" for d in DENSITIES)]
    lines = [HEAD, "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    geometry = find_spec("wan2.1-14b").geometry
    for (name, size), (aspect, ratio) in ((s, a) for s in SIZES.items() for a in ASPECTS.items()):
        width, height = fit_aspect(*size, ratio)
        lines += [_row(f"{name} {aspect}, {width}x{height}", n, geometry.token_grid(width, height, n)) for n in FRAMES]
    return "\n".join(lines) + "\n"


def _row(size: str, frames: int, grid: Size3) -> str:
    block, tile = fit_blocks(grid)
    cells = [size, str(frames), *map(_size, (grid, block, tile, count(grid, block)))]
    cells.append(" / ".join(f"{share:.0%}" for share in filled(grid, tile, block)))
    for density in DENSITIES:
        window = density_window(grid, tile, block, density)
        cells.append(f"{_size(window)}: {window_density(grid, tile, block, window):.1%}")
    return "| " + " | ".join(cells) + " |"


def _size(size: Size3) -> str:
    return " x ".join(map(str, size))


def main(arguments: list[str] | None = None) -> int:
    """Write or check the document of a checkout; the exit code."""
    parser = parser_of("density_table", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the document is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of the checkout")
    options = parser.parse_args(arguments)
    path, text = options.root / PATH, table()
    if not options.check:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PATH} is out of date: run python -m tools.density_table", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
