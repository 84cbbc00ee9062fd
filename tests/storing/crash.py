"""Crashes a shard at each call of a scenario, in forked processes: `python -m tests.storing.crash --help`.

It runs apart from pytest because it forks, which a process with threads must not. It prints a line of
JSON with what it did and what went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import pickle
import random
import shutil
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agent.mapped import GrowingBits
from agent.store.files import Files
from agent.store.log import LogWriter
from agent.store.manifest import NAME, ColumnParams, Segment
from agent.store.shard import Shard
from core.errors import ShoalError
from core.wire import Op
from tests.storing.contents import SCHEMA, Model, Points
from tests.storing.disks import CRASHED, Crash, CrashingFiles, PowerCutFiles, cut_power
from tests.storing.operations import some_op
from tests.storing.shards import Bench, write

FINISHED, FAILED = 0, 1
INDEXED = msgspec.structs.replace(SCHEMA, version=2, columns={5: ColumnParams("tag", "integer")})


class Acks:
    """How many operations of each client were acknowledged; written past the disk under test."""

    def __init__(self, path: Path, crash: Crash) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._crash = crash

    def add(self, client: int) -> None:
        with self._crash.lock:  # not after the moment of the crash
            os.write(self._fd, bytes([client]))


class Place:
    """Where a run keeps its shard and what the runs after it must know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shard = folder / "shard"
        self.acks = folder / "acks"
        self.report = folder / "report"
        self.points = folder / "points"

    def fresh(self, template: Path | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if template is not None and template.exists():
            shutil.copytree(template, self.shard)

    def acknowledged(self, client: int = 0) -> int:
        return self.acks.read_bytes().count(client) if self.acks.exists() else 0


def ops_of(seed: int, client: int, count: int) -> list[Op]:
    """Operations of one client on ids that are its own."""
    rng = random.Random(f"{seed} {client}")
    return [some_op(rng, n, first_id=client * 100) for n in range(count)]


# -- scenarios: what runs until the crash ------------------------------------------------------------------

Scenario = Callable[[Bench, Acks], Awaitable[None]]


async def _client(shard: Shard, ops: list[Op], acks: Acks, client: int = 0) -> None:
    for op in ops:
        await write(shard, op)
        acks.add(client)


async def scenario_create(bench: Bench, acks: Acks) -> None:
    async with bench.shard() as shard:
        await _client(shard, ops_of(1, 0, 2), acks)


async def scenario_write(bench: Bench, acks: Acks) -> None:
    async with bench.shard(checkpoint=False) as shard:
        await _client(shard, ops_of(1, 0, 8), acks)


async def scenario_checkpoint(bench: Bench, acks: Acks) -> None:
    async with bench.shard(checkpoint=False) as shard:
        ops = ops_of(1, 0, 8)
        await _client(shard, ops[:3], acks)
        await shard.checkpoint()
        await _client(shard, ops[3:6], acks)
        await shard.checkpoint()
        await _client(shard, ops[6:], acks)


async def scenario_vacuum(bench: Bench, acks: Acks) -> None:
    async with bench.shard(checkpoint=False) as shard:
        ops = ops_of(1, 0, 8)
        await _client(shard, ops[:2], acks)
        await shard.relocate(range(6))
        await shard.replace_segments(1, [segment(bench.folder, bench.record.slot_high)])
        await _client(shard, ops[2:5], acks)
        await shard.checkpoint()
        await shard.relocate(range(20))
        await _client(shard, ops[5:], acks)
        await shard.checkpoint()


async def scenario_close(bench: Bench, acks: Acks) -> None:
    async with bench.shard(checkpoint=True) as shard:
        await _client(shard, ops_of(1, 0, 4), acks)
    async with bench.shard(checkpoint=True) as shard:
        await _client(shard, ops_of(1, 0, 8)[4:], acks)


async def scenario_schema(bench: Bench, acks: Acks) -> None:
    async with bench.shard(checkpoint=False) as shard:
        ops = ops_of(1, 0, 8)
        await _client(shard, ops[:3], acks)
        await shard.set_schema(INDEXED)
        await _client(shard, ops[3:5], acks)
        await shard.checkpoint()
        await shard.set_schema(msgspec.structs.replace(SCHEMA, version=3))
        await _client(shard, ops[5:], acks)


async def scenario_start(bench: Bench, acks: Acks) -> None:
    """A shard whose points.db is behind its log, and its vectors behind both."""
    async with bench.shard(checkpoint=False) as shard:
        await _client(shard, ops_of(1, 0, 8), acks)


def segment(folder: Path, high: int) -> Segment:
    data = f"graph up to {high}".encode() * 100
    hash_ = hashlib.sha256(data).hexdigest()[:32]
    path = folder / "segments" / f"1.{hash_}.usearch"
    path.write_bytes(data)
    return Segment("base", path.name, 0, high, high, len(data), hash_)


SCENARIOS: dict[str, Scenario] = {
    "create": scenario_create,
    "write": scenario_write,
    "checkpoint": scenario_checkpoint,
    "vacuum": scenario_vacuum,
    "close": scenario_close,
    "schema": scenario_schema,
    "start": scenario_start,
}
ONLY_FROM_NOTHING = {"create", "close"}


async def setup(folder: Path, name: str) -> Points:
    """The state in which a scenario begins, in `folder`; returns what it holds."""
    if name in ONLY_FROM_NOTHING:
        return {}
    bench, model = Bench(folder), Model()
    before = ops_of(0, 0, 6)
    async with bench.shard(checkpoint=name != "start") as shard:
        for n, op in enumerate(before):
            if name == "start" and n in (2, 4):
                await (shard.checkpoint() if n == 2 else asyncio.to_thread(_copy_points, folder))
            await write(shard, op)
            model.apply(op)
    if name == "start":
        for kept in folder.glob("points.db*.copy"):
            kept.rename(kept.with_suffix(""))
        for path in folder.glob("*-shm"):
            path.unlink()
    return model.points


def _copy_points(folder: Path) -> None:
    for name in ("points.db", "points.db-wal"):
        # In a process of its own: closing a descriptor of the database here would drop SQLite's locks.
        os.spawnlp(os.P_WAIT, "cp", "cp", str(folder / name), str(folder / f"{name}.copy"))


# -- checks ------------------------------------------------------------------------------------------------


async def verify(
    place: Place, schema_name: str, bases: dict[int, Points], ops: dict[int, list[Op]]
) -> Points:
    """Open after a crash: each client's points are as after some of its operations, all acknowledged ones."""
    bench = Bench(place.shard, schema=INDEXED if schema_name == "schema" else SCHEMA)
    made = (place.shard / NAME).exists()
    assert made or place.acknowledged() == 0, "acknowledged, but the shard was not made"
    async with bench.shard(checkpoint=False, create=not made) as shard:
        assert shard.damage is None, shard.damage
        found = bench.points()
        for client, base in bases.items():
            own = {i: p for i, p in found.items() if _client_of(i) == client}
            _check_prefix(own, base, ops[client], place.acknowledged(client), client)
        await write(shard, some_op(random.Random(3), 7, first_id=9900))
        await shard.checkpoint()
    async with bench.shard() as shard:
        assert shard.damage is None, shard.damage
        again = {i: p for i, p in bench.points().items() if _client_of(i) in bases}
        assert again == {i: p for i, p in found.items() if _client_of(i) in bases}, (
            "changed by a second start"
        )
    bench.close()
    return found


def _client_of(id_: int | str) -> int:
    assert isinstance(id_, int)
    return id_ // 100


def _check_prefix(found: Points, base: Points, ops: list[Op], acknowledged: int, client: int) -> None:
    model = Model(dict(base))
    for op in ops[:acknowledged]:
        model.apply(op)
    states = [dict(model.points)]
    for op in ops[acknowledged:]:
        model.apply(op)
        states.append(dict(model.points))
    if found not in states:
        raise AssertionError(
            f"client {client}: found is no state after the {acknowledged} acknowledged operations\n"
            f"found    {found}\nexpected {states[0]}\nnext     {states[1] if len(states) > 1 else None}"
        )


# -- processes ---------------------------------------------------------------------------------------------


def in_fork(work: Callable[[], object], errors: Path) -> int:
    """The status of a process that does the work."""
    pid = os.fork()
    if pid == 0:
        status = FAILED
        try:
            work()
            status = FINISHED
        except BaseException:  # noqa: BLE001 - the parent tells it
            errors.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def disk(kind: str, crash: Crash, place: Place) -> Files:
    return PowerCutFiles(crash, place.shard, place.report) if kind == "cut" else CrashingFiles(crash)


def each_point(folder: Path, name: str, kind: str, seeds: int) -> dict[str, object]:
    """Crash a scenario at its first, second, … call until it ends by itself."""
    template, base_file, errors = folder / "template", folder / "base", folder / "errors"
    failures: list[str] = []
    status = in_fork(lambda: base_file.write_bytes(pickle.dumps(asyncio.run(setup(template, name)))), errors)
    if status != FINISHED:
        return {"points": 0, "failures": [f"setup: {errors.read_text()}"]}
    base: Points = pickle.loads(base_file.read_bytes())
    point = 0
    while True:
        point += 1
        for seed in range(seeds):
            place = Place(folder / "run")
            place.fresh(template)

            def run(at: int = point, place: Place = place) -> None:
                crash = Crash(at)
                bench = Bench(place.shard, disk(kind, crash, place), purge_after_s=0.0)
                asyncio.run(SCENARIOS[name](bench, Acks(place.acks, crash)))  # type: ignore[arg-type]

            status = in_fork(run, errors)
            if status == FINISHED:
                return {"points": point - 1, "failures": failures}
            if status != CRASHED:
                return {"points": point, "failures": [*failures, f"call {point}: {errors.read_text()}"]}
            if kind == "cut":
                cut_power(place.shard, place.report, seed)

            def check(place: Place = place) -> None:
                asyncio.run(verify(place, name, {0: base}, {0: ops_of(1, 0, 8)}))

            if in_fork(check, errors) != FINISHED:
                failures.append(f"call {point}, seed {seed}: {errors.read_text()}")
                shutil.copytree(place.folder, folder / f"failed-{point}-{seed}", dirs_exist_ok=True)


def at_random(folder: Path, seed: int, rounds: int) -> dict[str, object]:
    """Clients side by side, a power cut at any moment (also of a start), again and again on one shard."""
    place, errors, found_file = Place(folder / "run"), folder / "errors", folder / "found"
    place.fresh(None)
    rng = random.Random(seed)
    clients = range(3)
    bases: dict[int, Points] = {c: {} for c in clients}
    failures: list[str] = []
    crashes = 0
    for round_ in range(rounds):
        ops = {c: ops_of(seed * 1000 + round_, c, 12) for c in clients}
        at = rng.choice((rng.randint(1, 12), rng.randint(1, 60), rng.randint(1, 200)))
        place.acks.unlink(missing_ok=True)

        def run(at: int = at, ops: dict[int, list[Op]] = ops) -> None:
            crash = Crash(at, frozenset({"sync", "rename", "commit", "write"}))
            bench = Bench(place.shard, PowerCutFiles(crash, place.shard, place.report))
            asyncio.run(_side_by_side(bench, Acks(place.acks, crash), ops, random.Random(at)))

        status = in_fork(run, errors)
        if status not in (FINISHED, CRASHED):
            return {"points": crashes, "failures": [f"seed {seed} round {round_}: {errors.read_text()}"]}
        if status == CRASHED:
            crashes += 1
            cut_power(place.shard, place.report, seed + round_)
        shutil.rmtree(folder / "before", ignore_errors=True)
        shutil.copytree(place.shard, folder / "before")  # what a failed check looked at

        def check(bases: dict[int, Points] = bases, ops: dict[int, list[Op]] = ops) -> None:
            found_file.write_bytes(pickle.dumps(asyncio.run(verify(place, "random", bases, ops))))

        if in_fork(check, errors) != FINISHED:
            failures.append(f"seed {seed}, round {round_}, call {at}: {errors.read_text()}")
            break
        found: Points = pickle.loads(found_file.read_bytes())
        bases = {c: {i: p for i, p in found.items() if _client_of(i) == c} for c in clients}
    return {"points": crashes, "failures": failures}


async def _side_by_side(bench: Bench, acks: Acks, ops: dict[int, list[Op]], rng: random.Random) -> None:
    made = (bench.folder / NAME).exists()
    async with bench.shard(checkpoint=rng.random() < 0.5, create=not made) as shard:
        assert shard.damage is None, shard.damage

        async def other_work() -> None:
            for _ in range(3):
                if rng.random() < 0.5:
                    await shard.relocate(range(rng.randint(1, 40)))
                if rng.random() < 0.3:
                    await shard.replace_segments(1, [segment(bench.folder, bench.record.slot_high)])
                if rng.random() < 0.6:
                    await shard.checkpoint()

        try:
            async with asyncio.TaskGroup() as group:
                for client, own in ops.items():
                    group.create_task(_client(shard, own, acks, client))
                group.create_task(other_work())
        except* ShoalError:
            raise


def _no_fsync() -> None:
    LogWriter.sync = lambda self: None  # type: ignore[method-assign]


def _stale_live_bit() -> None:
    GrowingBits.clear = lambda self, slots: None  # type: ignore[method-assign]


BUGS = {"no-fsync": _no_fsync, "stale-live-bit": _stale_live_bit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scenario", choices=[*SCENARIOS, "random"])
    parser.add_argument("--disk", choices=["kill", "cut"], default="kill")
    parser.add_argument("--seeds", type=int, default=1, help="power cuts at each call, or random runs")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--bug", choices=BUGS, help="put a known bug in, which the checks must find")
    parser.add_argument("--rounds", type=int, default=6, help="power cuts of a random run")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.bug:
        BUGS[options.bug]()
    if options.scenario == "random":
        results = [
            at_random(options.folder / str(seed), seed, options.rounds)
            for seed in range(options.first_seed, options.first_seed + options.seeds)
        ]
        result: dict[str, object] = {
            "points": sum(int(str(r["points"])) for r in results),
            "failures": [f for r in results for f in r["failures"]],  # type: ignore[attr-defined]
        }
    else:
        result = each_point(options.folder, options.scenario, options.disk, options.seeds)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
