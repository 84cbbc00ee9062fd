"""How a process of an agent begins: it dies with its parent, and knows where the page and the store are.

`main` starts children with `spawn_arguments`; a child calls `enter` before anything else.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from dataclasses import dataclass

from core.config import ClusterConfig, NodeConfig, config_from_json

_PR_SET_PDEATHSIG = 1
_ORPHANED = 70  # EX_SOFTWARE: the parent is gone, nobody reads this status
SOCKET = "store.sock"
"""Relative to the data folder, which every child enters: longer paths do not fit a socket address."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a child is told: the cluster file as read by `main`, its node, and the inherited descriptors."""

    config: ClusterConfig
    node: NodeConfig
    data_dir: str
    page_fd: int
    life_fd: int
    """A pipe whose other end `main` holds: end of file means that `main` is gone."""
    place: int
    parent: int


def spawn_arguments(module: str, spec_json: str) -> list[str]:
    # -P: the data folder, where children run, must not be searched for modules.
    return [sys.executable, "-P", "-m", module, spec_json]


def spec_json(*, config_json: str, node: str, data_dir: str, page_fd: int, life_fd: int, place: int) -> str:
    return json.dumps(
        {
            "config": config_json,
            "node": node,
            "data_dir": data_dir,
            "page_fd": page_fd,
            "life_fd": life_fd,
            "place": place,
            "parent": os.getpid(),
        }
    )


def enter(argument: str) -> Spec:
    """Tie this process to its parent, enter the data folder, and return what it was told."""
    told = json.loads(argument)
    config = config_from_json(told["config"])
    spec = Spec(
        config=config,
        node=config.node(told["node"]),
        data_dir=told["data_dir"],
        page_fd=told["page_fd"],
        life_fd=told["life_fd"],
        place=told["place"],
        parent=told["parent"],
    )
    tie_to(spec.parent)
    os.chdir(spec.data_dir)
    return spec


def tie_to(parent: int) -> None:
    """Die when the process `parent` ends, or rather its thread that started this one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before prctl could tell
        os._exit(_ORPHANED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; `main` decides the order


def die_with_parent(spec: Spec, loop: asyncio.AbstractEventLoop) -> None:
    """End at once when `main` is gone, whatever killed it: a second writer must never be possible."""
    loop.add_reader(spec.life_fd, lambda: os._exit(_ORPHANED))
