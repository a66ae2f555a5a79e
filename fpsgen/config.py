"""Old names of fpsgen.settings and fpsgen.text, for imports that have not moved yet."""

from __future__ import annotations

from fpsgen.settings.gather import CONFIG_NAME, Settings, gather, user_config_file
from fpsgen.text import clean_text, show

__all__ = ["CONFIG_NAME", "Settings", "clean_text", "gather", "show", "user_config_file"]
