"""`shoal up`: a cluster on this machine, kept running until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from console.cli.config_file import LoadedConfig, check_files
from console.up.child import Child
from console.up.cluster import LocalCluster
from console.up.secret import with_secret
from core.errors import ExitCode

_READY_WITHIN_S = 120.0
_LOOK_S = 0.1
_WAIT_S_MIN, _WAIT_S_MAX = 1.0, 30.0
_WELL_AFTER_S = 60.0
"""Who has run for this long before it died begins with the shortest wait again."""

Say = Callable[[str], None]


def run_up(loaded: LoadedConfig, *, say: Say, warn: Say) -> int:
    """Starts all, says so in one line, starts again what dies; returns the exit status.

    Raises StartRefused, with what it said, if one of them can't start at all; nothing is left running.
    """
    check_files(loaded)
    config = with_secret(loaded.config)
    stop = _Stop()
    with LocalCluster(config, loaded.path.absolute(), os.environ, stop.check) as cluster:
        try:
            _begin(cluster, say)
            _keep(cluster, warn)
        except _Asked:
            return ExitCode.OK if cluster.stop() else ExitCode.FAILED


class _Asked(Exception):
    """Somebody wants the end."""


class _Stop:
    """Remembers Ctrl-C and SIGTERM. An exception out of a handler can be lost, in a hook of fork say."""

    def __init__(self) -> None:
        self._is_asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def check(self) -> None:
        if self._is_asked:
            raise _Asked

    def _ask(self, _number: int, _frame: object) -> None:
        self._is_asked = True


def _begin(cluster: LocalCluster, say: Say) -> None:
    cluster.start()
    cluster.wait_ready(within_s=_READY_WITHIN_S)
    cluster.wait_led(within_s=_READY_WITHIN_S)
    config = cluster.config
    urls = ", ".join(f"{node.id} {cluster.url(node)}" for node in config.nodes)
    say(f"cluster {config.name} is ready: {urls} (Ctrl-C stops it; logs: {config.data_dir}/*.log)")


def _keep(cluster: LocalCluster, warn: Say) -> NoReturn:
    kept = [_Kept(child, warn) for child in cluster.children]
    while True:
        cluster.pause(_LOOK_S)
        now_s = time.monotonic()
        for one in kept:
            one.look(now_s)


class _Kept:
    """Starts a child again after its end: after 1, 2, 4 … 30 s, so that one that can't run costs little."""

    def __init__(self, child: Child, warn: Say) -> None:
        self._child, self._warn = child, warn
        self._wait_s = _WAIT_S_MIN
        self._started_s = time.monotonic()
        self._start_s: float | None = None

    def look(self, now_s: float) -> None:
        if self._child.is_running:
            return
        if self._start_s is None:
            if now_s - self._started_s > _WELL_AFTER_S:
                self._wait_s = _WAIT_S_MIN
            self._warn(
                f"{self._child.name} ended with status {self._child.status}: it is started again in "
                f"{self._wait_s:g} s; {self._child.log} tells why"
            )
            self._start_s = now_s + self._wait_s
            self._wait_s = min(_WAIT_S_MAX, 2 * self._wait_s)
        elif now_s >= self._start_s:
            self._start_s, self._started_s = None, now_s
            self._child.start()
