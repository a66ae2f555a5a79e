"""Which schedule a pipeline runs by: the one asked for, the checkpoint's own, or the preset "safe"."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fpsgen.attention.methods import METHODS
from fpsgen.attention.presets import PRESETS, preset
from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.models.catalog.folder import INDEX, SCHEDULE
from fpsgen.text import show

DEFAULT = "safe"


class ScheduleWarning(UserWarning):
    """The schedule is not the one that the weights were trained with."""


@contextmanager
def no_schedule_warning(when: bool = True) -> Iterator[None]:
    """Within it nobody is warned so: no person chose the schedule for these weights."""
    with warnings.catch_warnings():
        if when:
            warnings.simplefilter("ignore", ScheduleWarning)
        yield


def resolve_schedule(wanted: Schedule | str | Path | None, method: str | None, own: Schedule | None) -> Schedule:
    """The schedule to run.

    wanted: a Schedule, a preset's name, a TOML file, or None for `own` (the checkpoint's), else "safe". method: run it
    as this method, see Schedule.with_method. Warns (ScheduleWarning) where trained weights meet another schedule than
    theirs, and where weights that were not trained for it meet one that needs training; never for dense attention in 16
    bits. Raises FpsgenError BAD_INPUT for a file that cannot be read or a name that does not exist.
    """
    chosen = own if wanted is None else read_schedule(wanted)
    if chosen is None:
        chosen = PRESETS[DEFAULT]
    ran = _checked(lambda: chosen.with_method(method)) if method else chosen
    if any(METHODS[profile.method].tiled for profile in ran.profiles):
        _warn(chosen, own)
    return ran


def read_schedule(wanted: Schedule | str | Path) -> Schedule:
    """A Schedule as it is, by preset name, or from a TOML file. Raises FpsgenError BAD_INPUT."""
    if isinstance(wanted, Schedule):
        return wanted
    if str(wanted) not in PRESETS and (isinstance(wanted, Path) or str(wanted).endswith(".toml")):
        return _checked(lambda: Schedule.from_file(wanted))
    return _checked(lambda: preset(str(wanted)))


def checkpoint_schedule(model: Any) -> Schedule | None:
    """The schedule that came with the weights of a pipeline or transformer (its folder's schedule.toml), or None.

    model: as from_pretrained made it; the folder is what it was loaded from, or the cached snapshot of a hub id. That
    of a LoRA file which was added (wan.lora_file) goes first.
    """
    of_adapter = getattr(getattr(model, "transformer", model), "fpsgen_schedule", None)
    if of_adapter is not None:
        return of_adapter
    config = getattr(model, "config", None)
    place = config.get("_name_or_path") if config is not None and hasattr(config, "get") else None
    if not place:
        return None
    for folder in (Path(place), Path(place).parent):
        if os.path.isfile(folder / INDEX):
            path = folder / SCHEDULE
            return read_schedule(path) if os.path.lexists(path) else None
    if os.path.exists(place) or str(place).count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(place), SCHEDULE)
    return read_schedule(Path(found)) if isinstance(found, str) else None


def same(a: Schedule, b: Schedule) -> bool:
    """Equal in what they do; names and the mark of training do not count."""
    return replace(a, name="", trained=False) == replace(b, name="", trained=False)


def _warn(chosen: Schedule, own: Schedule | None) -> None:
    if own is not None and own.trained:
        if not same(chosen, own):
            warnings.warn(
                f"these weights were trained with schedule {own.name!r} and run with {chosen.name!r}: expect a worse "
                "video; leave the schedule out to use theirs",
                ScheduleWarning,
                stacklevel=1,
            )
    elif chosen.trained or same(chosen, PRESETS["paper"]):
        warnings.warn(
            f"schedule {chosen.name!r} is for weights that were trained with it, and these were not: expect artefacts "
            "and loss of detail; schedule 'safe' is for them",
            ScheduleWarning,
            stacklevel=1,
        )


def _checked(make: Any) -> Schedule:
    try:
        return make()
    except (ValueError, KeyError, TypeError) as error:
        what, _, remedy = str(error).partition("\n")
        raise FpsgenError(
            f"the schedule cannot be used: {show(what, 300)}",
            show(remedy, 300) or f"presets: {', '.join(PRESETS)}",
            BAD_INPUT,
        ) from error
