"""Attention and all else that makes a step faster."""

from __future__ import annotations

from functools import partial

from fpsgen.attention.implementations import IMPLEMENTATIONS
from fpsgen.attention.methods.bf16 import BACKENDS
from fpsgen.attention.schedule import AS_SCHEDULED
from fpsgen.settings import parsers as parse
from fpsgen.settings.parsers import method_names
from fpsgen.settings.setting import ANYWHERE, MADE, WHOLE, decides_video, on_off

LINEARS = ("bf16", "fp8")
CACHES = ("none", "first-block", "magcache", "taylorseer")  # those of models/patch/step_cache.py
COMPILES = ("auto", "off")
SPEED = "Acceleration"
_decides = partial(decides_video, group=SPEED)

ENTRIES = (
    _decides(
        "method",
        parse.choice(method_names),
        "Attention method at every step, instead of the schedule's.",
        example="fps",
        metavar="NAME",
        unset=AS_SCHEDULED,
        commands=MADE,
        mistaken_for=("attention", "backend"),
    ),
    _decides(
        "method_impl",
        parse.choice(lambda: IMPLEMENTATIONS),
        "Attention code: auto, reference (slow, exact), triton (portable).",
        example="reference",
        metavar="NAME",
        default="auto",
        mistaken_for=("impl", "kernel"),
    ),
    _decides(
        "bf16_backend",
        parse.choice(lambda: tuple(BACKENDS)),
        "Kernel of dense 16-bit attention: auto, cudnn, flash, fa3, efficient, math.",
        example="cudnn",
        metavar="NAME",
        default="auto",
        mistaken_for=("backend", "attention-backend"),
    ),
    _decides(
        "schedule",
        parse.named("a preset's name or a TOML file"),
        "safe, balanced, paper or a TOML file.",
        example="balanced",
        metavar="NAME",
        unset="model's own, or safe",
        complete="schedules",
        mistaken_for=("preset", "profile"),
    ),
    _decides(
        "linear",
        parse.choice(lambda: LINEARS),
        "Linear layers in bf16 or fp8.",
        example="fp8",
        metavar="NAME",
        unset=AS_SCHEDULED,
        commands=(*WHOLE, "bench steps"),
    ),
    _decides(
        "cache",
        parse.choice(lambda: CACHES),
        f"Step cache: {', '.join(CACHES)}.",
        example="first-block",
        metavar="NAME",
        default="none",
        commands=WHOLE,
        mistaken_for=("step-cache", "teacache"),
    ),
    _decides(
        "cfg_until",
        parse.real(0, 1),
        "Use guidance only in the first steps: this share of them.",
        example="0.5",
        metavar="F",
        default=1.0,
        unset="1: all steps",
        commands=WHOLE,
        mistaken_for=("guidance-until", "cfg-end"),
    ),
    _decides(
        "exact",
        parse.switch,
        "Round as diffusers does: nothing fused, VAE in fp32.",
        example="true",
        default=False,
        commands=WHOLE,
    ),
    _decides(
        "compile",
        parse.choice(lambda: COMPILES),
        "auto, or off: on a GPU, compile no kernel and run as diffusers does.",
        example="off",
        metavar="NAME",
        default="auto",
        commands=MADE,
        mistaken_for=("torch-compile",),
    ),
    on_off(
        "strict",
        "Fail where anything is replaced or scaled (exit 9).",
        group=SPEED,
        commands=MADE,
        layers=ANYWHERE,
        recipe=True,
    ),
)
