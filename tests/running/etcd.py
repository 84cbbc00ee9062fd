"""A real etcd server in a folder of its own: started, killed, stopped, with or without TLS and users."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.running.ports import PortPair
from tests.running.waiting import wait_until

INSTALL = Path(__file__).parents[2] / "scripts" / "install-etcd"


@dataclass(frozen=True)
class Files:
    """PEM files of a server's TLS."""

    cert: Path
    key: Path
    ca: Path


def etcd_binary() -> str:
    """Installs etcd if need be. Where that can't be done the test is skipped, in CI it fails."""
    done = subprocess.run([INSTALL], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    reason = f"no etcd: {done.stderr.strip()[-500:]}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class RunningEtcd:
    """One server, on loopback. Use as a context manager."""

    def __init__(self, folder: Path, *, tls: Files | None = None) -> None:
        self._folder = folder
        self._tls = tls
        self._ports = PortPair()
        self._binary = etcd_binary()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._ports.port}"

    def __enter__(self) -> RunningEtcd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._ports.release()

    def start(self) -> RunningEtcd:
        peer = f"http://127.0.0.1:{self._ports.peer_port}"
        options = {
            "--data-dir": str(self._folder / "data"),
            "--name": "e1",
            "--listen-client-urls": self.url,
            "--advertise-client-urls": self.url,
            "--listen-peer-urls": peer,
            "--initial-advertise-peer-urls": peer,
            "--initial-cluster": f"e1={peer}",
            "--log-level": "error",
        }
        if self._tls:
            options |= {"--cert-file": str(self._tls.cert), "--key-file": str(self._tls.key)}
        self._folder.mkdir(exist_ok=True)
        with open(self._folder / "etcd.log", "ab") as log:
            command = [self._binary, *(part for option in options.items() for part in option)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._is_healthy, within_s=20)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: connecting to it still succeeds."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _is_healthy(self) -> bool:
        """It listens, and leads itself."""
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "etcd.log").read_text()
        trusting = ssl._create_unverified_context() if self._tls else None
        with urllib.request.urlopen(f"{self.url}/health", timeout=2, context=trusting) as answer:
            return json.load(answer)["health"] == "true"
