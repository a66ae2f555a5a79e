"""`fpsgen doctor`: is this machine fit, and what is in use; a kernel is run against the reference."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fpsgen import __version__
from fpsgen.cli import console
from fpsgen.cli.options import examples, takes_settings
from fpsgen.errors import ENVIRONMENT, FpsgenError
from fpsgen.settings.gather import CONFIG_NAME, gather, user_config_file
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.models.catalog.choice import ModelChoice
    from fpsgen.models.catalog.registry import ModelSpec

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"  # ok: it was tried; info: it was only looked up
SELF_TEST_LIMIT = 3e-2  # relative L2 against exact attention on the same FP8 inputs; P's cast alone is 1.7e-2 to 2.7e-2

EXAMPLES = examples("fpsgen doctor", "fpsgen doctor -m wan2.1-1.3b", "fpsgen doctor --json")


@dataclass(frozen=True)
class Check:
    """name, status (ok, info, warn, fail), what was found, and how to mend it where it is not ok."""

    name: str
    status: str
    value: str
    remedy: str = ""


@takes_settings("doctor")
def doctor(given: dict[str, Any]) -> None:
    """Check this machine: versions, GPU, memory, disk, models, and a kernel against the reference.

    Exit code 6 where it is unfit for what is asked: nano, or the model of --model, FPSGEN_MODEL or fpsgen.toml.
    """
    settings = gather(given)
    as_json = settings.json
    console.quiet_libraries(settings.debug)
    wanted = "nano" if settings.model == "auto" else settings.model
    _spec(wanted)  # a name that means nothing ends it here
    checks: list[Check] = []
    for part in (software, gpu, memory_and_disk, video, model_checks, settings_in_use, self_test):
        checks += _guarded(part, wanted)
    failed = [check for check in checks if check.status == FAIL]
    if as_json and not failed:
        console.print_json("doctor", [asdict(check) for check in checks], list(settings.warnings))
        return
    if as_json:
        print_failed(checks, failed, list(settings.warnings), wanted)
        raise typer.Exit(ENVIRONMENT)
    wide = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<4}  {check.name:<{wide}}  {console.one_line(check.value)}")
        if check.remedy:
            print(f"{'':<4}  {'':<{wide}}  -> {check.remedy}")
    sys.stdout.flush()
    if failed:
        raise unfit(failed, wanted)
    console.note(f"fit for {wanted}")


def unfit(failed: list[Check], wanted: str) -> FpsgenError:
    return FpsgenError(f"unfit for {wanted}: {', '.join(c.name for c in failed)}", failed[0].remedy, ENVIRONMENT)


def print_failed(checks: list[Check], failed: list[Check], warnings: list[str], wanted: str) -> None:
    """The envelope with what was found and the error, which the general one for errors lacks."""
    problem = unfit(failed, wanted)
    console.print_json("doctor", [asdict(check) for check in checks], warnings, problem)
    console.error(problem)


def software(wanted: str) -> list[Check]:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    checks = [
        Check("fpsgen", OK, __version__),
        Check("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("torch", OK, f"{torch.__version__} ({cuda})"),
    ]
    try:
        import triton
    except ImportError:
        remedy = "pip install triton (it comes with CUDA builds of torch)"
        needed = torch.cuda.is_available()
        what = "not installed; needed for GPU kernels"
        return [*checks, Check("triton", WARN if needed else INFO, what, remedy if needed else "")]
    checks.append(Check("triton", OK, str(triton.__version__)))
    path = os.environ.get("TRITON_PTXAS_PATH") or str(Path(triton.__file__).parent / "backends/nvidia/bin/ptxas")
    return [*checks, _ptxas(path)]


def _ptxas(path: str) -> Check:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("ptxas", WARN, f"{path}: {error}", "set TRITON_PTXAS_PATH, or install triton again")
    version = re.search(r"V([\d.]+)", said)
    return Check("ptxas", OK, f"{version[1] if version else 'unknown'} ({path})")


def gpu(wanted: str) -> list[Check]:
    """Each GPU with a small computation on it; whether the largest suffices for the model."""
    import torch

    from fpsgen.pipeline.memory import model_lack

    lack = model_lack(_spec(wanted), "auto")
    checks = []
    if not torch.cuda.is_available():
        remedy = "use a machine with an NVIDIA GPU, or -m nano" if lack else ""
        return [Check("GPU", FAIL if lack else INFO, "none that torch can use; nano runs on the CPU", remedy)]
    driver = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    checks.append(Check("driver", INFO, driver[0] if driver else "unknown"))
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        fp8 = (facts.major, facts.minor) >= (8, 9)
        name = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, compute capability {facts.major}.{facts.minor}"
        remedy = "" if fp8 else "run with --method sta or bf16: FP8 needs compute capability 8.9"
        status = OK if fp8 else WARN
        if float(torch.ones(256, device=f"cuda:{index}").sum()) != 256:
            status, remedy = FAIL, "choose another with --device; it does not add up"
        checks.append(Check(f"GPU {index}", status, f"{name}, FP8 {'yes' if fp8 else 'no'}", remedy))
    if lack:
        checks.append(Check("GPU memory", FAIL, f"{wanted} {lack}", "use a larger GPU, or a smaller model"))
    return checks


def memory_and_disk(wanted: str) -> list[Check]:
    from fpsgen.models.catalog.cache import on_disk
    from fpsgen.models.catalog.hub import hub_settings

    checks = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        low = total < 4
        checks.append(Check("RAM", WARN if low else OK, f"{total:.0f} GB", "nano takes 1 GB" if low else ""))
    spec = _spec(wanted)
    to_come = 0.0 if on_disk(spec) else spec.download_gb
    for name, place, needed in (("model cache", hub_settings().cache, to_come), ("outputs", Path("outputs"), 0.1)):
        standing = place.absolute()
        while not standing.exists():
            standing = standing.parent
        free = shutil.disk_usage(standing).free / 1e9
        low = free < needed
        remedy = f"free some space: {needed:g} GB are needed" if low else ""
        checks.append(Check(f"disk, {name}", FAIL if low else OK, f"{free:.1f} GB free at {place}", remedy))
    return checks


def video(wanted: str) -> list[Check]:
    """One frame is encoded."""
    from fpsgen.ffmpeg import check_ffmpeg, ffmpeg

    check_ffmpeg()
    path = ffmpeg()
    said = _run(path, "-hide_banner", "-version").splitlines()
    version = said[0].split(" Copyright")[0] if said else "version unknown"
    return [Check("ffmpeg", OK, f"{version}, libx264 ({path})")]


def model_checks(wanted: str) -> list[Check]:
    """Models on this machine: structure and digests. The hub is not asked."""
    from fpsgen.models.catalog.cache import on_disk
    from fpsgen.models.catalog.hub import hub_settings
    from fpsgen.models.catalog.registry import models

    checks = []
    for spec in models():
        folder = on_disk(spec)
        asked = spec.name == wanted
        if folder is None:
            remedy = f"fpsgen models pull {spec.name}" if asked else ""
            checks.append(Check(f"model {spec.name}", FAIL if asked else INFO, "not on this machine", remedy))
        else:
            checks.append(_intact(spec.name, folder, asked))
    choice = _choice(wanted)
    if choice.folder is not None and wanted not in (spec.name for spec in models()):
        checks.append(_intact(show(wanted), choice.folder, True))
    hub = hub_settings()
    state = "HF_HUB_OFFLINE is set: nothing is fetched" if hub.offline else f"models would come from {hub.shown}"
    return [*checks, Check("hub", INFO, f"{state}; not asked")]


def _intact(name: str, folder: Path, asked: bool) -> Check:
    from fpsgen.models.catalog.folder import check_folder
    from fpsgen.models.catalog.verify import check_intact

    try:
        check_folder(folder)
        check_intact(folder)
    except FpsgenError as error:
        return Check(f"model {name}", FAIL if asked else WARN, error.message, error.remedy)
    return Check(f"model {name}", OK, str(folder))


def settings_in_use(wanted: str) -> list[Check]:
    files = [str(path) for path in (Path(CONFIG_NAME), user_config_file()) if path.is_file()]
    names = sorted(name for name in os.environ if name.startswith("FPSGEN_"))
    return [Check("settings", INFO, ", ".join([*files, *names]) or "none: all defaults")]


def self_test(wanted: str) -> list[Check]:
    """fps attention on small random inputs, by the kernel of this machine, against exact attention."""
    import torch

    from fpsgen.attention.op import attend
    from fpsgen.attention.plan import AttentionPlan
    from fpsgen.attention.quantize import fake_quantize
    from fpsgen.attention.tiles import mask_from_lists

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return [Check("kernel self-test", WARN, "FP8 does not run on this GPU", "use --method sta or bf16")]
    plan = AttentionPlan((4, 12, 20), tile=(4, 4, 4), window=(1, 3, 3))
    layout = plan.tables("cpu").layout
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 960, 2, 64, generator=draw).to(device, torch.bfloat16) for _ in range(3))
    out = torch.as_tensor(attend(q, k, v, plan))
    fq, fk, fv = (x.transpose(1, 2).double() for x in fake_quantize(q, k, v, layout, plan.granularity))
    seen = mask_from_lists(plan.tile_lists(), layout).to(device)
    score = (fq @ fk.mT * 64**-0.5).masked_fill(~seen, float("-inf"))
    exact = (torch.softmax(score, -1) @ fv).transpose(1, 2)
    error = float((out.float() - exact).norm() / exact.norm())
    text = f"{plan.kernel(device)} on {device.type}: relative error {error:.1e}, allowed {SELF_TEST_LIMIT:g}"
    remedy = "" if error <= SELF_TEST_LIMIT else "set TRITON_PTXAS_PATH to a newer ptxas, and report this"
    return [Check("kernel self-test", FAIL if remedy or error != error else OK, text, remedy)]


def _guarded(part: Callable[[str], list[Check]], wanted: str) -> list[Check]:
    """A check that cannot run is a finding, not the end of the others; two-line errors of its own stay errors."""
    try:
        return part(wanted)
    except FpsgenError as error:
        if part is gpu:
            raise
        return [Check(part.__name__.replace("_", " "), FAIL, error.message, error.remedy)]
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return [Check(part.__name__.replace("_", " "), FAIL, text, "report this; --debug shows more")]


def _choice(name: str) -> ModelChoice:
    from fpsgen.models.catalog.choice import choose

    return choose(name, missing_ok=True)


def _spec(name: str) -> ModelSpec:
    return _choice(name).spec


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
