"""`fpsgen generate`: one prompt, one MP4, and a report of where the time went."""

from __future__ import annotations

from typing import Annotated, Any

from fpsgen.cli.options import argument, examples, option, takes_settings
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.gather import gather
from fpsgen.settings.groups.video import VIDEO
from fpsgen.settings.table import SETTINGS

EXAMPLES = examples(
    'fpsgen generate "a cat surfing"',
    'fpsgen generate "a cat surfing" --res 720p --pull',
    'fpsgen generate "a cat" -m wan2.1-1.3b --seconds 3 --seed 7 -o cat.mp4',
    'fpsgen generate "a cat" --res 720p --dry-run',
    "Variables: FPSGEN_MODEL, FPSGEN_STEPS ... for each option that files may set; FPSGEN_DEBUG=1; "
    "FPSGEN_CONFIG names a settings file.",
)

Prompt = Annotated[str | None, argument("PROMPT", 'What the video shows, in quotes: "a cat surfing".', None)]
Prompts = Annotated[
    str | None,
    option("--prompts", metavar="FILE", help="Many videos, as fpsgen batch FILE makes them.", group=VIDEO),
]


@takes_settings("generate")
def generate(given: dict[str, Any], prompt: Prompt = None, prompts: Prompts = None) -> None:
    """Make one video from a prompt.

    stdout: the path. stderr: progress. Exit codes: 2 usage, 4 input file, 5 model, 6 machine, 7 disk, 8 network,
    9 bad video or --strict.
    """
    if prompts is not None:
        if prompt is not None:
            raise FpsgenError("a prompt and --prompts were both given", "give one of the two", USAGE)
        alone = next((SETTINGS[name].option for name in given if "batch" not in SETTINGS[name].commands), None)
        if alone is not None:
            what = f"{alone} is for one video, and --prompts makes several"
            raise FpsgenError(what, f"leave {alone} out, or give one prompt", USAGE)
        from fpsgen.cli.batch import make_batch

        make_batch(prompts, given, "generate")
        return
    if prompt is None:
        raise FpsgenError("no prompt was given", 'for example fpsgen generate "a cat surfing"', USAGE)
    settings = gather(given)

    from fpsgen.cli.model_choice import choose_model
    from fpsgen.pipeline.plan import check_prompt, check_schedule, plan

    check_prompt(prompt)  # before a model is looked for, or fetched
    check_schedule(settings.schedule)
    planned = plan(prompt, settings, choose_model(settings))
    if settings.dry_run:
        from fpsgen.cli.dry_run import show

        show(planned, settings)
        return

    from fpsgen.cli.one_video import make_video

    make_video(planned.request, settings, planned.notes, "generate")
