"""A whole cluster on this machine: an agent for each node of the file and one coordinator, as children."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from console.up.child import Child
from console.up.leader import is_led
from core.config import ClusterConfig, NodeConfig
from core.errors import StartRefused

COORDINATOR = "coordinator"
_STOP_COORDINATOR_S = 10.0
_STOP_AGENTS_S = 50.0  # an agent itself gives its fronts 12 s and its store 30 s
_STOP_UNREADY_S = 3.0
_LOOK_S = 0.05
_LED_LOOK_S = 1.0
_NOTICE_BYTES_MAX = 4096


class LocalCluster:
    """Use it with `with`: its children end with the block, the coordinator first, so that no failover begins.

    To be used from the main thread. `config` must be networked, with an absolute data folder; `environ` is
    what the children get. `check` is called while it waits: what it raises ends the wait.
    """

    def __init__(
        self,
        config: ClusterConfig,
        path: Path,
        environ: Mapping[str, str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self._check = config, check
        self._ready = _Notices()
        ours = {
            name: value
            for name, value in environ.items()
            # Of a service manager that may have started us: its questions are not for the children.
            if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        }
        ours |= {"NOTIFY_SOCKET": self._ready.address, "SHOAL_AUTO_JOIN": "true"}
        if config.secret_file is not None:
            ours["SHOAL_SECRET_FILE"] = config.secret_file
        folder = Path(config.data_dir)
        folder.mkdir(parents=True, exist_ok=True)

        def child(name: str, *arguments: str) -> Child:
            return Child(name, [*arguments, "--config", str(path)], folder / f"{name}.log", ours)

        self.agents = {node.id: child(node.id, "agent", "--node", node.id) for node in config.nodes}
        self.coordinator = child(COORDINATOR, "coordinator", "--name", "up")

    @property
    def children(self) -> list[Child]:
        """All, in the order in which they are started."""
        return [*self.agents.values(), self.coordinator]

    def url(self, node: NodeConfig) -> str:
        return f"http{'s' if self.config.tls is not None else ''}://{node.address}"

    def is_ready(self, node: str) -> bool:
        """Whether its agent has said so since it was last started."""
        return self._ready.has(self.agents[node].pid)

    def start(self) -> None:
        for child in self.children:
            child.start()

    def wait_ready(self, *, within_s: float) -> None:
        """Until all agents serve. Raises StartRefused with the last words of who ends, or takes too long."""
        deadline_s = time.monotonic() + within_s
        while late := [agent for node, agent in self.agents.items() if not self.is_ready(node)]:
            self._check_running()
            if time.monotonic() > deadline_s:
                raise _too_slow(late[0], within_s)
            self.pause(_LOOK_S)

    def wait_led(self, *, within_s: float) -> None:
        """Until the coordinator, or another one, leads. Raises StartRefused likewise."""
        deadline_s = time.monotonic() + within_s
        while not asyncio.run(is_led(self.config, within_s=_LED_LOOK_S)):
            self._check()
            self._check_running()
            if time.monotonic() > deadline_s:
                raise _too_slow(self.coordinator, within_s)

    def pause(self, timeout_s: float) -> None:
        """Until something may have happened, or the timeout. Whoever keeps a cluster does little else."""
        self._check()
        self._ready.wait(timeout_s)

    def stop(self) -> bool:
        """Whether all that served ended by themselves and well."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # who presses Ctrl-C twice must not leave a node behind
        served = [child for node, child in self.agents.items() if child.is_running and self.is_ready(node)]
        _stop([self.coordinator], _STOP_COORDINATOR_S)
        # Who is not ready may wait for others that end, and has acknowledged nothing: no order is needed.
        _stop([child for child in self.agents.values() if child not in served], _STOP_UNREADY_S)
        _stop(served, _STOP_AGENTS_S)
        return all(child.status == 0 for child in served)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._ready.close()

    def _check_running(self) -> None:
        for child in self.children:
            # An agent that has ended keeps the others waiting: its words are those that help.
            if not child.is_running:
                raise StartRefused(
                    f"{child.name} ended with status {child.status} while the cluster started; it said:\n"
                    f"{child.last_words()}"
                )


def _too_slow(child: Child, within_s: float) -> StartRefused:
    return StartRefused(f"{child.name} was not ready within {within_s:g} s; it said:\n{child.last_words()}")


def _stop(children: list[Child], within_s: float) -> None:
    running = [child for child in children if child.is_running]
    for child in running:
        child.terminate()
    deadline_s = time.monotonic() + within_s
    for child in running:
        if not child.wait(max(0.0, deadline_s - time.monotonic())):
            child.kill()


class _Notices:
    """Where agents say that they are ready, as they would to systemd (sd_notify(3))."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind("")  # the kernel chooses an abstract name: no file to remove, no path too long
        self.address = "@" + self._socket.getsockname()[1:].decode("ascii")
        self._pids: set[int] = set()

    def has(self, pid: int | None) -> bool:
        self._take_all()
        return pid in self._pids

    def wait(self, timeout_s: float) -> None:
        """For something new, or the timeout. An agent whose notice is never taken would wait in the end."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.poll(timeout_s * 1000)
        self._take_all()

    def close(self) -> None:
        self._socket.close()

    def _take_all(self) -> None:
        while True:
            try:
                notice = self._socket.recv(_NOTICE_BYTES_MAX).decode(errors="replace")
            except BlockingIOError:
                return
            said = dict(line.split("=", 1) for line in notice.splitlines() if "=" in line)
            if said.get("READY") == "1" and said.get("MAINPID", "").isdecimal():
                self._pids.add(int(said["MAINPID"]))
