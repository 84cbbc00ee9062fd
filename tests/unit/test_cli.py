"""The `shoal` command as a shell sees it: text, streams, exit status, and how little it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import console.cli.main
from core.config import ClusterConfig, read_config
from core.errors import ExitCode, StartRefused
from core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
ONE_NODE = '[[nodes]]\nid = "n1"\naddress = "127.0.0.1:6333"\n'


def shoal(
    *arguments: str, folder: Path, environ: Mapping[str, str] | None = None, code: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder, with nothing of ours in the environment."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    start = ["-c", code] if code else ["-m", "shoal"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        env={**plain, "PYTHONPATH": str(ROOT), **(environ or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cluster.toml").write_text(ONE_NODE)
    return tmp_path


def test_help_loads_nothing_that_takes_long(tmp_path: Path) -> None:
    code = """
import sys, atexit
heavy = {"aiohttp", "asyncio", "numpy", "textual", "usearch", "uvloop", "ssl", "sqlite3", "agent", "msgspec"}
atexit.register(lambda: print("LOADED", sorted(heavy & set(sys.modules))))
sys.argv = ["shoal", "--help"]
import shoal
shoal.main()
"""
    done = shoal(folder=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    assert "Usage: shoal" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version(tmp_path: Path) -> None:
    assert shoal("--version", folder=tmp_path).stdout == f"shoal {VERSION}\n"


@pytest.mark.parametrize(
    "command",
    [[], ["agent"], ["config"], ["config", "check"], ["config", "show"], ["coordinator"], ["demo"], ["up"]],
)
def test_every_command_has_help(tmp_path: Path, command: list[str]) -> None:
    done = shoal(*command, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: shoal" in done.stdout
    assert len(done.stdout.strip().splitlines()) > 4


@pytest.mark.parametrize("arguments", [["agnt"], ["agent", "--nod", "n1"], ["config", "check", "--config"]])
def test_a_wrong_command_line_is_status_2_and_goes_to_stderr(
    tmp_path: Path, arguments: Sequence[str]
) -> None:
    done = shoal(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_says_that_a_good_file_is_good(folder: Path) -> None:
    done = shoal("config", "check", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cluster.toml: no mistakes. Cluster shoal: n1 at 127.0.0.1:6333\n"


def test_config_check_says_every_mistake_on_a_line_of_its_own(folder: Path) -> None:
    (folder / "cluster.toml").write_text(ONE_NODE + "weight = 0\n[agent]\nfronts = 0\n")
    done = shoal("config", "check", folder=folder, environ={"SHOAL_NICE": "x"})
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": found")[0] for line in done.stderr.splitlines()] == [
        "shoal: SHOAL_NICE",
        "shoal: cluster.toml:4: nodes[0].weight",
        "shoal: cluster.toml:6: agent.fronts",
    ]


def test_config_check_looks_for_the_files_that_are_named(folder: Path) -> None:
    (folder / "empty").touch()
    (folder / "full").write_text("key")
    (folder / "cluster.toml").write_text(
        '[cluster]\napi_key_file = "full"\nadmin_key_file = "empty"\nsecret_file = "gone"\n' + ONE_NODE
    )
    done = shoal("config", "check", folder=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"shoal: cluster.toml: cluster.admin_key_file: {folder / 'empty'} is empty",
        f"shoal: cluster.toml: cluster.secret_file: {folder / 'gone'}: No such file or directory",
    ]


def test_config_show_prints_a_file_that_means_the_same(folder: Path) -> None:
    done = shoal("config", "show", folder=folder, environ={"SHOAL_FRONTS": "3"})
    config = read_config(done.stdout, folder="/", environ={})
    assert config.agent.fronts == 3
    assert config.data_dir == str(folder / "data")


def test_the_config_is_looked_for_in_a_fixed_order(folder: Path) -> None:
    (folder / "by-variable.toml").write_text(ONE_NODE.replace("n1", "n2"))
    (folder / "by-option.toml").write_text(ONE_NODE.replace("n1", "n3"))
    environ = {"SHOAL_CONFIG": "by-variable.toml"}
    assert "n1 at" in shoal("config", "check", folder=folder).stdout
    assert "n2 at" in shoal("config", "check", folder=folder, environ=environ).stdout
    option = ["--config", "by-option.toml"]
    assert "n3 at" in shoal("config", "check", *option, folder=folder, environ=environ).stdout


def test_without_a_config_it_says_where_it_looked(tmp_path: Path) -> None:
    done = shoal("agent", folder=tmp_path)
    assert done.returncode == 2
    assert "looked for cluster.toml and /etc/shoal/cluster.toml" in done.stderr


@pytest.mark.parametrize(("text", "says"), [(b"\xff", "not UTF-8 at byte 0"), (b"a = ", "this is not TOML")])
def test_an_unreadable_config_is_told_in_words(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "cluster.toml").write_bytes(text)
    done = shoal("agent", folder=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_that_closes_early_ends_it_quietly(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "shoal", "config", "show"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.stderr == ""
    assert done.returncode == ExitCode.FAILED


class Agent:
    """Stands where the agent would: remembers what it was asked to run, ends as it was told."""

    def __init__(self, ends: int | BaseException = 0) -> None:
        self.ran: list[tuple[ClusterConfig, str]] = []
        self._ends = ends

    def __call__(self, config: ClusterConfig, node_id: str) -> int:
        self.ran.append((config, node_id))
        if isinstance(self._ends, BaseException):
            raise self._ends
        return self._ends


TWO_NODES = ONE_NODE + '[[nodes]]\nid = "n2"\naddress = "127.0.0.1:6433"\n'


@pytest.mark.parametrize(
    ("text", "arguments", "node"),
    [(ONE_NODE, [], "n1"), (TWO_NODES, ["--node", "n2"], "n2")],
)
def test_agent_runs_the_node_that_is_meant(
    tmp_path: Path, text: str, arguments: list[str], node: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    agent = Agent()
    assert console.cli.main.run(["agent", "--config", str(path), *arguments], agent) == 0
    assert [node_id for _, node_id in agent.ran] == [node]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "which node is this? Say --node with one of n1, n2"), (["--node", "n3"], "which has n1, n2")],
)
def test_agent_asks_which_node_is_meant(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(TWO_NODES)
    agent = Agent()
    assert console.cli.main.run(["agent", "--config", str(path), *arguments], agent) != 0
    assert says in capsys.readouterr().err
    assert agent.ran == []


@pytest.mark.parametrize(
    ("ends", "status"),
    [(0, 0), (1, 1), (StartRefused("a\nb"), ExitCode.REFUSED), (KeyboardInterrupt(), ExitCode.INTERRUPTED)],
)
def test_the_exit_status_is_the_agents_or_its_errors(
    tmp_path: Path, ends: int | BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(ONE_NODE)
    assert console.cli.main.run(["agent", "--config", str(path)], Agent(ends)) == status
    if isinstance(ends, StartRefused):
        assert capsys.readouterr().err == "shoal: a\nshoal: b\n"
