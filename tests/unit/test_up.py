"""`shoal up` as a person runs it: one line when all is ready, repairs told, an end in order, nothing left."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from console.up.child import Child
from console.up.main import _Kept
from console.up.secret import with_secret
from core.config import read_config
from core.errors import ExitCode, StartRefused
from tests.running import processes
from tests.running.ports import PortPair
from tests.running.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
READY_S = 50.0


@dataclass
class Up:
    """A folder with a cluster.toml of three nodes, and `shoal up` in it."""

    folder: Path
    ports: list[int]
    tag: str
    process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal", "up"],
            cwd=self.folder,
            env={**plain, "PYTHONPATH": str(ROOT), processes.TAG: self.tag},
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "out").open("w"),
            stderr=(self.folder / "err").open("w"),
            text=True,
        )
        return self.process

    def said(self, stream: str) -> str:
        return (self.folder / stream).read_text()

    def main_of(self, name: str) -> psutil.Process:
        words = [name] if name == "coordinator" else ["--node", name]
        assert self.process is not None
        return next(p for p in psutil.Process(self.process.pid).children() if set(words) <= {*p.cmdline()})


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with ExitStack() as stack:
        ports = [stack.enter_context(PortPair()).port for _ in range(3)]
        nodes = (f'[[nodes]]\nid = "n{n}"\naddress = "127.0.0.1:{port}"\n' for n, port in enumerate(ports, 1))
        (tmp_path / "cluster.toml").write_text('[cluster]\nname = "lab"\n' + "".join(nodes))
        one = Up(tmp_path, ports, secrets.token_hex(8))
        yield one
        processes.kill(processes.tagged(one.tag))
        if one.process is not None:
            one.process.wait()


def status_of(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.timeout(150)
def test_all_run_what_dies_is_started_again_and_all_end_in_order(up: Up) -> None:
    process = up.start()
    out = wait_until(lambda: up.said("out") or process.poll() is not None, READY_S) and up.said("out")
    urls = ", ".join(f"n{n} http://127.0.0.1:{port}" for n, port in enumerate(up.ports, 1))
    data = up.folder / "data"
    assert out == f"cluster lab is ready: {urls} (Ctrl-C stops it; logs: {data}/*.log)\n", up.said("err")
    assert [status_of(port, "/readyz") for port in up.ports] == [200, 200, 200]
    assert (data / "cluster.secret").stat().st_mode & 0o777 == 0o600

    kill_and_see_it_again(up, "n2")
    kill_and_see_it_again(up, "coordinator")
    wait_until(lambda: status_of(up.ports[1], "/readyz") == 200, READY_S)

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # who presses twice leaves nothing behind either
    assert process.wait(60) == ExitCode.OK, up.said("err")
    assert processes.tagged(up.tag) == []
    last = [(data / f"n{n}.log").read_text().splitlines()[-1] for n in (1, 2, 3)]
    assert all("event=agent.stopped" in line and "clean=true" in line for line in last), last
    assert up.said("out") == out


def kill_and_see_it_again(up: Up, name: str) -> None:
    dead = up.main_of(name)
    dead.kill()
    log = up.folder / "data" / f"{name}.log"
    told = f"shoal: {name} ended with status -9: it is started again in 1 s; {log} tells why\n"
    wait_until(lambda: told in up.said("err"), 10)
    wait_until(lambda: up.main_of(name).pid != dead.pid, 10)


@pytest.mark.timeout(100)
def test_a_cluster_is_stopped_while_it_starts_and_ends_with_its_parent(up: Up) -> None:
    process = up.start()
    wait_until(lambda: len(processes.tagged(up.tag)) > 4, 30)
    process.terminate()
    assert process.wait(40) == ExitCode.OK, up.said("err")
    assert processes.tagged(up.tag) == []

    process = up.start()
    wait_until(lambda: len(processes.tagged(up.tag)) > 4, 30)
    process.kill()
    process.wait()
    wait_until(lambda: not processes.tagged(up.tag), 50)
    assert up.said("out") == ""


def test_what_keeps_a_node_from_starting_is_told_and_the_others_are_stopped(up: Up) -> None:
    (up.folder / "data").mkdir()
    (up.folder / "data" / "n2").write_text("no folder")
    assert up.start().wait(50) == ExitCode.REFUSED
    err = up.said("err")
    assert "shoal: n2 ended with status " in err
    assert "n2" in err.split("it said:\n")[1]
    assert "Traceback" not in err
    assert processes.tagged(up.tag) == []


def test_a_secret_is_made_once_and_only_where_nobody_else_can_reach_the_nodes(tmp_path: Path) -> None:
    text = '[[nodes]]\nid = "n1"\naddress = "127.0.0.1:6333"\n[agent]\ninsecure = true\n'
    config = read_config(text, folder=str(tmp_path), environ={})
    first = with_secret(config)
    assert first.secret_file == str(tmp_path / "data" / "cluster.secret")
    made = Path(first.secret_file).read_text()
    assert len(made.strip()) == 64
    assert with_secret(config) == first
    assert Path(first.secret_file).read_text() == made
    assert with_secret(first) is first

    for address in ('address = "10.0.0.1:6333"', 'address = "127.0.0.1:6333"\nlisten = "0.0.0.0:6333"'):
        open_text = text.replace('address = "127.0.0.1:6333"', address)
        with pytest.raises(StartRefused, match="name a secret_file under"):
            with_secret(read_config(open_text, folder=str(tmp_path / "other"), environ={}))
    assert not (tmp_path / "other").exists()


def test_who_dies_at_once_is_started_ever_later(tmp_path: Path) -> None:
    child = Child("n1", ["--version"], tmp_path / "n1.log", {**os.environ, "PYTHONPATH": str(ROOT)})
    told: list[str] = []
    kept = _Kept(child, told.append)
    child.start()
    now_s, waits_s = 0.0, []
    for _ in range(7):
        assert child.wait(20)
        kept.look(now_s)
        waits_s.append(float(told[-1].split("again in ")[1].split(" s;")[0]))
        kept.look(now_s + waits_s[-1] - 0.1)
        assert child.status == 0, "not before its time"
        pid = child.pid
        now_s += waits_s[-1]
        kept.look(now_s)
        assert child.pid != pid
    child.wait(20)
    assert waits_s == [1, 2, 4, 8, 16, 30, 30]
    assert child.last_words().startswith("shoal ")
    assert (tmp_path / "n1.log").read_text().count("shoal ") == 8
