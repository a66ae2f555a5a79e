"""peft, an extra that LoRA needs."""

from importlib.util import find_spec

from fpsgen.errors import ENVIRONMENT, FpsgenError


def check_peft() -> None:
    """Raise FpsgenError ENVIRONMENT where peft is not installed."""
    if find_spec("peft") is None:
        raise FpsgenError("LoRA needs peft, which is not installed", "pip install peft", ENVIRONMENT)
