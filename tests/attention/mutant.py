"""Kernels with a planted mistake: copies of modules in which one expression of one function is another.

Expressions are compared as Python understands them: how a kernel is formatted does not matter.
"""

import ast
import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACKAGE = "fpsgen.attention.kernels"
MODULES = (  # each after those that it imports from
    *("softmax", "sm90_parts", "tile_scheduler", "attend_fp8_sm90", "attend_16bit_sm90"),
    *("quantize_parts", "norm_rope_quantize", "quantize_qkv", "attend_portable", "dispatch"),
)
INTERPRETED = ("quantize_parts", "norm_rope_quantize", "quantize_qkv", "attend_portable")
Change = tuple[str, str, str]  # function or variable of a module, what is there, what is put there


def planted(source: str, where: str, right: str, wrong: str) -> str:
    """The source with the first expression that equals `right` in the function `where` replaced by `wrong`."""
    tree, pattern = ast.parse(source), _parsed(right)
    for holder in (node for node in ast.walk(tree) if where in _names(node)):
        for parent in sorted(ast.walk(holder), key=lambda node: getattr(node, "lineno", 0)):
            for name, value in ast.iter_fields(parent):
                children = value if isinstance(value, list) else [value]
                for i, child in enumerate(children):
                    if isinstance(child, ast.AST) and ast.dump(child) == pattern:
                        children[i] = ast.parse(wrong, mode="eval").body
                        setattr(parent, name, children if isinstance(value, list) else children[0])
                        return ast.unparse(ast.fix_missing_locations(tree))
    raise LookupError(f"{where} holds no {right}")


def _parsed(code: str) -> str:
    return ast.dump(ast.parse(code, mode="eval").body)


def _names(node: ast.AST) -> list[str]:
    """What a definition or an assignment of a module gives a name to."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]


def source_of(module: str) -> Path:
    return Path(importlib.util.find_spec(f"{PACKAGE}.{module}").origin)


@contextlib.contextmanager
def kernels_with(folder: Path, module: str = "", change: Change | None = None):
    """Fresh copies of all modules of the kernels, by name, one of them with a mistake; imports find them meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        copies: dict[str, Any] = {}
        for name in MODULES:
            path = source_of(name)
            if change is not None and name == module:
                text = planted(path.read_text(encoding="utf-8"), *change)
                path = folder / f"{name}.py"
                path.write_text(text, encoding="utf-8")
            copies[name] = _execute(f"{PACKAGE}.{name}", path)
            patch.setitem(sys.modules, f"{PACKAGE}.{name}", copies[name])
        yield copies


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(module: ModuleType, folder: Path, *changes: tuple[str, str]) -> ModuleType:
    """The module with the first of each (old, new) text replaced, in the form that ast.unparse gives it: how the module
    is formatted does not matter. A file of its own, since Triton reads functions from theirs.
    """
    source = ast.unparse(ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")))
    for old, new in changes:
        assert old in source, f"nothing to replace: {old}"
        source = source.replace(old, new, 1)
    path = folder / f"{module.__name__.rpartition('.')[2]}_mutant.py"
    path.write_text(source, encoding="utf-8")
    return _execute(f"{module.__name__}_mutant", path)


def taken(module: ModuleType, part: ModuleType) -> dict[str, Any]:
    """What `part` has under the names that `module` has too: what it would import."""
    return {name: value for name, value in vars(part).items() if not name.startswith("__") and name in vars(module)}
