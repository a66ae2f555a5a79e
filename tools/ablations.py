"""The paper's ablations on nano, with true quality: one table for each name, beside the paper's own figures.

    python -m tools.ablations joint granularity tile window --prompts 6

The videos are those of prompts that nano's training never saw. PSNR, SSIM: against the dense video of the same weights
and seed. Velocity: signal to noise of single predictions on the dense trajectory, in which errors do not add up. Rows
of all videos stay in --work, so a run that was stopped goes on; figures/ablation-NAME.json gets the summary.

nano has 9 x 10 x 16 = 1,440 tokens and was trained with the profiles of its own schedule (tile (3, 10, 2)). Windows and
tiles that it was not trained with are training-free for it, as all methods but FPSAttention are in the paper's table 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fpsgen.assets import weights_dir
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import Schedule
from fpsgen.attention.windows import Size3
from fpsgen.bench.shapes import Shape, plan_for
from fpsgen.bench.suite import DENSE, Models, Variant, read_rows, run
from fpsgen.evaluate.nano.captions import plain
from fpsgen.evaluate.nano.prompts import unseen
from fpsgen.models.catalog.choice import choose
from fpsgen.pipeline.events import Timing
from fpsgen.pipeline.loaded_model import choose_device
from fpsgen.pipeline.plan import plan
from fpsgen.pipeline.request import GenerateRequest
from fpsgen.report.evaluate import summarize
from fpsgen.settings.gather import Settings
from tools.command_line import parser_of
from tools.figures import render

GRID: Size3 = (9, 10, 16)
TILE: Size3 = (3, 10, 2)  # nano's own
DENSITY = 0.4  # at which tiles of several sizes are compared
COLUMNS = {
    "choice": "Choice",
    "density": "Density",
    "psnr": "PSNR to dense, dB: median (quartiles)",
    "ssim": "SSIM",
    "snr": "Velocity, dB",
    "right": "All right, %",
    "videos": "Prompts",
}
PAPER = {"paper": "Paper, PSNR, dB"}
# arXiv 2506.04648: table 1 (Wan2.1-1.3B, 480p), tables 3 and 4; by the choice that stands for it here
PAPER_JOINT = {"fp8: FP8 alone": "21.00", "sta: windows alone": "18.79", "fps: both": "21.35 (trained)"}


def constant(name: str, profile: Profile) -> Schedule:
    """The same profile at every noise level."""
    return Schedule(name, (profile,), ((0.0, 1.0, profile.name),))


def joint() -> dict[str, Variant]:
    """FP8 alone, windows alone, both: nano's own schedule each time."""
    own = Schedule.from_file(weights_dir() / "nano" / "schedule.toml")
    texts = {"fp8": "fp8: FP8 alone", "sta": "sta: windows alone", "fps": "fps: both"}
    return {text: Variant(f"joint-{method}", own, method) for method, text in texts.items()}


def granularity() -> dict[str, Variant]:
    """Dense FP8: how many key blocks of 60 tokens share a scale; and the other ways to share one (CPU and reference
    alone).
    """
    blocks = AttentionPlan(GRID, TILE, method="fp8").layout.num_blocks
    found = {}
    for count in (1, 2, 4, 8, blocks):
        text = f"{count} block{'s' * (count > 1)} ({count * 60} tokens)" if count < blocks else "the whole head"
        profile = Profile("all", "fp8", tile=TILE, granularity=count)
        found[text] = Variant(f"granularity-{count}", constant(f"fp8-g{count}", profile))
    for scale in ("token", "channel", "group", "tensor"):
        profile = Profile("all", "fp8", tile=TILE, options={"scale": scale})
        found[f"per {scale}"] = Variant(f"granularity-{scale}", constant(f"fp8-{scale}", profile))
    return found


def tile() -> dict[str, Variant]:
    """Tiles of several sizes, a scale for each: dense, and with the window that comes nearest to one density."""
    found = {}
    for size in ((3, 2, 2), (3, 5, 4), (3, 10, 2), (9, 5, 4)):
        name = "x".join(map(str, size))
        found[f"{size}, dense"] = Variant(f"tile-{name}-dense", constant(f"fp8-{name}", Profile("all", "fp8", size)))
        window = plan_for(Shape("nano", GRID, 6, 64, tile=size), "fps", DENSITY).window
        profile = Profile("all", "fps", size, window)
        found[f"{size}, window {window}"] = Variant(f"tile-{name}", constant(f"fps-{name}", profile))
    return found


def window() -> dict[str, Variant]:
    """Windows of several shapes over tiles of 3 x 2 x 2 tokens (3 x 5 x 8 of them), bf16 elsewhere."""
    found = {}
    for extent in ((3, 5, 1), (1, 5, 8), (3, 1, 8), (3, 3, 5), (3, 5, 3), (3, 5, 5), (3, 5, 7)):
        name = "x".join(map(str, extent))
        profile = Profile(
            "all", "sta", (3, 2, 2), tuple(0 if e == n else e for e, n in zip(extent, (3, 5, 8), strict=True))
        )
        found[f"{extent} of (3, 5, 8)"] = Variant(f"window-{name}", constant(f"sta-{name}", profile))
    return found


ABLATIONS: dict[str, Callable[[], dict[str, Variant]]] = {
    each.__name__: each for each in (joint, granularity, tile, window)
}


def _needs_reference(variant: Variant) -> bool:
    """Whether no GPU kernel computes it: another scale than one for each group of blocks."""
    schedule = variant.schedule
    return isinstance(schedule, Schedule) and any(dict(profile.options) for profile in schedule.profiles)


def requests(model: str, captions: Sequence[str], seeds: int, folder: Path, device: str) -> list[GenerateRequest]:
    """Every caption with each of the seeds 0 .. seeds - 1."""
    settings = Settings({"model": model, "output": f"{folder}/", "overwrite": True, "device": device, "seed": 0})
    choice = choose(model)
    made = [plan(text, settings, choice).request for text in captions]
    return [each.replace(sampling={"seed": seed}) for each in made for seed in range(seeds)]


def summary(choice: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of a table from the rows of a variant's videos."""
    entry = summarize(rows)[0]
    around = "" if entry["psnr_db_quartiles"] is None else " ({}-{})".format(*entry["psnr_db_quartiles"])
    texts = {
        "density": f"{entry['density']:.0%}",
        "psnr": "" if entry["psnr_db"] is None else f"{entry['psnr_db']:.1f}{around}",
        "ssim": "" if entry["ssim"] is None else f"{entry['ssim']:.3f}",
        "snr": "" if entry["snr_db"] is None else f"{entry['snr_db']:.1f}",
        "right": "" if entry["shows"] is None else f"{entry['shows']['all']:.0f}",
        "videos": len(rows),
    }
    origin = {name: rows[0][name] for name in ("device", "versions", "commit", "steps", "guidance", "dtype", "command")}
    return {"schema": "fpsgen.ablation/1", "choice": choice, **texts, **origin, "figures": entry}


def tables(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What figures/ablation-NAME.json holds. A video that some variant lacks yet does not count."""
    wanted = {DENSE.name} | {variant.name for name in names for variant in ABLATIONS[name]().values()}
    made: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        made.setdefault((row["prompt"], row["seed"]), set()).add(row["variant"])
    rows = [row for row in rows if wanted <= made[row["prompt"], row["seed"]]]
    found = {}
    dense = [row for row in rows if row["variant"] == DENSE.name]
    for name in names:
        lines = []
        for choice, variant in ABLATIONS[name]().items():
            own = [row for row in rows if row["variant"] == variant.name]
            lines += [summary(choice, own)] if own else []
        columns = dict(COLUMNS)
        if name == "joint":
            columns |= PAPER
            lines = [line | {"paper": PAPER_JOINT[line["choice"]]} for line in lines]
            lines = [summary("dense", dense) | {"paper": ""}, *lines] if dense else lines
        used = {key: text for key, text in columns.items() if any(str(line[key]) for line in lines)}
        found[name] = {"columns": used, "rows": lines}
    return found


class _Quiet:
    def stage_start(self, name: str) -> None: ...

    def stage_end(self, name: str, seconds: float) -> None: ...

    def step(self, index: int, total: int, seconds: float, note: str) -> None:
        if index % 50 == 0:
            print(f"step {index} of {total}, {note}", flush=True)

    def warn(self, text: str) -> None: ...


def parser() -> argparse.ArgumentParser:
    parser = parser_of("ablations", __doc__)
    parser.add_argument("names", nargs="+", choices=sorted(ABLATIONS), help="which tables")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--prompts", type=int, default=6, help="held-out prompts")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="denoising steps, the model's own if not given")
    parser.add_argument("--every", type=int, default=4, help="compare velocities at each of so many steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("outputs/ablations"), help="folder of videos and rows")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the tables")
    parser.add_argument("--velocities", action="store_true", help="errors of single predictions alone, no videos")
    parser.add_argument("--tables-only", action="store_true", help="sum up the rows in --work, and make none")
    return parser


def command_of(options: argparse.Namespace) -> str:
    """What makes the same rows again, wherever they are put."""
    defaults, given = parser(), {name: getattr(options, name) for name in ("model", "steps", "every")}
    shown = [f"--prompts {options.prompts} --seeds {options.seeds}"]
    shown += [f"--{name} {shlex.quote(str(x))}" for name, x in given.items() if x != defaults.get_default(name)]
    shown += ["--velocities"] * options.velocities
    return f"python -m tools.ablations {' '.join([*options.names, *shown])}"


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    captions = [plain(scene) for scene in unseen(options.prompts)]
    asked = requests(options.model, captions, options.seeds, options.work, options.device)
    if options.steps:
        asked = [each.replace(sampling={"steps": options.steps}) for each in asked]
    variants = [variant for name in options.names for variant in ABLATIONS[name]().values()]
    if choose_device(options.device).type == "cuda":
        variants = [replace(each, impl="reference") if _needs_reference(each) else each for each in variants]
    models = Models(asked[0], asked[0])
    dense = replace(DENSE, exact=False)  # attention alone differs
    if options.tables_only:
        rows = read_rows(options.work)
    else:
        timing, videos, command = Timing(_Quiet()), not options.velocities, command_of(options)
        rows = list(run(models, asked, variants, options.work, timing, command, options.every, dense, videos))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables(options.names, rows).items():
        (options.out / f"ablation-{name}.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(render(table, f"ablation-{name}"))


if __name__ == "__main__":
    main()
