"""The one table of settings. A new option is one entry here, and its use.

Command-line options, FPSGEN_* variables, fpsgen.toml, lines of prompt files, recipes, replay, job keys, help and
--dry-run all come from it. Read it when it is needed: SETTINGS may grow.
"""

from __future__ import annotations

from fpsgen.attention.implementations import IMPLEMENTATIONS
from fpsgen.attention.methods.bf16 import BACKENDS
from fpsgen.settings import parsers as parse
from fpsgen.settings.bench_table import BENCH_SETTINGS
from fpsgen.settings.parsers import method_names
from fpsgen.settings.setting import ANYWHERE, ENVIRONMENT, FILE, Setting

VIDEO, QUALITY, SPEED, OUTPUT, MACHINE = "Video", "Quality", "Acceleration", "Output", "Machine"
LINEARS = ("bf16", "fp8")
CACHES = ("none", "first-block", "magcache", "taylorseer")  # those of models/patch/step_cache.py
DTYPES = ("auto", "bf16", "fp16", "fp32")
MAX_TEXT = 10_000  # characters of a prompt or negative prompt; the text encoders read 512 tokens

_MAKE = ("generate", "batch")
_PLAN = (*_MAKE, "bench", "bench steps", "bench waterfall", "evaluate")
_ALL = (*_PLAN, "bench kernel", "replay", "compare", "info", "doctor", "models")


def preset_names() -> tuple[str, ...]:
    """The schedules that come with fpsgen."""
    from fpsgen.attention.presets import PRESETS

    return tuple(PRESETS)


def _video(name: str, **given) -> Setting:
    """A setting that decides what the video looks like: in recipes, in job keys, in every layer."""
    return Setting(name, **{"group": VIDEO, "commands": _PLAN, "layers": ANYWHERE, "recipe": True, "key": True} | given)


def _switch(name: str, help: str, **given) -> Setting:
    given = {"group": OUTPUT, "example": "true", "default": False} | given
    return Setting(name, parse.switch, help, **given)


_ENTRIES = (
    Setting(
        "model",
        parse.named("a model's name, a hub id or a folder"),
        "auto, nano, wan2.1-1.3b, wan2.1-14b, hub id or folder.",
        VIDEO,
        "nano",
        metavar="NAME",
        short="-m",
        default="auto",
        commands=(*_PLAN, "doctor"),
        layers=ANYWHERE,
        becomes=("model",),
        complete="models",
    ),
    Setting(
        "lora",
        parse.text_up_to(4096, "a LoRA file"),
        "A LoRA file; one of fpsgen's runs by its schedule.",
        VIDEO,
        "mine.safetensors",
        metavar="FILE",
        default="",
        unset="none",
        commands=_PLAN,
        layers=ANYWHERE,
        recipe=True,
        key=True,
        complete="files",
        mistaken_for=("adapter", "lora-path", "lora-file"),
    ),
    Setting(
        "res",
        parse.resolution,
        "480p, 720p or WIDTHxHEIGHT.",
        VIDEO,
        "832x480",
        metavar="SIZE",
        commands=_PLAN,
        layers=ANYWHERE,
        becomes=("width", "height", "scaled_to"),
        complete="sizes",
        mistaken_for=("resolution", "size", "width", "height", "w", "h"),
    ),
    Setting(
        "aspect",
        parse.aspect,
        "16:9, 9:16, 1:1, 4:3, 3:4 ... at that size.",
        VIDEO,
        "16:9",
        metavar="W:H",
        commands=_PLAN,
        layers=ANYWHERE,
        becomes=("width", "height", "scaled_to"),
        complete=lambda: ("16:9", "9:16", "1:1", "4:3", "3:4"),
        mistaken_for=("ratio", "aspect-ratio", "portrait"),
    ),
    _video(
        "frames",
        parser=parse.whole(1, 2001),
        help="Number of frames, 4n+1.",
        example="81",
        metavar="N",
        model_default="frames",
        mistaken_for=("num-frames", "frame-num", "f"),
    ),
    Setting(
        "seconds",
        parse.real(0.01, 600),
        "Length instead of --frames, to the nearest 4n+1.",
        VIDEO,
        "5",
        metavar="S",
        commands=_PLAN,
        layers=ANYWHERE,
        becomes=("frames",),
        mistaken_for=("duration", "length"),
    ),
    _video(
        "fps",
        parser=parse.whole(1, 240),
        help="Frames a second of the file.",
        example="16",
        metavar="N",
        model_default="fps",
        mistaken_for=("rate", "framerate"),
    ),
    _video(
        "steps",
        parser=parse.whole(1, 1000),
        help="Denoising steps.",
        group=QUALITY,
        example="50",
        metavar="N",
        model_default="steps",
        mistaken_for=("num-inference-steps", "sample-steps"),
    ),
    _video(
        "guidance",
        parser=parse.real(0, 100),
        help="Pull towards the prompt; 1 and less: none.",
        group=QUALITY,
        example="5",
        metavar="X",
        model_default="guidance",
        mistaken_for=("guidance-scale", "cfg", "cfg-scale"),
    ),
    _video(
        "shift",
        parser=parse.real(0.01, 100),
        help="Flow shift; larger: more steps at high noise.",
        group=QUALITY,
        example="3",
        metavar="X",
        model_default="shift",
        mistaken_for=("flow-shift", "sample-shift"),
    ),
    _video(
        "negative",
        parser=parse.text_up_to(MAX_TEXT, f"plain text of at most {MAX_TEXT} characters"),
        help='What to avoid; "" for nothing.',
        group=QUALITY,
        example='"blurred, static"',
        metavar="TEXT",
        model_default="negative_prompt",
        mistaken_for=("negative-prompt", "neg"),
    ),
    _video(
        "seed",
        parser=parse.whole(0, 2**63 - 1),
        help="Same seed, same video.",
        group=QUALITY,
        example="42",
        metavar="N",
        unset="drawn",
        unset_in={"bench": "0", "bench steps": "0", "batch": "from the prompt"},
    ),
    _video(
        "method",
        parser=parse.choice(method_names),
        help="Attention at every step, instead of the schedule's choice.",
        group=SPEED,
        example="fps",
        metavar="NAME",
        unset="as scheduled",
        commands=_MAKE,
        complete=method_names,
        mistaken_for=("attention", "backend"),
    ),
    _video(
        "method_impl",
        parser=parse.choice(lambda: IMPLEMENTATIONS),
        help="auto; reference: slow and exact; triton: portable.",
        group=SPEED,
        example="reference",
        metavar="NAME",
        default="auto",
        unset="auto",
        complete=lambda: IMPLEMENTATIONS,
        mistaken_for=("impl", "kernel"),
    ),
    _video(
        "bf16_backend",
        parser=parse.choice(lambda: tuple(BACKENDS)),
        help="auto, cudnn, flash, fa3, efficient, math: for dense 16-bit attention.",
        group=SPEED,
        example="cudnn",
        metavar="NAME",
        default="auto",
        unset="auto",
        complete=lambda: tuple(BACKENDS),
        mistaken_for=("backend", "attention-backend"),
    ),
    _video(
        "schedule",
        parser=parse.named("a preset's name or a TOML file"),
        help="safe, balanced, paper or a TOML file.",
        group=SPEED,
        example="balanced",
        metavar="NAME",
        unset="model's own, or safe",
        complete="schedules",
        mistaken_for=("preset", "profile"),
    ),
    Setting(
        "linear",
        parse.choice(lambda: LINEARS),
        "bf16, or fp8: linear layers on FP8 tensor cores.",
        SPEED,
        "fp8",
        metavar="NAME",
        unset="as scheduled",
        commands=_PLAN,
        layers=ANYWHERE,
        recipe=True,
        key=True,
        complete=lambda: LINEARS,
    ),
    _video(
        "cache",
        parser=parse.choice(lambda: CACHES),
        help=f"Step cache: {', '.join(CACHES)}.",
        group=SPEED,
        example="first-block",
        metavar="NAME",
        default="none",
        unset="none",
        complete=lambda: CACHES,
        mistaken_for=("step-cache", "teacache"),
    ),
    _video(
        "cfg_until",
        parser=parse.real(0, 1),
        help="Guidance for this share of the steps only.",
        group=SPEED,
        example="0.5",
        metavar="F",
        default=1.0,
        unset="1: all steps",
        mistaken_for=("guidance-until", "cfg-end"),
    ),
    _switch(
        "exact",
        "Round as diffusers does: nothing fused, VAE in fp32.",
        group=SPEED,
        commands=_PLAN,
        layers=ANYWHERE,
        recipe=True,
        key=True,
    ),
    _switch(
        "strict",
        "Fail where anything is replaced or scaled (exit 9).",
        group=SPEED,
        commands=_MAKE,
        layers=ANYWHERE,
        recipe=True,
    ),
    Setting(
        "output",
        parse.named("a folder, or a file name ending in .mp4, .gif, .webp or .png"),
        "Folder, or file: .mp4 .gif .webp .png, {slug}-{n}.mp4",
        OUTPUT,
        "cat.mp4",
        metavar="PATH",
        short="-o",
        unset="outputs/",
        commands=(*_MAKE, "replay", "compare"),
        layers=ANYWHERE,
        complete="files",
        mistaken_for=("out", "outdir", "output-dir", "output-path", "save-file", "file"),
    ),
    _switch(
        "overwrite",
        "Replace files that exist.",
        commands=(*_MAKE, "replay", "compare"),
        mistaken_for=("force", "replace", "y"),
    ),
    _switch(
        "metadata",
        "The recipe in the MP4 and a JSON file beside it.",
        default=True,
        unset="on",
        commands=_MAKE,
        layers=ANYWHERE,
    ),
    _switch("video", "The side-by-side video.", default=True, unset="on", commands=("compare",)),
    _switch("json", "One JSON object on stdout.", commands=_ALL),
    _switch("quiet", "Results alone, no progress.", short="-q", commands=_ALL, mistaken_for=("silent",)),
    _switch(
        "dry_run",
        "Show every setting and what it would take; make nothing.",
        commands=_MAKE,
        mistaken_for=("simulate", "plan"),
    ),
    Setting(
        "device",
        parse.device,
        "auto, cpu, cuda or cuda:N.",
        MACHINE,
        "cuda",
        metavar="NAME",
        default="auto",
        commands=(*_PLAN, "bench kernel", "replay"),
        layers=ANYWHERE,
        complete=lambda: ("auto", "cpu", "cuda"),
        mistaken_for=("gpu", "cuda"),
    ),
    Setting(
        "dtype",
        parse.choice(lambda: DTYPES),
        f"{', '.join(DTYPES)}.",
        MACHINE,
        "bf16",
        metavar="NAME",
        default="auto",
        unset="bf16 on a GPU, else fp32",
        commands=_PLAN,
        layers=ANYWHERE,
        recipe=True,
        key=True,
        complete=lambda: DTYPES,
        mistaken_for=("precision",),
    ),
    _switch(
        "pull",
        "Fetch the model if it is not on this machine.",
        group=MACHINE,
        commands=_PLAN,
        layers=(FILE, ENVIRONMENT),
        mistaken_for=("download",),
    ),
    _switch(
        "debug",
        "Tracebacks, and the libraries' own messages.",
        group=MACHINE,
        commands=_ALL,
        layers=(ENVIRONMENT,),
        mistaken_for=("verbose",),
    ),
)

SETTINGS: dict[str, Setting] = {entry.name: entry for entry in (*_ENTRIES, *BENCH_SETTINGS)}
