"""The pages of docs/, each run as a reader would: every command, against a real agent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.agent import RunningAgent
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
