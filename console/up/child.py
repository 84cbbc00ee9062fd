"""A `shoal` process that another one has started: tied to it, its output in a file, its end seen at once."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_ORPHANED = 70  # EX_SOFTWARE: the parent is gone, nobody reads this status
_ENDING = (signal.SIGINT, signal.SIGTERM)
_LINES_SHOWN = 20
_LOG_READ_BYTES = 64 << 10


class Child:
    """May be started again after its end. To be started from the main thread: it ends with that one."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        self._arguments, self._environ = list(arguments), dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    @property
    def pid(self) -> int | None:
        """None before the first start. It stays when the child has ended."""
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The last exit status, negative for a signal; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        with open(self.log, "ab") as log, _no_interruption():
            self._log_begin = log.tell()
            self._process = subprocess.Popen(
                # -P: the folder where this runs must not be searched for modules.
                [sys.executable, "-P", "-m", "shoal", *self._arguments],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for the parent, which ends its children in order
                preexec_fn=_tie(),  # noqa: PLW1509 - a few system calls, and no other thread here
            )

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """As a power cut would: this process and all of its own, in one instant. Returns when it is gone."""
        if self._process is not None and self.is_running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended by then."""
        try:
            if self._process is not None:
                self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self) -> str:
        """The end of what it said since it was last started."""
        with open(self.log, "rb") as log:
            log.seek(max(self._log_begin, log.seek(0, os.SEEK_END) - _LOG_READ_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_LINES_SHOWN:]) or "(nothing)"


@contextmanager
def _no_interruption() -> Iterator[None]:
    """An exception out of a handler of signals could be lost, or leave a child that nobody knows."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tie() -> Callable[[], None]:
    """What the child does before it becomes `shoal`: it asks for SIGTERM at the end of its parent."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before prctl could tell
            os._exit(_ORPHANED)
        for number in _ENDING:  # ignored ones would stay so
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    return tie
