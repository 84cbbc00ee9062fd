"""Clients of a cluster that write unique values and read them back, and the history of what each one saw."""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from core.hashing import id_key, shard_of
from tests.cluster.linear import NEVER, Operation, mistakes
from tests.running.cluster import RunningCluster
from tests.running.rest import Rest
from tests.running.waiting import wait_until

DIM = 4
CLIENT_TIMEOUT_S = 10.0
EVENTUAL_TIMEOUT_S = 0.25
"""A client that may read anywhere goes on to the next node after this long."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    key: int
    shard: int
    value: str
    begin_s: float
    end_s: float
    through: str


@dataclass(eq=False)
class Load:
    """`running()` in a `with`; afterwards `check`. At most six clients share a key.

    `reads`: with which consistency; "eventual" ones are not part of the history. `through`: their nodes.
    """

    cluster: RunningCluster
    collection: str
    shards: int
    clients: int = 4
    keys: int = 24
    first_key: int = 1
    ordering: str = "medium"
    reads: str = "quorum"
    through: Sequence[str] = ()
    stays: bool = False
    """Each client stays with its node, whatever happens."""
    pause_s: float = 0.0
    seed: int = 1
    history: dict[int, list[Operation]] = field(default_factory=dict)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    refused: list[tuple[float, str, str]] = field(default_factory=list)
    """When, through whom, why: of unknown outcome, unless it says so."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self.history = {key: [] for key in range(self.first_key, self.first_key + self.keys)}

    @contextmanager
    def running(self) -> Iterator[Load]:
        self._stop.clear()
        names = list(self.through or self.cluster.nodes)
        threads = [
            threading.Thread(target=self._client, args=(f"k{n}", names[n % len(names) :] + names))
            for n in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(CLIENT_TIMEOUT_S + 10)

    def shard(self, key: int) -> int:
        return shard_of(id_key(key), self.shards)

    def wait_more(self, writes: int, within_s: float = 20.0) -> None:
        """Until so many more writes are acknowledged."""
        goal = len(self.acknowledged) + writes
        wait_until(lambda: len(self.acknowledged) >= goal or self._seen(), within_s, f"{writes} more writes")

    def _seen(self) -> bool:
        raise AssertionError(f"{len(self.acknowledged)} acknowledged; refused at last: {self.refused[-3:]}")

    def first_after(self, at_s: float, shard: int) -> float | None:
        """Seconds from then to the first answer to a write on that shard that began after it."""
        later = [a.end_s for a in list(self.acknowledged) if a.shard == shard and a.begin_s > at_s]
        return min(later) - at_s if later else None

    def wait_first_after(self, at_s: float, shards: Sequence[int], within_s: float) -> list[float]:
        """The same for each of these shards, once all have one."""

        def seen() -> list[float]:
            found = [self.first_after(at_s, shard) for shard in shards]
            assert None not in found, f"{dict(zip(shards, found))}; refused at last: {self.refused[-4:]}"
            return [one for one in found if one is not None]

        return wait_until(seen, within_s, f"a write on each of the shards {list(shards)}")

    # -- one client

    def _client(self, name: str, nodes: list[str]) -> None:
        rng = random.Random(f"{self.seed} {name}")
        at = 0
        rest = self._rest(nodes[at])
        while not self._stop.wait(self.pause_s):
            key = rng.choice(list(self.history))
            if rng.random() < 0.7:
                fine = self._write(rest, name, key, nodes[at % len(nodes)])
            else:
                fine = self._read(rest, name, key, nodes[at % len(nodes)])
            if not fine:
                rest.close()
                self._stop.wait(0.02)
                at += 0 if self.stays else 1
                rest = self._rest(nodes[at % len(nodes)])
        rest.close()

    def _rest(self, node: str) -> Rest:
        return Rest(self.cluster.ports[node].port, timeout_s=CLIENT_TIMEOUT_S)

    def _write(self, rest: Rest, client: str, key: int, through: str) -> bool:
        value = f"{client}-{next(self._numbers)}"
        point = {"id": key, "vector": vector(key), "payload": {"value": value}}
        begin_s = time.monotonic()
        why = ""
        try:
            answer = rest.put(
                f"/collections/{self.collection}/points",
                {"points": [point]},
                wait=True,
                ordering=self.ordering,
            )
            why = "" if answer.status == 200 else f"{answer.status} {answer.text[:200]}"
        except (OSError, http.client.HTTPException) as problem:
            why = repr(problem)
        end_s = time.monotonic()
        with self._lock:
            self.history[key].append(Operation("write", value, begin_s, NEVER if why else end_s, client))
            if why:
                self.refused.append((end_s, through, why))
            else:
                self.acknowledged.append(Acknowledged(key, self.shard(key), value, begin_s, end_s, through))
        return not why

    def _read(self, rest: Rest, client: str, key: int, through: str) -> bool:
        begin_s = time.monotonic()
        try:
            answer = rest.get(
                f"/collections/{self.collection}/points/{key}", consistency=CONSISTENCY[self.reads]
            )
        except (OSError, http.client.HTTPException) as problem:
            self.refused.append((time.monotonic(), through, f"read: {problem!r}"))
            return False
        if answer.status not in (200, 404):
            self.refused.append((time.monotonic(), through, f"read: {answer.status} {answer.text[:200]}"))
            return False
        if self.reads != "eventual":
            value = answer.result["payload"]["value"] if answer.status == 200 else None
            with self._lock:
                self.history[key].append(Operation("read", value, begin_s, time.monotonic(), client))
        return True

    # -- afterwards

    def check(self, contents: dict[int, str]) -> None:
        """Some order of each point's calls explains all that was seen; `contents` was read after them."""
        stale, lost = self._wrong(contents, with_reads=True), self._wrong(contents, with_reads=False)
        assert not lost, "acknowledged writes are lost:\n" + "\n".join(lost)
        assert not stale, f"no write is lost, but {self.reads} reads are stale:\n" + "\n".join(stale)

    def _wrong(self, contents: dict[int, str], *, with_reads: bool) -> list[str]:
        now_s = time.monotonic()
        found = []
        for key, operations in self.history.items():
            seen = [one for one in operations if with_reads or one.kind == "write"]
            lines = mistakes([*seen, Operation("read", contents.get(key), now_s, now_s, "end")])
            found += [f"point {key}:", *lines] if lines else []
        return found


CONSISTENCY = {"eventual": "1", "quorum": "quorum", "strong": "all"}


def vector(key: int) -> list[float]:
    return [float(key % 97 + 1), 1.0, float(key % 13), 0.5]


def contents(cluster: RunningCluster, node: str, collection: str) -> dict[int, str]:
    """All points as this node's own replicas have them: id → value."""
    rest = Rest(cluster.ports[node].port)
    found: dict[int, str] = {}
    offset: Any = None
    while True:
        body = {"limit": 1000, "with_payload": True, "with_vector": False, "offset": offset}
        page = rest.post(f"/collections/{collection}/points/scroll", body, consistency="1").result
        found |= {point["id"]: point["payload"]["value"] for point in page["points"]}
        offset = page["next_page_offset"]
        if offset is None:
            rest.close()
            return found


def wait_equal(cluster: RunningCluster, collection: str, within_s: float = 20.0) -> dict[int, str]:
    """Until all nodes have the same points; returns them."""

    def equal() -> list[dict[int, str]]:
        each = {name: contents(cluster, name, collection) for name in cluster.nodes}
        first = each["n1"]
        differ = {
            (name, key): (first.get(key), found.get(key))
            for name, found in each.items()
            for key in first.keys() | found.keys()
            if first.get(key) != found.get(key)
        }
        assert not differ, f"n1 and others differ in {len(differ)}: {list(differ.items())[:5]}"
        return [first]

    return wait_until(equal, within_s, f"the same points of {collection} on all nodes")[0]


@contextmanager
def eventual_reads(cluster: RunningCluster, collection: str) -> Iterator[list[float]]:
    """A client that reads with consistency eventual from whoever answers. Yields the times of its answers."""
    answered: list[float] = []
    stop = threading.Event()

    def read() -> None:
        nodes = itertools.cycle(cluster.nodes)
        node = next(nodes)
        while not stop.wait(0.02):
            rest = Rest(cluster.ports[node].port, timeout_s=EVENTUAL_TIMEOUT_S)
            status = 0
            with suppress(OSError, http.client.HTTPException):
                status = rest.get(f"/collections/{collection}/points/1", consistency="1").status
            rest.close()
            if status in (200, 404):
                answered.append(time.monotonic())
            else:
                node = next(nodes)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield answered
    finally:
        stop.set()
        thread.join(10)


def longest_gap_s(answered: Sequence[float]) -> float:
    return max((b - a for a, b in itertools.pairwise(answered)), default=float("inf"))
