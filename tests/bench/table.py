"""The lines of the benchmark table: a target each, what was measured, and the verdict."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Line:
    """`value` is compared with `target` as `at_least` says; `how` tells the figures behind the ratio."""

    name: str
    value: float
    target: float
    at_least: bool
    how: str
    unit: str = "×"

    @property
    def is_met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    @property
    def verdict(self) -> str:
        return "met" if self.is_met else "missed"

    def row(self) -> str:
        sign = "≥" if self.at_least else "≤"
        unit = self.unit if self.unit == "×" else f" {self.unit}"
        cells = (
            self.name,
            f"{sign} {self.target:g}{unit}",
            f"{self.value:.3g}{unit}",
            self.verdict,
            self.how,
        )
        return "| " + " | ".join(cells) + " |"


def at_least(name: str, value: float, target: float, how: str, unit: str = "×") -> Line:
    return Line(name, value, target, True, how, unit)


def at_most(name: str, value: float, target: float, how: str, unit: str = "×") -> Line:
    return Line(name, value, target, False, how, unit)


def table(lines: list[Line]) -> str:
    head = "| what | target | measured | verdict | how |\n|---|---|---|---|---|"
    return "\n".join([head, *(line.row() for line in lines)])


def machine(root: Path) -> str:
    """What the figures were measured on, in one paragraph."""
    cpu = platform.processor() or platform.machine()
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            cpu = row.split(":", 1)[1].strip()
            break
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("usearch", "numpy", "aiohttp", "uvloop", "msgspec")
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}; {os.cpu_count()} × {cpu}; "
        f"Linux {platform.release()}, Python {platform.python_version()}, {packages}."
    )


def write(path: Path, text: str) -> None:
    """Put `text` between the two marks of a Markdown file, leaving the rest as it is."""
    document = path.read_text()
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
