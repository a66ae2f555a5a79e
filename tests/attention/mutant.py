"""Copies of a kernel's module with a mistake planted, or with other functions in place of those it imports."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any


def load(module: ModuleType, folder: Path, *changes: tuple[str, str]) -> ModuleType:
    """The module with the first of each (old, new) replaced; a file of its own, since Triton reads functions from
    theirs.
    """
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in source, f"nothing to replace: {old}"
        source = source.replace(old, new, 1)
    path = folder / f"{module.__name__.rpartition('.')[2]}_mutant.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_mutant", path)
    assert spec and spec.loader
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant


def taken(module: ModuleType, part: ModuleType) -> dict[str, Any]:
    """What `part` has under the names that `module` has too: what it would import."""
    return {name: value for name, value in vars(part).items() if not name.startswith("__") and name in vars(module)}


def graft(module: ModuleType, part: ModuleType, folder: Path) -> ModuleType:
    """A copy of `module` that imports from `part`."""
    copy = load(module, folder)
    vars(copy).update(taken(copy, part))
    return copy
