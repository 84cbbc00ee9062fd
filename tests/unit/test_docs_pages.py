"""The pages of docs/: readable by the runner, and true where a test can look without running them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

import console.cli.main
from core.config import read_config
from core.config_reading import _VARIABLES
from core.errors import ConfigInvalid
from core.settings import Settings
from tests.running.agent import ROOT
from tests.running.pages import DOCS, LANGUAGES, PageRun, blocks_of, missing_line

PAGES = sorted(DOCS.glob("*.md"))
READERS = {"SHOAL_CONFIG", "SHOAL_NODE"}
# What a test can't do: it needs root, systemd, a container engine, another machine or a download.
NOT_RUN = (
    "make install", "export PATH", "python3 -m venv", "/opt/shoal", "ln -sfn", "useradd", "install -d",
    "cp deploy/", "systemctl", "journalctl", "podman", "key=", "name=", "curl -sf", "python -m tests.bench",
)  # fmt: skip


def by_name(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_each_block_says_what_it_is(page: Path) -> None:
    blocks = blocks_of(page.read_text())
    assert page.read_text().count("\n```") == 2 * len(blocks), "a fence that does not close"
    for number, block in enumerate(blocks):
        assert block.language in LANGUAGES, f"line {block.line}"
        if block.language == "text":
            assert blocks[number - 1].language == "sh", f"line {block.line}: what printed this?"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_what_is_not_run_could_not_be(page: Path) -> None:
    for block in blocks_of(page.read_text()):
        if block.language == "bash":
            for line in block.text.splitlines():
                assert line.startswith(NOT_RUN), f"line {block.line}: {line}: run it, in a block of sh"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_code_can_be_parsed(page: Path) -> None:
    for block in blocks_of(page.read_text()):
        if block.language == "python":
            assert block.file, f"line {block.line}: name the file in its first line"
            compile(block.text, f"{page.name}:{block.line}", "exec")
        if block.language == "toml":
            assert tomllib.loads(block.text)
            if block.file == "open.toml":  # shows what is refused
                with pytest.raises(ConfigInvalid, match="can be reached from other machines"):
                    read_config(block.text, folder="/", environ={})
            else:
                read_config(block.text, folder="/", environ={})


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_command_and_variable_of_shoal_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text()
    assert set(re.findall(r"SHOAL_[A-Z_]+", text)) <= {*_VARIABLES, *READERS}
    for command in sorted(set(re.findall(r"\bshoal (agent|config \w+|demo|[a-z]+ --config)", text))):
        words = command.removesuffix(" --config").split()
        assert console.cli.main.run([*words, "--help"], lambda config, node: 1) == 0, command
    capsys.readouterr()


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"^\| \[([\w-]+\.md)\]", (DOCS / "README.md").read_text(), re.MULTILINE))
    assert listed == {page.name for page in PAGES} - {"README.md"}


def test_the_settings_page_has_every_setting_with_its_default() -> None:
    told = re.findall(r"^\| `(\w+)` \| (\S+) \|", (DOCS / "settings.md").read_text(), re.MULTILINE)
    assert {name: json.loads(value) for name, value in told} == msgspec.to_builtins(Settings())


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_event_that_a_page_names_is_logged(page: Path) -> None:
    sources = "\n".join(path.read_text() for part in ("agent", "net") for path in (ROOT / part).rglob("*.py"))
    logged = set(re.findall(r"\"([a-z]+\.[a-z_]+)\"", sources))
    families = {event.split(".")[0] for event in logged} - {"points", "columns"}
    for event in re.findall(r"`(?:event=)?([a-z]+\.[a-z_]+)`", page.read_text()):
        if event.split(".")[0] in families and not event.endswith((".db", ".json", ".md", ".sock", ".toml")):
            assert event in logged


# -- the runner itself


def run_page(folder: Path, text: str) -> None:
    page = folder / "page.md"
    page.write_text(text)
    (folder / "run").mkdir()
    PageRun(page, folder / "run").run(timeout_s=10)


def test_blocks_share_a_session_and_files_are_written(tmp_path: Path) -> None:
    made = "```toml\n# a/b.toml\nx = 1\n```\n```sh\nx=7\ncat a/b.toml\n```\n```text\nx = 1\n```\n"
    run_page(tmp_path, made + "```sh\necho $x\n```\n```text\n7\n```\n")


def test_ports_are_free_ones(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not printed: 6333"):
        run_page(tmp_path, "```sh\necho 127.0.0.1:6333\n```\n```text\n6333\n```\n")


@pytest.mark.parametrize("spoilt", ["echo 2", "false", "sleep 60"])
def test_a_page_that_is_wrong_fails_and_says_where(tmp_path: Path, spoilt: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```sh\n{spoilt}\n```\n```text\n1\n```\n")
    (tmp_path / "run").mkdir()
    with pytest.raises(AssertionError, match=r"page\.md:3"):
        PageRun(page, tmp_path / "run").run(timeout_s=1)


@pytest.mark.parametrize(
    ("expected", "output", "missing"),
    [
        ("a\nb", "xxa\nzzb", None),
        ("a\nb", "b\na", "b"),
        ("{…}", "{1}{2}", None),
        ("a…b", "a\nb", "a…b"),
        ("a\na", "a", "a"),
        ("one (200)", "one(200)", "one (200)"),
        ("one … (200)", "one(200)", None),
        ("one…(200)", "one (200)", None),
    ],
)
def test_lines_are_looked_for_in_order(expected: str, output: str, missing: str | None) -> None:
    assert missing_line(expected, output) == missing
