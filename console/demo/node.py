"""One node for the length of the demo: on a free port, in a folder of its own, never left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from console.demo.rest import Rest
from core.errors import StartRefused

_READY_WITHIN_S = 30.0
_STOP_WITHIN_S = 30.0
_LOG_LINES_SHOWN = 20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class DemoNode:
    """A node that is up."""

    host: str
    port: int
    folder: Path
    ready_after_s: float

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def running_node(*, keep: bool) -> Iterator[DemoNode]:
    """Starts an agent, waits until it is ready, stops it however the block ends. Raises StartRefused."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    try:
        port, peer_port = _free_ports(2)
        (folder / "cluster.toml").write_text(_cluster_toml(port, peer_port), encoding="utf-8")
        with open(folder / "agent.log", "wb") as log:
            begun_s = time.monotonic()
            agent = _spawn(folder, log.fileno())
            try:
                _wait_ready(agent, port, folder / "agent.log")
                yield DemoNode("127.0.0.1", port, folder, time.monotonic() - begun_s)
            finally:
                _stop(agent)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _cluster_toml(port: int, peer_port: int) -> str:
    return (
        '[cluster]\nname = "demo"\ndata_dir = "data"\n'
        f'[[nodes]]\nid = "n1"\naddress = "127.0.0.1:{port}"\npeer_address = "127.0.0.1:{peer_port}"\n'
    )


def _spawn(folder: Path, log: int) -> subprocess.Popen[bytes]:
    # What the user has set for a node of theirs is not meant for this one.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", "agent", "--config", "cluster.toml", "--node", "n1"],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,  # Ctrl-C is for us: we stop the node in order
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - one thread here, and it only makes one system call
    )


def _die_with_parent() -> None:
    """If the demo is killed outright, the kernel tells the agent to stop."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_ready(agent: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_WITHIN_S
    rest = Rest("127.0.0.1", port, timeout_s=2.0)
    try:
        while not rest.is_ready():
            status = agent.poll()
            if status is not None:
                raise StartRefused(
                    f"the node ended with status {status} while it started; it said:\n{_tail(log)}"
                )
            if time.monotonic() > deadline_s:
                raise StartRefused(
                    f"the node was not ready within {_READY_WITHIN_S:g} s; it said:\n{_tail(log)}"
                )
            time.sleep(0.02)
    finally:
        rest.close()


def _stop(agent: subprocess.Popen[bytes]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses Ctrl-C twice must not leave a node behind
    agent.terminate()
    try:
        agent.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES_SHOWN:]) or "(nothing)"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
