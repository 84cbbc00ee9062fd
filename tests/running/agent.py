"""One real agent in its own folder and on its own port: start, stop, kill, processes, log."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import tomli_w

from tests.running import processes
from tests.running.ports import PortPair
from tests.running.rest import Rest
from tests.running.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
NODE = "n1"


class RunningAgent:
    """`start` returns when /readyz says 200. Always `close` it (or use it in `with`)."""

    def __init__(
        self,
        folder: Path,
        *,
        agent: Mapping[str, Any] | None = None,
        cluster: Mapping[str, Any] | None = None,
        node: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        node_id: str = NODE,
        ports: PortPair | None = None,
    ) -> None:
        self.folder, self.node_id = folder, node_id
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tag = secrets.token_hex(8)
        self._ports = ports or PortPair()
        self._environment = dict(environment or {})
        self._prefix = list(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "agent.log"
        self.config_path = folder / "cluster.toml"
        self.write_config(agent=agent, cluster=cluster, node=node)

    def write_config(
        self,
        *,
        agent: Mapping[str, Any] | None = None,
        cluster: Mapping[str, Any] | None = None,
        node: Mapping[str, Any] | None = None,
    ) -> None:
        """Write cluster.toml; given keys replace the defaults."""
        tables: dict[str, Any] = {
            "cluster": {"name": "test", "data_dir": str(self.folder / "data"), **(cluster or {})},
            "nodes": [{"id": self.node_id, "address": f"127.0.0.1:{self.port}", **(node or {})}],
        }
        if agent:
            tables["agent"] = dict(agent)
        self.config_path.write_text(tomli_w.dumps(tables))

    @property
    def port(self) -> int:
        return self._ports.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data" / self.node_id

    @property
    def pid(self) -> int:
        assert self._process is not None, "the agent was never started"
        return self._process.pid

    def rest(self, *, api_key: str | None = None, timeout_s: float = 30.0) -> Rest:
        return Rest(self.port, api_key=api_key, timeout_s=timeout_s)

    def spawn(self) -> None:
        """Start the process and return at once."""
        assert not self.is_running(), "the agent runs already"
        shoal = [sys.executable, "-m", "shoal", "agent", "--config", str(self.config_path), "--node"]
        environment = {**os.environ, **self._environment, processes.TAG: self.tag}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, *shoal, self.node_id],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self, within_s: float = 60.0) -> RunningAgent:
        self.spawn()
        self.wait_ready(within_s)
        return self

    def wait_ready(self, within_s: float = 60.0) -> float:
        """Wait for 200 from /readyz; returns the seconds that it took. Fails at once if the agent ends."""
        began_s = time.monotonic()

        def ready_or_ended() -> bool:
            return self.exit_code() is not None or self.is_ready()

        wait_until(ready_or_ended, within_s, f"readyz of {self.url}")
        assert self.exit_code() is None, f"the agent ended with {self.exit_code()}:\n{self.log_tail()}"
        return time.monotonic() - began_s

    def is_ready(self) -> bool:
        try:
            return self.rest(timeout_s=2.0).get("/readyz").status == 200
        except OSError:
            return False

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def exit_code(self) -> int | None:
        """None while it runs (or was never started); negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def wait_ended(self, within_s: float = 15.0) -> int:
        """Wait for the first process, and for all that it started; returns the exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the agent still runs after {within_s} s:\n{self.log_tail()}") from None
        wait_until(lambda: not self.processes(), within_s, "the end of the agent's other processes")
        return code

    def stop(self, within_s: float = 15.0) -> int:
        """SIGTERM, as systemd does; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait_ended(within_s)

    def kill_role(self, role: str) -> list[psutil.Process]:
        """kill -9 of every process of a role; "group" means all at once. Returns those that were hit."""
        if role == "group":
            victims = self.processes()
        else:
            victims = processes.by_role(self.tag)[role]
        processes.kill(victims)
        return victims

    def processes(self) -> list[psutil.Process]:
        return processes.tagged(self.tag)

    def role(self, role: str) -> list[psutil.Process]:
        return processes.by_role(self.tag)[role]

    def log_tail(self, lines: int = 60) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End whatever is left, in whatever state it is."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        processes.kill(self.processes())
        self._ports.release()

    def __enter__(self) -> RunningAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
