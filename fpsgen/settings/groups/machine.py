"""What it runs on."""

from __future__ import annotations

from functools import partial

from fpsgen.settings import parsers as parse
from fpsgen.settings.setting import ANYWHERE, ENVIRONMENT, EVERY, FILE, PLANNED, Setting, decides_video, on_off

DTYPES = ("auto", "bf16", "fp16", "fp32")
MACHINE = "Machine"
_on_off = partial(on_off, group=MACHINE)

ENTRIES = (
    Setting(
        "device",
        parse.device,
        "auto, cpu, cuda or cuda:N.",
        group=MACHINE,
        example="cuda",
        metavar="NAME",
        default="auto",
        commands=(*PLANNED, "bench kernel", "replay"),
        layers=ANYWHERE,
        complete=("auto", "cpu", "cuda"),
        mistaken_for=("gpu", "cuda"),
    ),
    decides_video(
        "dtype",
        parse.choice(lambda: DTYPES),
        f"{', '.join(DTYPES)}.",
        group=MACHINE,
        example="bf16",
        metavar="NAME",
        default="auto",
        unset="bf16 on a GPU, else fp32",
        mistaken_for=("precision",),
    ),
    _on_off(
        "pull",
        "Fetch the model if it is not on this machine.",
        commands=PLANNED,
        layers=(FILE, ENVIRONMENT),
        mistaken_for=("download",),
    ),
    _on_off(
        "debug",
        "Tracebacks, and the libraries' own messages.",
        commands=EVERY,
        layers=(ENVIRONMENT,),
        mistaken_for=("verbose",),
    ),
)
