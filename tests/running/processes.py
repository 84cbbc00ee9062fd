"""The processes of one agent: found by a tag in their environment, told apart by their command lines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil

# Inherited by every child, also by one whose parent is dead: so an orphan can be found.
TAG = "RUNNING_AGENT_TAG"
ROLES = ("main", "store", "front", "builder")


def tagged(tag: str) -> list[psutil.Process]:
    """All living processes that carry the tag (zombies are dead)."""
    return list(_tagged(tag))


def _tagged(tag: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG) == tag and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue  # ended while we looked, or not ours


def role_of(process: psutil.Process) -> str:
    """main, store, front, builder, or `other` (short-lived helpers such as a parser)."""
    line = " ".join(process.cmdline())
    for role in ("store", "front", "builder"):
        if f"agent.{role}" in line or f"agent/{role}" in line:
            return role
    return "main" if "agent" in line and "--config" in line else "other"


def by_role(tag: str) -> dict[str, list[psutil.Process]]:
    """role → its processes; roles without a process have an empty list."""
    found: dict[str, list[psutil.Process]] = {role: [] for role in (*ROLES, "other")}
    for process in tagged(tag):
        try:
            found[role_of(process)].append(process)
        except psutil.Error:
            continue
    return found


def kill(processes: list[psutil.Process], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to each by its id; those that are gone already are fine."""
    for process in processes:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue


def anonymous_bytes(process: psutil.Process) -> int:
    """Memory that is the process's own and not a file's: what the kernel can't take back."""
    with open(f"/proc/{process.pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    return 0
