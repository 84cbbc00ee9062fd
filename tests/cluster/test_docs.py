"""The pages of docs/, each run as a reader would: every command, against a real agent."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.agent import ROOT, RunningAgent
from tests.running.pages import DOCS, PageRun, blocks_of, starts_an_agent

PAGES = [
    page for page in sorted(DOCS.glob("*.md")) if any(b.language == "sh" for b in blocks_of(page.read_text()))
]
NEEDED = ("bash", "curl", "openssl")


def _page(path: Path) -> object:
    foreign = "qdrant_client" in path.read_text()
    return pytest.param(path, id=path.stem, marks=[pytest.mark.compat] if foreign else [])


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [_page(page) for page in PAGES])
def test_every_command_of_a_page_prints_what_the_page_says(
    page: Path, tmp_path: Path, new_agent: Callable[..., RunningAgent]
) -> None:
    text = page.read_text()
    if "qdrant_client" in text:
        pytest.importorskip("qdrant_client")  # `make test-long` installs it
    for program in NEEDED:
        if program in text and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed, and {page.name} calls it")
    folder = tmp_path / "page"
    folder.mkdir()
    if starts_an_agent(text):
        PageRun(page, folder).run()
    else:
        agent = new_agent()
        agent.start()
        PageRun(page, folder, agent_port=agent.port).run()
        assert agent.is_running()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_script_of_the_sizing_page_measures_what_the_page_tells() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.sizing", "--rows", "9000"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    at_rest = done.stdout.partition("after a stop and a start")[2]
    sizes = {
        kind.strip(): float(size)
        for kind, size in re.findall(r"^  (.+?) +\d+ MB a million, +([\d.]+) bytes", at_rest, re.MULTILINE)
    }
    assert 4 * 384 <= sizes["rows, f32"] <= 1.2 * 4 * 384
    # Green leaves up to 4,000 rows to be searched one by one.
    assert (384 + 100) / 2 <= sizes["graph"] <= 384 + 200
    assert 281 <= sizes["ids and payloads (points.db)"] <= 281 * 1.6
    assert {"front", "store", "main"} <= set(
        re.findall(r"^  (\w+) +\d+ MB of its own", at_rest, re.MULTILINE)
    )
