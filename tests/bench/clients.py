"""The load clients, in C and in their own processes: wrk, and schedule.c, compiled on the spot."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load client reports. `failures`: answers that were not 200; `broken`: connections lost."""

    requests: int
    failures: int
    broken: int
    seconds: float
    per_s: float
    p50_ms: float
    p99_ms: float


class LoadFailed(AssertionError):
    """The server refused or broke some of the load: the figures would be worthless."""


def compile_client(folder: Path) -> Path:
    """Our client as a program in `folder`."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the benchmarks need a C compiler: scripts/install-test-tools installs one")
    program = folder / "schedule"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, HERE / "schedule.c"], check=True)
    return program


def http_request(method: str, path: str, body: bytes = b"") -> bytes:
    """A whole request, as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if method != "GET":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def write_requests(path: Path, requests: Iterable[bytes]) -> Path:
    """The file that schedule.c reads."""
    with path.open("wb") as file:
        for request in requests:
            file.write(struct.pack("<I", len(request)))
            file.write(request)
    return path


def _measured(output: str, *, allow_failures: bool) -> Measured:
    found = json.loads(output.strip().splitlines()[-1])
    measured = Measured(**{field: found[field] for field in Measured.__slots__})
    if (measured.failures or measured.broken) and not allow_failures:
        raise LoadFailed(f"{measured.failures} answers were not 200, {measured.broken} connections broke")
    return measured


class OurClient:
    """schedule.c. `run` waits for the end; `spawn` and `collect` do the same in two steps."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def spawn(
        self,
        port: int,
        requests: Path,
        *,
        connections: int = 1,
        seconds: float | None = None,
        rate: float | None = None,
        once: bool = False,
        acks: Path | None = None,
    ) -> subprocess.Popen[str]:
        command: list[str | Path] = [self._program, "--port", str(port), "--requests", requests]
        command += ["--connections", str(connections)]
        command += ["--seconds", str(seconds)] if seconds is not None else []
        command += ["--rate", str(rate)] if rate is not None else []
        command += ["--once"] if once else []
        command += ["--acks", acks] if acks is not None else []
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @classmethod
    def stop(cls, process: subprocess.Popen[str], *, allow_failures: bool = False) -> Measured:
        """End it early and take its report."""
        process.terminate()
        return cls.collect(process, allow_failures=allow_failures)

    @staticmethod
    def collect(process: subprocess.Popen[str], *, allow_failures: bool = False) -> Measured:
        output, _ = process.communicate()
        if process.returncode != 0:
            raise LoadFailed(f"the load client ended with {process.returncode}")
        return _measured(output, allow_failures=allow_failures)

    def run(
        self,
        port: int,
        requests: Path,
        *,
        connections: int = 1,
        seconds: float | None = None,
        rate: float | None = None,
        once: bool = False,
        acks: Path | None = None,
    ) -> Measured:
        process = self.spawn(
            port, requests, connections=connections, seconds=seconds, rate=rate, once=once, acks=acks
        )
        return self.collect(process)


def wrk(port: int, path: str, bodies: Path, *, connections: int, seconds: float) -> Measured:
    """wrk on one thread with the bodies of a file, one a line, in turn."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("the benchmarks need wrk: scripts/install-test-tools installs it")
    command: Sequence[str] = [
        program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s",
        "-s", str(HERE / "search.lua"), f"http://127.0.0.1:{port}", "--", str(bodies), path,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return _measured(done.stdout, allow_failures=False)
