"""The one table of settings, joined from settings/groups/ in the order of --help.

Command-line options, FPSGEN_* variables, fpsgen.toml, lines of prompt files, recipes, replay, job keys, help and
--dry-run all come from it. Read it when it is needed: SETTINGS may grow.
"""

from __future__ import annotations

from fpsgen.settings.groups import machine, measuring, output, sampling, speed, video
from fpsgen.settings.setting import Setting

_GROUPS = (video, sampling, speed, output, machine, measuring)

SETTINGS: dict[str, Setting] = {entry.name: entry for group in _GROUPS for entry in group.ENTRIES}
