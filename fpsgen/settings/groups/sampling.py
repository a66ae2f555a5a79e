"""How the video is drawn from noise."""

from __future__ import annotations

from functools import partial

from fpsgen.settings import parsers as parse
from fpsgen.settings.setting import decides_video

MAX_TEXT = 10_000  # characters of a prompt or negative prompt; the text encoders read 512 tokens
_decides = partial(decides_video, group="Quality")

ENTRIES = (
    _decides(
        "steps",
        parse.whole(1, 1000),
        "Denoising steps.",
        example="50",
        metavar="N",
        model_default="steps",
        mistaken_for=("num-inference-steps", "sample-steps"),
    ),
    _decides(
        "guidance",
        parse.real(0, 100),
        "How strongly to follow the prompt; 1 or less: off.",
        example="5",
        metavar="X",
        model_default="guidance",
        mistaken_for=("guidance-scale", "cfg", "cfg-scale"),
    ),
    _decides(
        "shift",
        parse.real(0.01, 100),
        "Flow shift; a larger one spends more steps at high noise.",
        example="3",
        metavar="X",
        model_default="shift",
        mistaken_for=("flow-shift", "sample-shift"),
    ),
    _decides(
        "negative",
        parse.text_up_to(MAX_TEXT, f"plain text of at most {MAX_TEXT} characters"),
        'What to avoid; "" for nothing.',
        example='"blurred, static"',
        metavar="TEXT",
        model_default="negative_prompt",
        mistaken_for=("negative-prompt", "neg"),
    ),
    _decides(
        "seed",
        parse.whole(0, 2**63 - 1),
        "Same seed, same video.",
        example="42",
        metavar="N",
        unset="drawn",
        unset_in={
            **dict.fromkeys(("bench", "bench steps", "bench waterfall"), "0"),
            **dict.fromkeys(("batch", "evaluate"), "from the prompt"),
        },
    ),
)
