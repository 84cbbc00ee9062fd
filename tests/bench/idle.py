"""Benchmarks of an agent that does nothing: its memory, and how soon it is ready after a start."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.bench import subject
from tests.bench.table import Line, at_most
from tests.running import processes
from tests.running.agent import RunningAgent

MB = 1e6
STARTS = 3


def run(filled: Path, folder: Path, rows: int) -> list[Line]:
    """`filled`: the folder of an agent that holds the points already."""
    with RunningAgent(filled, agent={"fronts": 2}) as agent:
        again = [_start(agent) for _ in range(STARTS)]
        agent.start(within_s=60)
        subject.wait_green(agent)
        lines = _memory(agent, rows)
        agent.stop()
    with RunningAgent(folder / "empty", agent={"fronts": 2}) as agent:
        empty = [_start(agent) for _ in range(STARTS)]
    return [
        *lines,
        _ready(f"ready again with {rows:,} points", again, 1.5),
        _ready("an empty agent is ready", empty, 1.0),
    ]


def _start(agent: RunningAgent) -> float:
    agent.spawn()
    took_s = agent.wait_ready(within_s=60)
    agent.stop()
    return took_s


def _ready(name: str, starts: list[float], target_s: float) -> Line:
    how = f"median of {len(starts)}: " + ", ".join(f"{took:.2f}" for took in sorted(starts))
    return at_most(name, statistics.median(starts), target_s, how, unit="s")


def _memory(agent: RunningAgent, rows: int) -> list[Line]:
    """Anonymous memory after every front has searched, so that nothing is loaded only later."""
    rest = agent.rest()
    dim = rest.get(f"/collections/{subject.COLLECTION}").result["config"]["params"]["vectors"]["size"]
    body = {"query": [1.0] + [0.0] * (dim - 1), "with_payload": True}
    for _ in range(100):
        one = agent.rest()  # a new connection may meet another front
        assert one.post(f"/collections/{subject.COLLECTION}/points/query", body).result["points"]
        one.close()
    used = {
        role: [processes.anonymous_bytes(process) / MB for process in found]
        for role, found in processes.by_role(agent.tag).items()
        if found
    }
    total = sum(sum(of_role) for of_role in used.values())
    parts = "; ".join(f"{role} " + ", ".join(f"{mb:.0f}" for mb in found) for role, found in used.items())
    return [
        at_most(f"memory of a front, {rows:,} points", max(used["front"]), 100, parts, unit="MB"),
        at_most(
            f"memory of the agent with two fronts, {rows:,} points", total, 300, "anonymous, idle", unit="MB"
        ),
    ]
