"""`fpsgen bench`: what the acceleration is worth, in seconds and pictures. `fpsgen bench kernel`: attention alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fpsgen import config
from fpsgen.cli import console, options
from fpsgen.config import METHODS
from fpsgen.errors import USAGE, FpsgenError

BENCH = "Bench"
ROWS = "bench.jsonl"
KERNEL_ROWS = "kernel.jsonl"
ALL = ",".join(METHODS)
SHAPES = {"nano": (9, 10, 16), "480p": (21, 30, 52), "720p": (21, 45, 80)}  # tokens (T, H, W); 81 frames for Wan

app = typer.Typer(
    name="bench",
    help="Measure fps against other methods: the same prompt, seed and noise through each.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

Compare = Annotated[
    str,
    typer.Option("--compare", metavar="NAMES", rich_help_panel=BENCH, help=f"Besides fps: {', '.join(METHODS)}."),
]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", rich_help_panel=BENCH, help="What the videos show.")]
Repeats = Annotated[
    int, typer.Option("--repeats", metavar="N", min=1, max=100, rich_help_panel=BENCH, help="Videos per method.")
]
RandomWeights = Annotated[
    bool,
    options.switch(
        "--random-weights", panel=BENCH, help="The model's true shape without a checkpoint; speed only, no video."
    ),
]
Folder = Annotated[
    str, typer.Option("--output", "-o", metavar="FOLDER", rich_help_panel="Output", help="Where rows, page, MP4s go.")
]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    compare: Compare = "bf16",
    prompt: Prompt = "a cat surfing",
    repeats: Repeats = 1,
    random_weights: RandomWeights = False,
    model: options.Model = None,
    res: options.Res = None,
    aspect: options.Aspect = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    shift: options.Shift = None,
    negative: options.Negative = None,
    seed: options.Seed = "0",
    schedule: options.Schedule = None,
    output: Folder = "outputs/bench",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    debug: options.Debug = False,
) -> None:
    """Measure fps against other methods: the same prompt, seed and noise through each.

    stdout: a table and the path of the HTML page. Rows are added to bench.jsonl in the folder.
    """
    if context.invoked_subcommand:
        return
    names = method_names(compare)
    texts = {"model": model, "res": res, "aspect": aspect, "frames": frames, "seconds": seconds, "steps": steps}
    texts |= {"guidance": guidance, "shift": shift, "negative": negative, "seed": seed, "schedule": schedule}
    texts |= {"device": device, "dtype": dtype, "output": folder(output, names)}
    settings = config.gather({**texts, "method": None})

    from fpsgen.models.catalog.registry import models
    from fpsgen.pipeline.request import plan

    chosen = None
    if random_weights:
        spec = next((spec for spec in models() if spec.name == settings.model), None)
        if spec is None:
            known = ", ".join(spec.name for spec in models())
            raise FpsgenError(f"--random-weights has no shape for {settings.model!r}", f"add -m with {known}", USAGE)
        chosen = (spec, Path(), "random weights")
    planned = plan(prompt, settings, overwrite=True, chosen=chosen)

    from fpsgen.cli import progress
    from fpsgen.pipeline.events import Timing

    debug = console.debugging(debug)
    console.quiet_libraries(debug)
    with progress.choose(quiet) as events:
        timing = Timing(events)
        for text in settings.warnings:
            timing.warn(text)
        events.note("model", f"{planned.request.model.name} ({planned.reason})")
        with timing.stage("import"):
            from fpsgen.bench import end_to_end
        with console.library_warnings(timing.warn, debug):
            rows = end_to_end.run(planned.request, names, repeats, random_weights, timing)
    paths = save(rows, Path(output), planned.request.output.parent, not random_weights)
    if as_json:
        console.print_json("bench", rows, timing.warnings)
        return
    if not quiet:
        table(rows)
    print(paths, flush=True)


@app.command("kernel")
def kernel(
    compare: Annotated[
        str, typer.Option("--compare", metavar="NAMES", help=f"Some of {', '.join(METHODS)}; peers always run.")
    ] = ALL,
    shape: Annotated[
        str, typer.Option("--shape", metavar="NAMES", help=f"{', '.join(SHAPES)}, or TxHxW tokens.")
    ] = "480p,720p",
    tile: Annotated[str, typer.Option("--tile", metavar="NAMES", help="fit, or TxHxW tokens.")] = "fit",
    heads: Annotated[str, typer.Option("--heads", metavar="NUMBERS", help="Heads of 128 channels.")] = "12",
    batch: Annotated[str, typer.Option("--batch", metavar="NUMBERS", help="Batch sizes.")] = "1",
    density: Annotated[
        str, typer.Option("--density", metavar="SHARES", help="Of windowed methods, 0 to 1.")
    ] = "0.05,0.11,0.2,0.4",
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.01, max=600, help="For each row.")] = 0.5,
    output: Folder = "outputs/bench",
    as_json: options.Json = False,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Time attention alone, against SDPA, FlexAttention and FlashAttention-3 (if installed); each result is checked."""
    names = method_names(compare)
    shares = [share(text) for text in density.split(",")]
    grids = [(name.strip(), grid(name.strip())) for name in shape.split(",")]
    tiles = ["fit" if name.strip() == "fit" else grid(name.strip(), "--tile") for name in tile.split(",")]
    counts = {name: numbers(text, f"--{name}") for name, text in (("heads", heads), ("batch", batch))}
    settings = config.gather({"device": device})
    console.quiet_libraries(console.debugging(debug))
    from fpsgen.bench import kernel as measured
    from fpsgen.bench.end_to_end import append_rows
    from fpsgen.pipeline.loaded_model import choose_device

    shapes = [
        measured.Shape(name, size, number, 64 if name == "nano" else 128, together, sides)
        for name, size in grids
        for number in counts["heads"]
        for together in counts["batch"]
        for sides in tiles
    ]
    rows = measured.run(shapes, list(names), shares, seconds, choose_device(settings.device))
    path = Path(output) / KERNEL_ROWS
    append_rows(rows, path)
    if as_json:
        console.print_json("bench", rows)
    else:
        kernel_table(rows)
        print(path)


def method_names(text: str) -> tuple[str, ...]:
    """The methods of --compare. Raises FpsgenError USAGE."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    wrong = [name for name in names if name not in METHODS]
    if wrong or not names:
        raise FpsgenError(
            f"--compare {config.show(text)!r} names no method", f"choose from {', '.join(METHODS)}", USAGE
        )
    return names


def share(text: str) -> float:
    """A density in (0, 1]. Raises FpsgenError USAGE."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise FpsgenError(f"--density {config.show(text)!r} is not a share", "for example --density 0.11,0.4", USAGE)
    return value


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers of 1 to 128, by commas. Raises FpsgenError USAGE."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 0 < int(part) <= 128 for part in parts):
        raise FpsgenError(f"{option} {config.show(text)!r} is no list of numbers", f"for example {option} 1,2", USAGE)
    return [int(part) for part in parts]


def grid(text: str, option: str = "--shape") -> tuple[int, int, int]:
    """Tokens (T, H, W) of a named shape or TxHxW. Raises FpsgenError USAGE."""
    parts = text.lower().split("x")
    if text in SHAPES:
        return SHAPES[text]
    if len(parts) == 3 and all(part.isdigit() and 0 < int(part) <= 4096 for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise FpsgenError(
        f"{option} {config.show(text)!r} is not known", f"choose from {', '.join(SHAPES)} or TxHxW", USAGE
    )


def folder(output: str, names: tuple[str, ...]) -> str:
    """The place of this bench's page and MP4s: a folder of its own, numbered from 1."""
    stem, number = "-".join(dict.fromkeys([*names, "fps"])), 1
    while (Path(output) / f"{stem}-{number}").exists():
        number += 1
    return str(Path(output) / f"{stem}-{number}") + "/"


def save(rows: list[dict[str, Any]], root: Path, videos: Path, with_page: bool) -> str:
    """Append the rows, write the page; the path to print."""
    from fpsgen.bench.end_to_end import append_rows

    append_rows(rows, root / ROWS)
    if not with_page:
        return str(root / ROWS)
    from fpsgen.files import write_text
    from fpsgen.report.html import page

    return str(write_text(page(rows), videos / "index.html", overwrite=True))


def table(rows: list[dict[str, Any]]) -> None:
    """The rows for a person, on stdout."""
    from fpsgen.report.html import cells, setting, where

    heads = {"method": "", "step": "s/step", "denoise": "denoise", "speedup": "speed-up", "share": "attn"}
    heads |= {"density": "density", "memory": "memory", "psnr": "PSNR", "ssim": "SSIM"}
    lines = []
    for row in rows:
        shown = cells(row) | {"method": row["method"], "step": f"{row['step_s']['median']:.3f}"}
        lines.append([shown[key] for key in heads])
    print(setting(rows[0]))
    print(where(rows[0]))
    if rows[0]["device"].startswith("CPU"):
        print("CPU: times of the plain reference, not of the GPU kernels")
    print_columns([list(heads.values()), *lines])


def kernel_table(rows: list[dict[str, Any]]) -> None:
    """The rows of the kernel bench, a block for each shape."""
    print(f"{rows[0]['device']}, commit {rows[0]['commit'] or 'unknown'}")
    print("TFLOP/s of kept pairs of real tokens; attend: without quantization; host: CPU time of a call, us")

    def group(row: dict[str, Any]) -> str:
        tiles = "" if row["tiles"] == "fit" else " tiles {}x{}x{}".format(*row["tiles"])
        return f"{row['shape']}{tiles}, {row['heads']} heads" + (f", batch {row['batch']}" if row["batch"] > 1 else "")

    for name in dict.fromkeys(map(group, rows)):
        lines = [[name, "density", "ms", "p10-p90", "TFLOP/s", "error", "attend", "host"]]
        for row in rows:
            if group(row) != name:
                continue
            if "missing" in row:
                lines.append([row["method"], row["missing"], *[""] * 6])
                continue
            spread = f"{row['p10_ms']:.3f}-{row['p90_ms']:.3f}"
            figures = [f"{row['density']:.1%}", f"{row['median_ms']:.3f}", spread, f"{row['tflops']:.0f}"]
            alone = f"{row['attend_tflops']:.0f}" if "attend_tflops" in row else ""
            host = f"{row['host_us']:.0f}" if row["host_us"] is not None else ""
            lines.append([row["method"], *figures, f"{row['relative_error']:.1e}", alone, host])
        print_columns(lines)


def print_columns(lines: list[list[str]]) -> None:
    """Aligned columns, the first to the left, on stdout."""
    widths = [max(len(line[i]) for line in lines if len(line[1]) < 20) for i in range(len(lines[0]))]
    for line in lines:
        rest = "  ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print(f"{line[0].ljust(widths[0])}  {rest}".rstrip())
