"""Runs a page of docs/ as a reader would: writes its files, runs its commands, compares what they print.

In a page, ```sh is run by bash, all blocks in one session; the ```text right after one is what it must print:
these lines, or pieces of them, in that order, with `…` for whatever differs. A block of another language is
written to a file if its first line is `# name.toml`. ```bash is for what a test can't do (root, downloads).
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.running import processes
from tests.running.agent import ROOT
from tests.running.ports import PortPair

DOCS = ROOT / "docs"
LANGUAGES = frozenset({"sh", "text", "bash", "toml", "python", "json", "yaml", "ini"})
_FENCE = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.\w+)(?:,.*)?$")
_ADDRESSES = ("127.0.0.1:6333", "127.0.0.1:6433", "127.0.0.1:6533")
"""Of the nodes in the pages; a run puts free ports in their place."""
_MARK = "\x1e"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block, and the line of the page at which it begins."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that this block is to be written to."""
        if self.language in ("sh", "text", "bash"):
            return None
        found = _FILE.match(self.text.partition("\n")[0])
        return found[1] if found else None

    @property
    def leaves_something_running(self) -> bool:
        return any(line.endswith("&") or line.startswith("kill ") for line in self.text.splitlines())


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    return [
        Block(found["language"], found["text"], page.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(page)
    ]


def starts_an_agent(page: str) -> bool:
    """Whether its commands start a node; if not, one has to run."""
    return any(block.language == "sh" and "shoal agent" in block.text for block in blocks_of(page))


def missing_line(expected: str, output: str) -> str | None:
    """The first expected line that is not in the output after those before it; None if all are."""
    at = 0
    for line in filter(None, map(str.strip, expected.splitlines())):
        # Not by whole lines: an answer of curl's ends without a line feed, and the next one follows.
        parts = map(re.escape, re.split(r"\s*…\s*", line))
        found = re.compile(".*?".join(parts)).search(output, at)
        if found is None:
            return line
        at = found.end()
    return None


class PageRun:
    """One page in a folder of its own. `run` raises AssertionError with the block that failed."""

    def __init__(self, page: Path, folder: Path, *, agent_port: int | None = None) -> None:
        self._page, self._folder = page, folder
        self._tag = secrets.token_hex(8)
        self._drawn = [PortPair() for _ in _ADDRESSES]
        ports = [pair.port for pair in self._drawn]
        if agent_port is not None:
            ports[0] = agent_port
        self._ports = dict(zip(_ADDRESSES, ports, strict=True))
        self._blocks = blocks_of(page.read_text())

    def run(self, timeout_s: float = 120.0) -> None:
        script, output = self._folder / ".page.sh", self._folder / ".output"
        script.write_text(self._script())
        try:
            with output.open("ab") as file:
                process = subprocess.Popen(
                    ["bash", script],
                    cwd=self._folder, env=self._environment(),
                    stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                )  # fmt: skip
            try:
                status: int | None = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                status = None
        finally:
            processes.kill(processes.tagged(self._tag))
            for pair in self._drawn:
                pair.release()
        self._compare(_by_block(output.read_text(errors="replace")), status)

    def _script(self) -> str:
        """All blocks as one bash script, which says before each that it begins."""
        lines = ["set -euo pipefail"]
        for number, block in enumerate(self._blocks):
            text = self._placed(block.text)
            if block.file is not None:
                lines.append(f"mkdir -p $(dirname {block.file})")
                lines.append(f"cat > {block.file} <<'END OF FILE'\n{text}END OF FILE")
            elif block.language == "sh":
                lines.append(f"printf '{_MARK}%d{_MARK}' {number}\n{text}")
        return "\n".join(lines) + "\n"

    def _compare(self, printed: dict[int, str], status: int | None) -> None:
        last = max(printed, default=0)
        if status != 0:
            how = "never ended" if status is None else f"ended with status {status}"
            raise AssertionError(f"{self._told(last, printed)}\n--- {how}")
        for number, block in enumerate(self._blocks):
            if block.language != "text":
                continue
            run = number - 1
            assert run in printed, f"{self._page.name}:{block.line}: no ```sh right before it"
            output = printed[run]
            if self._blocks[run].leaves_something_running:  # its words may come a moment later
                output += printed.get(min((n for n in printed if n > run), default=-1), "")
            missing = missing_line(self._placed(block.text), output)
            assert missing is None, f"{self._told(run, printed)}\n--- not printed: {missing}"

    def _told(self, number: int, printed: dict[int, str]) -> str:
        block = self._blocks[number]
        shown = printed.get(number, "")[-6000:]
        return f"{self._page.name}:{block.line}:\n{block.text}--- printed:\n{shown}"

    def _placed(self, text: str) -> str:
        for address, port in self._ports.items():
            text = text.replace(address, f"127.0.0.1:{port}")
        # The port after it, where other programs would offer gRPC, is named alone.
        return text.replace("grpc_port=6334", f"grpc_port={self._ports[_ADDRESSES[0]] + 1}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        path = f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}"
        return {**kept, "PATH": path, "HOME": str(self._folder), processes.TAG: self._tag}


def _by_block(output: str) -> dict[int, str]:
    """What was printed from the beginning of each block to that of the next."""
    pieces = output.split(_MARK)[1:]
    return {int(number): text for number, text in zip(pieces[::2], pieces[1::2], strict=True)}
