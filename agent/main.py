"""The first process of an agent: starts store, fronts and builder, in order, and keeps them one unit.

It imports neither numpy nor aiohttp, starts its children from its main thread (PR_SET_PDEATHSIG
fires when the *thread* that spawned ends) and does nothing else that could hang.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent import child, machine, systemd
from agent.page import BUILDER, FIRST_FRONT, MAIN, STORE, NodeFlag, Page
from core.config import ClusterConfig, NodeConfig, config_to_json
from core.config_values import host_port
from core.errors import ShoalError, StartRefused
from core.version import VERSION
from net.logs import Log, log_to
from net.trust import is_networked

TICK_S = 0.25
FRONT_HUNG_S = 2.0
"""A front that has not ticked for this long is killed: its share of the connections hangs with it."""
BUILDER_HUNG_S = 60.0
"""At nice 19 it may not run for a while; while it hangs nothing is indexed."""
STORE_HUNG_S = 20.0
"""No WATCHDOG=1 beyond this: systemd then restarts the unit."""
START_TIMEOUT_S = 120.0
FRONT_STOP_S = 12.0
STORE_STOP_S = 30.0
_BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Process:
    """A child as `main` sees it."""

    name: str
    module: str
    place: int
    popen: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    failures: int = 0
    start_again_s: float | None = None
    pidfd: int = field(default=-1)

    @property
    def pid(self) -> int:
        return self.popen.pid if self.popen is not None else 0


class Unit:
    """Store, fronts and builder of one node. `run` returns the exit status."""

    def __init__(self, config: ClusterConfig, node: NodeConfig, log: Log) -> None:
        self._config, self._node, self._log = config, node, log
        self._data_dir = os.path.abspath(config.data_folder(node.id))
        self._page = Page.make()
        self._life_r, self._life_w = os.pipe()
        os.set_inheritable(self._life_r, True)
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stop_signal: int | None = None
        self._store = Process("store", "agent.store", STORE)
        self._builder = Process("builder", "agent.builder", BUILDER)
        fronts = machine.front_count(config.agent.fronts)
        self._fronts = [Process(f"front-{n}", "agent.front", FIRST_FRONT + n) for n in range(fronts)]

    def run(self) -> int:
        for warning in machine.check(self._data_dir, self._config.agent):
            self._log.warning("agent.start_warning", text=warning)
        host, port = host_port(self._node.listen)
        _check_port_free(host, port)
        signal.set_wakeup_fd(self._wake_w)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            for process in (self._store, *self._fronts):
                self._spawn(process)
            if not self._wait_ready():
                return self._shut_down()
            self._announce()
            return self._watch()
        finally:
            self._kill_all()

    def _all(self) -> list[Process]:
        return [self._store, self._builder, *self._fronts]

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:  # certificates and key files are looked at again
            for front in self._fronts:
                _signal(front, signal.SIGHUP)
        else:
            self._stop_signal = number

    def _spawn(self, process: Process) -> None:
        self._page.forget_process(process.place)
        spec = child.spec_json(
            config_json=config_to_json(self._config).decode(),
            node=self._node.id,
            data_dir=self._data_dir,
            page_fd=self._page.fd,
            life_fd=self._life_r,
            place=process.place,
        )
        process.popen = subprocess.Popen(
            child.spawn_arguments(process.module, spec),
            pass_fds=(self._page.fd, self._life_r),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=_environment(),
        )
        process.started_s = time.monotonic()
        process.start_again_s = None
        process.pidfd = os.pidfd_open(process.popen.pid)
        self._log.debug("agent.process_started", process=process.name, pid=process.pid)

    def _wait_ready(self) -> bool:
        """True when store and fronts answer; False when asked to stop before. Raises StartRefused."""
        deadline = time.monotonic() + START_TIMEOUT_S
        # With other nodes it waits for them, who may not be started yet; its log says for whom.
        while time.monotonic() < deadline or is_networked(self._config):
            if self._stop_signal is not None:
                return False
            for process in (self._store, *self._fronts):
                self._reap_at_start(process)
            ready = self._page.node().flags & NodeFlag.READY
            if ready and all(self._page.process(front.place).pid for front in self._fronts):
                return True
            self._page.tick(MAIN)
            self._poll(0.01)
        raise StartRefused(f"node {self._node.id} was not ready within {START_TIMEOUT_S:g} s; see its log")

    def _reap_at_start(self, process: Process) -> None:
        status = process.popen.poll() if process.popen is not None else None
        if status is None:
            return
        # The child has said why on stderr; here only what follows from it.
        raise StartRefused(f"the {process.name} process ended with status {status} while starting; see above")

    def _announce(self) -> None:
        url = machine.url(self._node, tls=self._config.tls is not None)
        systemd.notify(f"READY=1\nSTATUS=serving at {url}\nMAINPID={os.getpid()}")
        self._log.info("agent.ready", node=self._node.id, url=url, version=VERSION, pid=os.getpid())
        key = ' -H "api-key: $KEY"' if self._config.api_key_file else ""
        sys.stdout.write(f"shoal {VERSION}: node {self._node.id} is ready at {url}\n")
        sys.stdout.write(f"  try: curl{key} {url}/collections\n")
        sys.stdout.flush()

    def _watch(self) -> int:
        watchdog_s = systemd.watchdog_interval_s()
        next_watchdog = 0.0
        while self._stop_signal is None:
            self._page.tick(MAIN)
            self._poll(TICK_S)
            if self._store.popen is not None and (status := self._store.popen.poll()) is not None:
                self._log.error("agent.store_died", status=status)
                return 1  # all end with the store: a new one must find every file released
            now = time.monotonic()
            for process in (self._builder, *self._fronts):
                self._keep(process, now)
            self._start_builder(now)
            if watchdog_s is not None and now >= next_watchdog and self._healthy(now):
                systemd.notify("WATCHDOG=1")
                next_watchdog = now + watchdog_s / 3
        return self._shut_down()

    def _start_builder(self, now: float) -> None:
        """The builder ends when it has nothing to do; it comes back when the store wants it."""
        builder = self._builder
        wanted = self._page.node().flags & NodeFlag.BUILD_WANTED
        if wanted and builder.popen is None and now >= (builder.start_again_s or 0.0):
            self._spawn(builder)

    def _keep(self, process: Process, now: float) -> None:
        """Start a dead front again, and kill a front or builder that hangs."""
        if process.popen is None:
            if process is not self._builder and now >= (process.start_again_s or 0.0):
                self._spawn(process)
            return
        status = process.popen.poll()
        if status is None:
            hung_s = BUILDER_HUNG_S if process is self._builder else FRONT_HUNG_S
            if self._silent_s(process, now) > hung_s:
                event = "agent.builder_hung" if process is self._builder else "agent.front_hung"
                self._log.error(event, process=process.name, pid=process.pid)
                process.popen.kill()
            return
        os.close(process.pidfd)
        process.popen = None
        process.failures = 0 if now - process.started_s > 10 or status == 0 else process.failures + 1
        wait_s = _BACKOFF_S[min(process.failures, len(_BACKOFF_S) - 1)]
        process.start_again_s = now + wait_s
        if process is self._builder and status == 0:
            return  # it had nothing left to do
        self._log.warning("agent.process_died", process=process.name, status=status, again_in_s=wait_s)

    def _silent_s(self, process: Process, now: float) -> float:
        ticked = self._page.process(process.place).tick_ns / 1e9
        return now - max(ticked, process.started_s + (0 if ticked else 30.0))

    def _healthy(self, now: float) -> bool:
        fronts = all(self._silent_s(front, now) < STORE_HUNG_S for front in self._fronts if front.popen)
        return fronts and self._silent_s(self._store, now) < STORE_HUNG_S

    def _shut_down(self) -> int:
        """Fronts first (they finish what runs), then the store (it flushes); the builder holds nothing."""
        systemd.notify("STOPPING=1")
        self._log.info("agent.stopping", node=self._node.id)
        for process in self._fronts:
            _signal(process, signal.SIGTERM)
        clean = self._wait_ended(lambda: self._fronts, FRONT_STOP_S)
        _signal(self._builder, signal.SIGKILL)
        _signal(self._store, signal.SIGTERM)
        clean = self._wait_ended(lambda: [self._store], STORE_STOP_S) and clean
        status = self._store.popen.returncode if self._store.popen is not None else 1
        self._log.info("agent.stopped", node=self._node.id, clean=clean and status == 0)
        return 0 if clean and status == 0 else 1

    def _wait_ended(self, processes: Callable[[], list[Process]], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while any(p.popen is not None and p.popen.poll() is None for p in processes()):
            if time.monotonic() > deadline:
                return False
            self._page.tick(MAIN)
            self._poll(0.05)
        return True

    def _poll(self, timeout_s: float) -> None:
        """Sleep until a signal, a child's end, or the timeout."""
        poller = select.poll()
        poller.register(self._wake_r, select.POLLIN)
        for process in self._all():
            if process.popen is not None and process.popen.returncode is None:
                poller.register(process.pidfd, select.POLLIN)
        if any(fd == self._wake_r for fd, _ in poller.poll(timeout_s * 1000)):
            os.read(self._wake_r, 512)

    def _kill_all(self) -> None:
        for process in self._all():
            _signal(process, signal.SIGKILL)
        for process in self._all():
            if process.popen is not None:
                process.popen.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    if process.popen is not None and process.popen.poll() is None:
        process.popen.send_signal(number)


def _environment() -> dict[str, str]:
    # One BLAS thread: two wait for each other beside neighbours (a 4,000-row product 8 ms, not .15).
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _check_port_free(host: str, port: int) -> None:
    """Fronts share the port by SO_REUSEPORT, which would also share it with a stranger: look first."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise StartRefused(
                f"cannot listen on {host}:{port}: {problem.strerror}; is another agent running? (ss -ltnp)"
            ) from None


def run(config: ClusterConfig, node_id: str) -> int:
    """Run one node in the foreground until SIGTERM or SIGINT; returns the exit status.

    Raises StartRefused, and ConfigInvalid for a node that the file does not name.
    """
    node = config.node(node_id)
    log = log_to(sys.stderr, config.agent.log_format, config.agent.log_level).bind(
        node=node_id, process="main"
    )
    machine.refuse_foreign_system()
    if len(config.nodes) > 1 and not is_networked(config):
        # Each would begin a cluster of its own, and a client would find different data at each.
        raise StartRefused(
            f"cluster.toml names {len(config.nodes)} nodes, but no secret_file by which they know each other"
        )
    try:
        return Unit(config, node, log).run()
    except ShoalError as error:
        log.error("agent.start_failed", code=error.code, text=str(error))
        raise
