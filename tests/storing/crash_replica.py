"""Crashes a follower at each call while it follows, promises, cuts: `python -m tests.storing.crash_replica`.

One primary after the other is played here, by messages alone. What the follower has said is written past
the disk under test; a start after the crash must have all of it. Apart from pytest, because it forks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from agent.store import pipeline
from agent.store.effects import Nobody
from agent.store.identity import read_identity
from agent.store.log import LogWriter
from agent.store.membership import Membership
from agent.store.shard import Shard
from core.replication.log import Entry, Position
from core.replication.messages import (
    Append,
    Appended,
    CommandAnswer,
    HasPersisted,
    Message,
    Promise,
    Promised,
    Refused,
    ReplicaId,
)
from core.replication.replica import Replica
from core.wire import encode_op
from tests.storing.contents import Model, Points, upsert
from tests.storing.crash import FINISHED, Place, disk, in_fork
from tests.storing.disks import CRASHED, Crash, cut_power
from tests.storing.shards import Bench

ME = Membership("n2", None)
OPS = {(term, seq): upsert([seq, 100], 10 * term + seq) for term in (1, 2) for seq in range(1, 8)}
FIRST = [(1, seq) for seq in range(1, 7)]
"""The log of the first primary: what follows entry 3 was never committed."""
SECOND = [*FIRST[:3], *((2, seq) for seq in range(4, 8))]
DEADLINE_S = 20.0


def entry(position: tuple[int, int]) -> Entry:
    term, seq = position
    return Entry(term, seq, seq * 1000, encode_op(OPS[position]), request_id=b"%016d" % seq)


def points_after(log: list[tuple[int, int]]) -> Points:
    model = Model()
    for position in log:
        model.apply(OPS[position])
    return model.points


class Said(Nobody):
    """Writes down what the follower says: `a` term seq for an answer, `p` term for a promise."""

    def __init__(self, path: Path, crash: Crash) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._crash = crash
        self.persisted = (0, 0)
        self.promised = 0
        self.changed = asyncio.Event()

    def send(self, message: Message) -> None:
        if isinstance(message, Appended):
            self.persisted = max(self.persisted, (message.term, message.persisted))
            self.note(f"a {message.term} {message.persisted}")

    def reply(self, message: CommandAnswer | HasPersisted | Refused) -> None:
        if isinstance(message, Promised):
            self.promised = message.term
            self.note(f"p {message.term}")

    def note(self, line: str) -> None:
        with self._crash.lock:  # not after the moment of the crash
            os.write(self._fd, f"{line}\n".encode())
        self.changed.set()


class Primary:
    """Plays `node`, which leads `term`, against one follower."""

    def __init__(self, shard: Shard, said: Said, node: str, term: int, log: list[tuple[int, int]]) -> None:
        self._shard, self._said, self._log, self.term = shard, said, log, term
        self.me = ReplicaId(node, 1)

    async def append(self, first_seq: int, last_seq: int, committed: int) -> None:
        """Returns once the follower has said that it has it on disk."""
        replica = replica_of(self._shard)
        previous = Position(*self._log[first_seq - 2]) if first_seq > 1 else Position(0, 0)
        entries = tuple(entry(position) for position in self._log[first_seq - 1 : last_seq])
        message = Append(self.me, replica.me, self.term, 1, previous, entries, committed, 0, ask=True)
        self._shard.perform(replica.on_message(message, 0.0))
        await until(self._said, lambda: self._said.persisted >= (self.term, last_seq))


async def until(said: Said, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            said.changed.clear()
            await said.changed.wait()


def replica_of(shard: Shard) -> Replica:
    assert shard.damage is None, shard.damage
    assert shard.replica is not None
    return shard.replica


async def opened(bench: Bench) -> Shard:
    return await Shard.open(
        bench.folder,
        collection=7,
        shard=0,
        schema=bench.schema,
        ports=bench.ports,
        settings=bench.settings,
        membership=ME,
    )


async def follow(bench: Bench, said: Said) -> None:
    """Two primaries; the second cuts off what the first had not committed."""
    shard = await opened(bench)
    shard.attach(said)
    first = Primary(shard, said, "n1", 1, FIRST)
    await first.append(1, 1, 0)
    await first.append(2, 3, 1)
    await first.append(4, 4, 3)
    await shard.checkpoint()
    await first.append(5, 6, 3)
    promise = Promise(replica_of(shard).me, 2, leader_term=1)
    shard.perform(replica_of(shard).on_message(promise, 0.0))
    await until(said, lambda: said.promised == 2)
    said.note("second")
    second = Primary(shard, said, "n3", 2, SECOND)
    await second.append(4, 5, 3)
    await second.append(6, 7, 5)
    await second.append(8, 7, 7)
    while shard.applied_seq < 7:
        await asyncio.sleep(0.001)
    await shard.checkpoint()
    await shard.close(checkpoint=False)


# -- checks -------------------------------------------------------------------------------------------------


async def verify(place: Place) -> None:
    said = place.acks.read_text().split("\n") if place.acks.exists() else []
    identity, _ = read_identity(place.shard / "log")
    promised = max((int(line.split()[1]) for line in said if line.startswith("p ")), default=1)
    assert identity.promised >= promised, f"promised {promised}, and is at {identity.promised}"
    bench = Bench(place.shard)
    shard = await opened(bench)
    replica = replica_of(shard)
    log = [(replica.log.term_at(s), s) for s in range(replica.log.base.seq + 1, replica.log.last.seq + 1)]
    _check_log(said, [*SECOND[: replica.log.base.seq], *log])  # type: ignore[list-item]
    assert bench.points() == points_after(SECOND[: shard.applied_seq])
    quiet = Said(place.folder / "later", Crash(0))
    shard.attach(quiet)
    second = Primary(shard, quiet, "n3", 2, SECOND)
    await second.append(shard.applied_seq + 1, 7, 7)
    while shard.applied_seq < 7:
        await asyncio.sleep(0.001)
    assert bench.points() == points_after(SECOND)
    await shard.close()
    bench.close()


def _check_log(said: list[str], log: list[tuple[int, int]]) -> None:
    acks = [(int(line.split()[1]), int(line.split()[2])) for line in said if line.startswith("a ")]
    of_first = max((seq for term, seq in acks if term == 1), default=0)
    of_second = max((seq for term, seq in acks if term == 2), default=0)
    if of_second:
        assert log == SECOND[: len(log)], f"{log} is not the second primary's"
        assert len(log) >= of_second, f"{log} lacks what was said up to {of_second}"
    elif "second" not in said:
        assert log == FIRST[: len(log)], f"{log} is not the first primary's"
        assert len(log) >= of_first, f"{log} lacks what was said up to {of_first}"
    else:
        assert log in (FIRST[: len(log)], SECOND[: len(log)])
        assert len(log) >= 3, f"{log} lacks what is committed"


async def _make(folder: Path) -> None:
    bench = Bench(folder)
    await Shard.make(folder, collection=7, shard=0, schema=bench.schema, ports=bench.ports, history=5)
    bench.close()


def each_point(folder: Path, kind: str, seeds: int) -> dict[str, object]:
    template, errors = folder / "template", folder / "errors"
    assert in_fork(lambda: asyncio.run(_make(template)), errors) == FINISHED, errors.read_text()
    failures: list[str] = []
    point = 0
    while True:
        point += 1
        for seed in range(seeds):
            place = Place(folder / "run")
            place.fresh(template)

            def run(at: int = point, place: Place = place) -> None:
                crash = Crash(at)
                bench = Bench(place.shard, disk(kind, crash, place), purge_after_s=0.0)
                asyncio.run(_followed(bench, place, crash))

            status = in_fork(run, errors)
            if status == FINISHED:
                return {"points": point - 1, "failures": failures}
            if status != CRASHED:
                return {"points": point, "failures": [*failures, f"call {point}: {errors.read_text()}"]}
            if kind == "cut":
                cut_power(place.shard, place.report, seed)
            if in_fork(lambda place=place: asyncio.run(verify(place)), errors) != FINISHED:  # type: ignore[misc]
                failures.append(f"call {point}, seed {seed}: {errors.read_text()}")


async def _followed(bench: Bench, place: Place, crash: Crash) -> None:
    await follow(bench, Said(place.acks, crash))


def _forget_promises() -> None:
    vars(pipeline)["write_identity"] = lambda *_: None


def _keep_the_end() -> None:
    """Say that the end of the log is cut off, and leave it there."""

    def cut(writer: LogWriter, after_seq: int) -> None:
        writer.last = Position(1, after_seq)

    vars(pipeline)["cut_suffix"] = cut


def _say_before_the_fsync() -> None:
    LogWriter.sync = lambda self: None  # type: ignore[method-assign]


BUGS = {"forget-promise": _forget_promises, "no-cut": _keep_the_end, "no-fsync": _say_before_the_fsync}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--disk", choices=["kill", "cut"], default="kill")
    parser.add_argument("--seeds", type=int, default=1, help="power cuts at each call")
    parser.add_argument("--bug", choices=BUGS, help="put a known bug in, which the checks must find")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.bug:
        BUGS[options.bug]()
    json.dump(each_point(options.folder, options.disk, options.seeds), sys.stdout)


if __name__ == "__main__":
    main()
