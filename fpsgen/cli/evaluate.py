"""`fpsgen evaluate`: how far a model's videos are from dense attention's, over a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fpsgen.cli import console
from fpsgen.cli.options import argument, complete_models, examples, option, takes_settings
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.settings.gather import gather
from fpsgen.settings.groups.measuring import EVALUATE
from fpsgen.text import plural

EXAMPLES = examples(
    "fpsgen evaluate nano",
    "fpsgen evaluate runs/mine/model --teacher wan2.1-1.3b --prompts prompts/wan.txt",
    "fpsgen evaluate nano --compare fp8,sta --seeds 3 -o outputs/nano",
    "A suite that was stopped goes on with the same line.",
)
HELD_OUT, SAMPLES = "prompts/nano-held-out.txt", "prompts/wan.txt"

Which = Annotated[str | None, argument("MODEL", "A model's name or folder.", complete_models)]
Prompts = Annotated[
    str | None,
    option(
        "--prompts",
        metavar="FILE",
        help=f"Prompts as fpsgen batch takes them. [nano: {HELD_OUT}, else {SAMPLES}]",
        group=EVALUATE,
    ),
]


@takes_settings("evaluate")
def evaluate(given: dict[str, Any], which: Which = None, prompts: Prompts = None) -> None:
    """Measure a model's videos against dense attention of the same seeds, over a file of prompts.

    stdout: a table and the path of the HTML page. The folder also gets rows.jsonl, the videos and vbench/, which VBench
    runs on unchanged.
    """
    if which is not None and "model" in given:
        raise FpsgenError("a model and -m were both given", "give one of the two", USAGE)
    given |= {} if which is None else {"model": which}
    settings = gather(given)
    folder = Path(settings.evaluate_output)

    from fpsgen.batch.jobs import read_batch
    from fpsgen.bench.evaluate import run, save, with_seeds
    from fpsgen.bench.plan import check_compiled
    from fpsgen.cli import progress
    from fpsgen.cli.batch import sample_or
    from fpsgen.cli.bench import command_line
    from fpsgen.cli.model_choice import choose_model
    from fpsgen.files import make_folder, used_alone
    from fpsgen.pipeline.memory import check_machine

    choice = choose_model(settings)
    teacher = None if settings.teacher is None else choose_model(settings.replace(model=settings.teacher))
    source = sample_or(prompts or (SAMPLES if choice.vocabulary is None else HELD_OUT))
    jobs = read_batch(source, given | {"output": f"{folder}/", "overwrite": True}, True, lambda _: choice)
    requests = with_seeds([job.request for job in jobs.jobs], settings.seeds)
    for request in requests:
        check_compiled(request)
    check_machine(requests[0])
    alone = used_alone(make_folder(folder))
    with alone, progress.working(settings.quiet, settings.debug, jobs.warnings) as (events, timing):
        events.note("model", f"{choice.spec.name} ({choice.reason})")
        events.note("evaluate", f"{plural(len(requests), 'video')} a method, into {folder}")
        rows = run(requests, teacher, settings.compare, folder, timing, command_line())
        path = save(rows, folder)
    from fpsgen.report.evaluate import summarize, table

    console.print_rows("evaluate", summarize(rows), settings, lambda: table(rows), path, warnings=timing.warnings)
