"""Which model, and the shape of the video."""

from __future__ import annotations

from functools import partial

from fpsgen.settings import parsers as parse
from fpsgen.settings.setting import ANYWHERE, PLANNED, Setting, decides_video

VIDEO = "Video"
_decides = partial(decides_video, group=VIDEO)
_asked = partial(Setting, group=VIDEO, commands=PLANNED, layers=ANYWHERE)  # the recipe says what it became

ENTRIES = (
    _asked(
        "model",
        parse.named("a model's name, a hub id or a folder"),
        "auto, nano, wan2.1-1.3b, wan2.1-14b, hub id or folder.",
        example="nano",
        metavar="NAME",
        short="-m",
        default="auto",
        commands=(*PLANNED, "doctor"),
        becomes=("model",),
        complete="models",
    ),
    _decides(
        "lora",
        parse.text_up_to(4096, "a LoRA file"),
        "A LoRA file. One trained by fpsgen brings its own schedule.",
        example="mine.safetensors",
        metavar="FILE",
        default="",
        unset="none",
        complete="files",
        mistaken_for=("adapter", "lora-path", "lora-file"),
    ),
    _asked(
        "res",
        parse.resolution,
        "480p, 720p or WIDTHxHEIGHT.",
        example="832x480",
        metavar="SIZE",
        becomes=("width", "height", "scaled_to"),
        complete="sizes",
        mistaken_for=("resolution", "size", "width", "height", "w", "h"),
    ),
    _asked(
        "aspect",
        parse.aspect,
        "16:9, 9:16, 1:1, 4:3, 3:4 ... at that size.",
        example="16:9",
        metavar="W:H",
        becomes=("width", "height", "scaled_to"),
        complete=("16:9", "9:16", "1:1", "4:3", "3:4"),
        mistaken_for=("ratio", "aspect-ratio", "portrait"),
    ),
    _decides(
        "frames",
        parse.whole(1, 2001),
        "Number of frames, 4n+1.",
        example="81",
        metavar="N",
        model_default="frames",
        mistaken_for=("num-frames", "frame-num", "f"),
    ),
    _asked(
        "seconds",
        parse.real(0.01, 600),
        "Length, instead of --frames; rounded to 4n+1 frames.",
        example="5",
        metavar="S",
        becomes=("frames",),
        mistaken_for=("duration", "length"),
    ),
    _decides(
        "fps",
        parse.whole(1, 240),
        "Frames a second of the file.",
        example="16",
        metavar="N",
        model_default="fps",
        mistaken_for=("rate", "framerate"),
    ),
)
