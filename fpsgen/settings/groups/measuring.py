"""What measuring commands alone take: generate --capture, bench, evaluate."""

from __future__ import annotations

from functools import partial

from fpsgen.settings import parsers as parse
from fpsgen.settings.groups.output import OUTPUT
from fpsgen.settings.parsers import method_names
from fpsgen.settings.setting import Setting

BENCH, EVALUATE = "Bench", "Evaluate"
SHAPES = {"nano": (9, 10, 16), "480p": (21, 30, 52), "720p": (21, 45, 80)}  # tokens (T, H, W); 81 frames for Wan
_capture = partial(Setting, group="Capture", commands=("generate",))
_kernel = partial(Setting, group=BENCH, commands=("bench kernel",))
_bench = partial(Setting, group=BENCH, commands=("bench", "bench waterfall"))
_evaluate = partial(Setting, group=EVALUATE, commands=("evaluate",))
_results = partial(
    Setting,
    parser=parse.named("a folder"),
    help="Where rows, page and videos go.",
    group=OUTPUT,
    metavar="FOLDER",
    flag="--output",
    short="-o",
    complete="files",
)
_whole_numbers = parse.listed(parse.whole(0, 999), "whole numbers from 0")

ENTRIES = (
    _capture(
        "capture",
        parse.named("a folder"),
        "Save q, k, v of some layers and steps in this folder.",
        example="captures/cat",
        metavar="FOLDER",
        complete="files",
    ),
    _capture(
        "capture_layers",
        _whole_numbers,
        "Layers to save.",
        example="0,14,29",
        metavar="NUMBERS",
        unset="first, middle, last",
    ),
    _capture(
        "capture_steps",
        _whole_numbers,
        "Steps to save.",
        example="0,25,49",
        metavar="NUMBERS",
        unset="first, middle, last",
    ),
    _kernel(
        "captured",
        parse.named("a folder"),
        "Measure on the q, k, v that generate --capture saved there.",
        example="captures/cat",
        metavar="FOLDER",
        complete="files",
    ),
    _results(
        "bench_output",
        example="outputs/bench",
        default="outputs/bench",
        commands=("bench", "bench steps", "bench waterfall", "bench kernel"),
    ),
    _results(
        "evaluate_output",
        example="outputs/evaluate",
        default="outputs/evaluate",
        commands=("evaluate",),
    ),
    _evaluate(
        "teacher",
        parse.named("a model's name, a hub id or a folder"),
        "Whose dense videos are the reference.",
        example="wan2.1-1.3b",
        metavar="NAME",
        unset="the model itself",
        complete="models",
        mistaken_for=("reference", "base"),
    ),
    _evaluate("seeds", parse.whole(1, 1000), "Videos for each prompt.", example="3", metavar="N", default=1),
    _bench(
        "compare",
        parse.listed(parse.choice(method_names), "methods"),
        "Methods to measure beside fps.",
        example="bf16,fp8",
        metavar="NAMES",
        default=("bf16",),
        unset_in={"bench kernel": "all"},
        commands=("bench", "bench steps", "bench kernel", "evaluate"),
        mistaken_for=("method", "methods", "baseline", "against"),
    ),
    _bench(
        "prompt",
        parse.named("a text"),
        "What the videos show.",
        example='"a cat surfing"',
        metavar="TEXT",
        default="a cat surfing",
        commands=("bench", "bench steps", "bench waterfall"),
    ),
    _bench("repeats", parse.whole(1, 100), "Videos per method.", example="3", metavar="N", default=1),
    _bench(
        "random_weights",
        parse.switch,
        "The model's true shape without a checkpoint; speed only, no video.",
        example="true",
        default=False,
    ),
    _kernel(
        "shape",
        parse.listed(parse.token_shape(tuple(SHAPES)), "shapes"),
        f"{', '.join(SHAPES)}, or TxHxW tokens.",
        example="480p,720p",
        metavar="NAMES",
        default=("480p", "720p"),
        complete=tuple(SHAPES),
    ),
    _kernel(
        "tile",
        parse.listed(parse.token_shape(("fit", "blocks")), "tiles"),
        "fit, blocks, or TxHxW tokens.",
        example="fit",
        metavar="NAMES",
        default=("fit",),
    ),
    _kernel(
        "heads",
        parse.listed(parse.whole(1, 128), "whole numbers from 1 to 128"),
        "Heads, of 128 channels (64 with --shape nano).",
        example="12,40",
        metavar="NUMBERS",
        default=(12,),
    ),
    _kernel(
        "batch",
        parse.listed(parse.whole(1, 128), "whole numbers from 1 to 128"),
        "Batch sizes.",
        example="1,2",
        metavar="NUMBERS",
        default=(1,),
    ),
    _kernel(
        "density",
        parse.listed(parse.real(0.001, 1), "shares from 0.001 to 1"),
        "Share of all pairs that windowed methods keep.",
        example="0.11,0.4",
        metavar="SHARES",
        default=(0.05, 0.11, 0.2, 0.4),
    ),
    _kernel(
        "row_seconds",
        parse.real(0.01, 600),
        "Time spent on each row.",
        example="0.5",
        metavar="S",
        flag="--seconds",
        default=0.5,
    ),
)
