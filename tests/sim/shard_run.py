"""Run the shard log's simulation: python -m tests.sim.shard_run [first seed] [seeds], or --seed N.

A failing seed is run again with fewer of its faults, as long as it fails; what is left is printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

from core.cluster import Shard
from core.errors import ShoalError
from core.replication.effects import Consistency
from tests.sim.shard_actors import Client, Coordinator
from tests.sim.shard_node import Node
from tests.sim.shard_world import NODES, Violation, World

STEPS = 3000
CALM_STEPS = 12_000
FAULT_EVERY_S = 0.01
SHRINK_RUNS = 150
TRACE_LINES = 120


@dataclass(frozen=True)
class Result:
    seed: int
    failure: str | None
    steps: int
    seconds: float
    """Simulated."""
    faults: int
    finished: Counter[str]


def make_world(seed: int, *, skip: frozenset[int] = frozenset(), trace: list[str] | None = None) -> World:
    world = World(seed, skip=skip, trace=trace)
    members = NODES[: world.rates.members]
    nodes = tuple(Node(world, name).name for name in NODES)
    in_sync = nodes[: len(members)]
    world.record = Shard(
        number=0,
        first_hash=0,
        last_hash=(1 << 64) - 1,
        primary=in_sync[0],
        in_sync=in_sync,
        learners=nodes[len(members) :],
        replicas=dict.fromkeys(nodes, 1),
        history=1,
    )
    world.records.append(world.record)
    return world


def _make_faults(world: World, rng: random.Random) -> None:
    """Once in a while: crashes, cuts, lost disks."""
    happens = world.faults.happens
    everybody = sorted(world.endpoints)
    name = rng.choice(NODES)
    node, other = world.nodes[name], rng.choice(everybody)
    primary = world.nodes[world.record.primary]
    if happens("crash"):
        # The primary restarts in its own term, often.
        victim = primary if rng.random() < 0.5 else node
        lost = rng.random() < 0.3 and world.may_lose(victim.name)
        victim.crash(lose_disk=lost and (happens("lose_disk") or happens("damage")))
    if happens("cut"):
        cut = {(name, other), (other, name)} if rng.random() < 0.5 else {(name, other)}
        world.cuts |= cut
        world.at(world.soon(0.1), world.cuts.difference_update, cut)
    if happens("split"):  # the old primary and its clients here, the leader and the others there
        here = set(rng.sample(everybody, rng.randint(1, len(everybody) - 1)))
        if rng.random() < 0.5:
            here = {world.record.primary, *(e for e in everybody if e[0] == "c" and rng.random() < 0.6)}
        cut = {pair for e in everybody for h in here if e not in here for pair in ((e, h), (h, e))}
        world.cuts |= cut
        world.at(world.soon(rng.choice((0.1, 0.6))), world.cuts.difference_update, cut)
    if happens("isolate"):
        world.isolated.add(name)
        world.at(world.soon(0.1), world.isolated.discard, name)
    if world.faults.enabled:
        world.at(FAULT_EVERY_S, _make_faults, world, rng)


def run(seed: int, *, skip: frozenset[int] = frozenset(), trace: list[str] | None = None) -> Result:
    world = make_world(seed, skip=skip, trace=trace)
    failure: str | None = None
    try:
        coordinators = [Coordinator(world, "l1"), Coordinator(world, "l2")]
        clients = [Client(world, i) for i in range(world.rates.clients)]
        world.at(FAULT_EVERY_S, _make_faults, world, random.Random(seed + 77))
        world.run(STEPS)
        _calm(world, coordinators, clients)
    except (Violation, ShoalError, AssertionError, LookupError) as error:
        failure = f"{type(error).__name__}: {error}"
    return Result(seed, failure, world.steps, world.now_s, world.faults.happened, Counter(world.finished))


def _calm(world: World, coordinators: list[Coordinator], clients: list[Client]) -> None:
    """All heals, but as many as the fence allows stay dead. Then the shard must work, and agree."""
    world.note("CALM")
    world.faults.enabled = False
    world.cuts.clear()
    world.isolated.clear()
    coordinators[1].stopped = True
    leader = coordinators[0]
    leader.calm = True
    world.leader_term += 1
    leader.term = world.leader_term if world.rates.leaders_fenced else 1
    leader.attempt = None
    for client in clients:
        client.stopped = True
    for node in world.nodes.values():
        if world.rng.random() < 0.3 and world.may_lose(node.name):
            node.dead = True
            node.crash()
        elif node.replica is None:
            node.start()
    client = clients[0]
    client.stopped, client.calm = False, True
    client.call += 1
    client.begin("write", Consistency.QUORUM)
    world.run(CALM_STEPS, lambda: client.stopped)
    if not client.stopped:
        raise Violation(f"not live: a {client._what} does not finish; {world.record}")
    world.run(CALM_STEPS, lambda: _are_level(world))
    if not _are_level(world):
        behind = {n.name: n.contents.position for n in world.nodes.values() if n.replica}
        raise Violation(f"not level: {behind}, committed {len(world.committed.entries)}; {world.record}")


def _are_level(world: World) -> bool:
    """Each replica that lives has applied all; that the contents are equal is checked with each apply."""
    end = len(world.committed.entries)
    record = world.record
    return all(
        n.contents.position.seq == end
        for n in world.nodes.values()
        if n.replica is not None and record.replicas.get(n.name) == n.disk.identity.incarnation
    )


def shrink(result: Result) -> frozenset[int]:
    """Which faults can be left out so that it still fails, tried by halves, then by less."""
    skip: frozenset[int] = frozenset()
    size, runs = max(result.faults // 2, 1), 0
    while size >= 1 and runs < SHRINK_RUNS:
        for start in range(0, result.faults, size):
            more = skip | frozenset(range(start, start + size))
            if more != skip and runs < SHRINK_RUNS:
                runs += 1
                if run(result.seed, skip=more).failure is not None:
                    skip = more
        size //= 2
    return skip


def explain(result: Result) -> str:
    """What failed, how to run it again, and the end of its shrunk trace."""
    skip = shrink(result)
    trace: list[str] = []
    again = run(result.seed, skip=skip, trace=trace)
    left = again.faults - len(skip)
    return "\n".join(
        [
            f"seed {result.seed}: {result.failure}",
            f"shrunk: {again.failure} with {left} of {result.faults} faults, after {again.steps} steps",
            f"replay: python -m tests.sim.shard_run --seed {result.seed}",
            *trace[-TRACE_LINES:],
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", nargs="?", type=int, default=0)
    parser.add_argument("seeds", nargs="?", type=int, default=250)
    parser.add_argument("--seed", type=int, help="run this one and print its trace")
    options = parser.parse_args()
    if options.seed is not None:
        trace: list[str] = []
        result = run(options.seed, trace=trace)
        print("\n".join(trace))
        print(result)
        return 1 if result.failure else 0
    began, failed = time.perf_counter(), 0
    total: Counter[str] = Counter()
    simulated, steps = 0.0, 0
    for seed in range(options.first, options.first + options.seeds):
        result = run(seed)
        total += result.finished
        simulated += result.seconds
        steps += result.steps
        if result.failure is not None:
            failed += 1
            print(f"seed {seed}: {result.failure}", flush=True)
            if failed >= 10:
                break
    took = time.perf_counter() - began
    print(
        f"{options.seeds} seeds, {failed} failed, {took:.1f} s: {options.seeds / took:.0f} seeds/s, "
        f"{simulated / took:.1f} simulated s/s, {steps / took / 1000:.0f}k steps/s; {dict(total)}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
