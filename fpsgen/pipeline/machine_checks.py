"""Is this machine fit for a model, and what is in use: versions, GPUs, memory, disk, ffmpeg, models, a kernel."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import __version__
from fpsgen.errors import FpsgenError
from fpsgen.files import system_error
from fpsgen.models.catalog.machine import driver_version, this_machine
from fpsgen.pipeline.compiler import NO_COMPILER, NO_TRITON, c_compiler
from fpsgen.settings.gather import CONFIG_NAME, user_config_file
from fpsgen.text import show

if TYPE_CHECKING:
    from fpsgen.models.catalog.choice import ModelChoice
    from fpsgen.models.catalog.registry import ModelSpec

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"  # ok: it was tried; info: it was only looked up


@dataclass(frozen=True)
class Check:
    """name, status (ok, info, warn, fail), what was found, and how to mend it where it is not ok."""

    name: str
    status: str
    value: str
    remedy: str = ""


def check_machine_for(wanted: str) -> list[Check]:
    """All checks, for a model by name, hub id or folder. Raises FpsgenError MODEL for a name that means nothing."""
    _spec(wanted)
    checks: list[Check] = []
    for part in (software, gpu, memory_and_disk, video, model_checks, settings_in_use, kernel_self_test):
        checks += _guarded(part, wanted)
    return checks


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
        needed = torch.cuda.is_available()
        what = "not installed; needed for GPU kernels"
        return [*checks, Check("triton", WARN if needed else INFO, what, NO_TRITON.remedy if needed else "")]
    checks.append(Check("triton", OK, str(triton.__version__)))
    path = os.environ.get("TRITON_PTXAS_PATH") or str(Path(triton.__file__).parent / "backends/nvidia/bin/ptxas")
    return [*checks, _ptxas(path), *_compiler()]


def _compiler() -> list[Check]:
    """What Triton builds its launchers with, on a machine that has a GPU."""
    import torch

    path = c_compiler()
    if path:
        return [Check("C compiler", INFO, path)]
    status = WARN if torch.cuda.is_available() else INFO
    remedy = NO_COMPILER.remedy if status == WARN else ""
    return [Check("C compiler", status, "none; needed for the first start of each GPU kernel", remedy)]


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
    checks.append(Check("driver", INFO, driver_version() or "unknown"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        fp8 = capability >= (8, 9)
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        name = f"{properties.name}, {memory}, compute capability {'.'.join(map(str, capability))}"
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
    if total := this_machine().ram:
        low = total < 4
        checks.append(Check("RAM", WARN if low else OK, f"{total:.0f} GB", "nano takes 1 GB" if low else ""))
    spec = _spec(wanted)
    to_come = 0.0 if on_disk(spec) else spec.download_gb
    for name, place, needed in (("model cache", hub_settings().cache, to_come), ("outputs", Path("outputs"), 0.1)):
        standing = place.absolute()
        while not os.path.exists(standing):
            standing = standing.parent
        free = shutil.disk_usage(standing).free / 1e9
        low = free < needed
        remedy = f"free some space: {needed:g} GB are needed" if low else ""
        checks.append(Check(f"disk, {name}", FAIL if low else OK, f"{free:.1f} GB free at {place}", remedy))
    return checks


def video(wanted: str) -> list[Check]:
    """One frame is encoded."""
    from fpsgen.ffmpeg import check_ffmpeg, ffmpeg, run

    check_ffmpeg()
    said = run(["-hide_banner", "-version"], bare=True).out.decode("utf-8", "replace").splitlines()
    version = said[0].split(" Copyright")[0] if said else "version unknown"
    return [Check("ffmpeg", OK, f"{version}, libx264 ({ffmpeg()})")]


def model_checks(wanted: str) -> list[Check]:
    """Models on this machine: structure and digests. The hub is not asked."""
    from fpsgen.models.catalog.cache import missing, on_disk
    from fpsgen.models.catalog.hub import hub_settings
    from fpsgen.models.catalog.registry import models

    checks = []
    for spec in models():
        asked = spec.name == wanted
        try:
            folder = on_disk(spec)
        except FpsgenError as error:
            checks.append(_unusable(spec.name, asked, error))
            continue
        if folder is None:
            remedy = missing(spec.name, spec).remedy if asked else ""
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
        return _unusable(name, asked, error)
    return Check(f"model {name}", OK, str(folder))


def _unusable(name: str, asked: bool, error: FpsgenError) -> Check:
    return Check(f"model {name}", FAIL if asked else WARN, error.message, error.remedy)


def settings_in_use(wanted: str) -> list[Check]:
    files = [str(path) for path in (Path(CONFIG_NAME), user_config_file()) if os.path.isfile(path)]
    names = sorted(name for name in os.environ if name.startswith("FPSGEN_"))
    return [Check("settings", INFO, ", ".join([*files, *names]) or "none: all defaults")]


def kernel_self_test(wanted: str) -> list[Check]:
    """fps attention on small random inputs, by the kernel of this machine, against exact attention."""
    import torch

    from fpsgen.attention.self_test import LIMIT, self_test

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return [Check("kernel self-test", WARN, "FP8 does not run on this GPU", "use --method sta or bf16")]
    found = self_test(device)
    text = f"{found.kernel} on {device.type}: relative error {found.error:.1e}, allowed {LIMIT:g}"
    remedy = "" if found.passed else "set TRITON_PTXAS_PATH to a newer ptxas, and report this"
    return [Check("kernel self-test", OK if found.passed else FAIL, text, remedy)]


def _guarded(part: Callable[[str], list[Check]], wanted: str) -> list[Check]:
    """A check that cannot run is a finding, not the end of the others; two-line errors of its own stay errors."""
    try:
        return part(wanted)
    except FpsgenError as error:
        if part is gpu:
            raise
        return [Check(part.__name__.replace("_", " "), FAIL, error.message, error.remedy)]
    except Exception as error:
        found = system_error(error)
        text = found.message if found else f"{type(error).__name__}: {error}"
        remedy = found.remedy if found else "report this; --debug shows more"
        return [Check(part.__name__.replace("_", " "), FAIL, text, remedy)]


def _choice(name: str) -> ModelChoice:
    from fpsgen.models.catalog.choice import choose

    return choose(name, missing_ok=True)


def _spec(name: str) -> ModelSpec:
    return _choice(name).spec
