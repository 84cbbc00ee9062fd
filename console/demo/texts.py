"""The demo's real input: the docstrings of the Python that runs it, read from source, never imported."""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHARS_MIN = 30  # "Return self." teaches nobody anything
# Tests, programs, and what is kept only for old code.
_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "distutils",
    "turtledemo",
    "site-packages",
    "this",
    "antigravity",
}
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | _Definition


@dataclass(frozen=True, slots=True)
class Text:
    """One docstring: `name` is where it stands (`asyncio.queues.Queue.get`), `module` its top module."""

    name: str
    module: str
    text: str


def standard_library_texts(texts_max: int) -> list[Text]:
    """Of public modules, classes and functions, no text twice; an even choice if there are more."""
    found: dict[str, Text] = {}
    for text in _documented(Path(sysconfig.get_path("stdlib"))):
        found.setdefault(text.text, text)
    texts = list(found.values())
    if len(texts) <= texts_max:
        return texts
    return [texts[i * len(texts) // texts_max] for i in range(texts_max)]


def _documented(folder: Path) -> Iterator[Text]:
    for module in sorted(sys.stdlib_module_names - _SKIPPED):
        if module.startswith("_"):
            continue
        package = folder / module
        files = sorted(package.rglob("*.py")) if package.is_dir() else [folder / f"{module}.py"]
        for path in files:
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            hidden = any(part.startswith("_") or part in _SKIPPED for part in parts)
            if path.exists() and not hidden:
                yield from _docstrings(path, module, ".".join(parts))


def _docstrings(path: Path, module: str, name: str) -> Iterator[Text]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in old modules are not the demo's business
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # one file less: some are kept broken on purpose
    ahead: list[tuple[str, _Documented]] = [(name, tree)]
    while ahead:
        name, node = ahead.pop()
        text = ast.get_docstring(node)
        if text and len(text) >= _CHARS_MIN:
            yield Text(name, module, text)
        if not isinstance(node, ast.Module | ast.ClassDef):
            continue
        for child in reversed(node.body):
            if isinstance(child, _Definition) and not child.name.startswith("_"):
                ahead.append((f"{name}.{child.name}", child))
