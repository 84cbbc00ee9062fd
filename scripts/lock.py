"""Writes requirements/*.lock: the versions that .venv has of all that pyproject.toml asks for.

    .venv/bin/python scripts/lock.py          after changing dependencies and trying them in .venv
    .venv/bin/python scripts/lock.py --check  says what differs, exit status 1 if anything does

Each lock is whole (pip installs it without looking for dependencies) but for the one that it builds on.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"


def main(arguments: list[str]) -> int:
    """Writes the locks, or with --check compares them."""
    check = arguments == ["--check"]
    stale = []
    for name, text in locks().items():
        path = FOLDER / name
        if check and (not path.exists() or path.read_text() != text):
            stale.append(name)
        elif not check:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)}: {sum('==' in line for line in text.splitlines())} packages")
    for name in stale:
        print(f"requirements/{name} is not what .venv has: run scripts/lock.py, or make install")
    return 1 if stale else 0


def locks() -> dict[str, str]:
    """The text of each lock file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    build = pins(project["build-system"]["requires"])
    runtime = pins(project["project"]["dependencies"])
    dev = pins(extras["dev"])
    compat = pins(extras["compat"])
    return {
        "build.lock": lock("what builds the package", {}, build),
        "runtime.lock": lock("what a node needs", {}, runtime),
        "dev.lock": lock("what the tests and checks need", runtime, dev, base="runtime.lock"),
        "compat.lock": lock("foreign clients", runtime | dev, compat, base="dev.lock"),
    }


def lock(purpose: str, below: dict[str, str], wanted: dict[str, str], base: str | None = None) -> str:
    """One file: a header, what it builds on, and the pins that are not there already."""
    lines = [f"# {purpose}; made by scripts/lock.py on Python 3.11, Linux"]
    if base:
        lines.append(f"-r {base}")
    lines += [f"{name}=={version}" for name, version in sorted(wanted.items()) if name not in below]
    return "\n".join(lines) + "\n"


def pins(wanted: Iterable[str]) -> dict[str, str]:
    """Name and installed version of these requirements and of all that they need in turn."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    ahead = [(Requirement(text), "") for text in wanted]
    while ahead:
        requirement, extra = ahead.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is asked for and not installed: .venv/bin/pip install '{requirement}'")
        if not requirement.specifier.contains(installed.version, prereleases=True):
            sys.exit(f"{name} {installed.version} is installed, {requirement} is asked for")
        found[name] = installed.version
        for wanted_extra in ("", *sorted(requirement.extras)):
            if (name, wanted_extra) not in seen:
                seen.add((name, wanted_extra))
                ahead += [(Requirement(text), wanted_extra) for text in installed.requires or []]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
