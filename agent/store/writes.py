"""Writes of points: parse, check against the limits, route to the shards, wait for what was asked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agent.link import Answer, Handler, Header
from agent.metrics import Metrics
from agent.rates import Bucket
from agent.store.forwarding import Asked, Forwarding, Write
from agent.store.guards import Guards
from agent.store.parsers import Parsers
from agent.store.parsing import Prepared, Target
from agent.store.shard import Shard, Until
from core.api.checks import Limits
from core.api.strict import check_points_count, check_storage, strict_mode
from core.cluster import Collection
from core.errors import BadRequest, NotFound, Overloaded
from core.hashing import point_id
from core.payload import PAYLOAD_BYTES_MAX
from core.replication.effects import Consistency
from core.wire import ClearPayload, Delete, DeletePayload, DeleteVectors, Outcome

REQUESTS_MAX = 1024
"""Writes under way at once; more are refused."""
BODIES_BYTES_MAX = 256 << 20
"""Of all bodies that are being parsed or wait for their entries."""
_ID_BYTES = 16


@dataclass(slots=True)
class Open:
    """A collection with the replicas of its shards that are open here, by number."""

    info: Collection
    shards: dict[int, Shard]
    target: Target
    write_rate: Bucket | None = None


@dataclass(slots=True)
class _Load:
    requests: int = 0
    body_bytes: int = 0


class Writes:
    """Serves `points.write` for the fronts. `find` gives the open collection of a name or alias."""

    def __init__(
        self,
        find: Callable[[str], Open],
        forwarding: Forwarding,
        guards: Guards,
        metrics: Metrics,
        parsers: Parsers,
    ) -> None:
        self._find, self._forwarding = find, forwarding
        self._guards, self._metrics, self._parsers = guards, metrics, parsers
        self._load = _Load()
        self._waiting = metrics.gauge("shoal_writes_under_way")
        self._rows = metrics.counter("shoal_points_written_total")
        self._refused = metrics.counter("shoal_writes_refused_total")

    def handlers(self) -> dict[str, Handler]:
        return {"points.write": self.write}

    async def write(self, header: Header, body: bytes, deadline: float) -> Answer:
        """One request of a client; answers the encoded result of the API."""
        began = time.perf_counter()
        load = self._load
        if load.requests >= REQUESTS_MAX or (
            load.requests and load.body_bytes + len(body) > BODIES_BYTES_MAX
        ):
            self._refused.add()
            raise Overloaded(f"{load.requests} writes of {load.body_bytes} bytes are under way; retry later")
        load.requests += 1
        load.body_bytes += len(body)
        self._waiting.set(load.requests)
        try:
            result = await self._write(header, body, deadline)
        finally:
            load.requests -= 1
            load.body_bytes -= len(body)
            self._waiting.set(load.requests)
        self._metrics.histogram("shoal_store_write_seconds").observe(time.perf_counter() - began)
        return {}, result

    async def _write(self, header: Header, body: bytes, deadline: float) -> bytes:
        kind: str = header["kind"]
        collection = self._find(header["collection"])
        if kind not in ("delete", "delete_payload", "clear_payload", "delete_vectors"):
            self._guards.admit(len(body))  # what makes room is let in as long as the log has some
        prepared = await self._parsers.prepare(kind, body, collection.target)
        self._check_strict(collection, prepared)
        request_id, body_hash = _identity(header["idempotency_key"], body)
        until: Until = "applied" if header["wait"] else "persisted"
        asked = Asked(until, Consistency(header["consistency"]), request_id, body_hash)
        number, results = 0, []
        for operation in prepared:
            seq = await self._perform(collection, operation, asked, number, deadline)
            number += sum(len(entries) for entries in operation.entries.values())
            results.append(_Result(seq, "completed" if header["wait"] else "acknowledged"))
        return msgspec.json.encode(results if kind == "batch" else results[0])

    async def _perform(
        self, collection: Open, operation: Prepared, asked: Asked, number: int, deadline: float
    ) -> int:
        """Hand the entries to their shards, all at once, and wait. Returns the highest seq."""
        calls = []
        schema = collection.info.schema_version
        for shard, ops in operation.entries.items():
            for op in ops:
                write = Write(op, asked, number, schema)
                calls.append(self._forwarding.write(collection.info.id, shard, write, deadline))
                number += 1
        # A cancelled waiter gives up the answer, never the write: the shards own that.
        done = await asyncio.gather(*calls)
        self._rows.add(operation.points)
        _raise_missing(operation, [one.outcome for one in done])
        return max((one.seq for one in done), default=0)

    def _check_strict(self, collection: Open, prepared: list[Prepared]) -> None:
        strict = strict_mode(collection.info.params)
        if strict is None:
            return
        if any(operation.points and not operation.ids for operation in prepared):  # upserts
            check_points_count(strict, sum(shard.points_count for shard in collection.shards.values()))
        if any(map(_adds, prepared)):
            check_storage(strict, *_storage_bytes(collection))
        if strict.write_rate_limit is not None:
            now_s = asyncio.get_running_loop().time()
            if collection.write_rate is None or collection.write_rate.per_minute != strict.write_rate_limit:
                collection.write_rate = Bucket(strict.write_rate_limit, now_s)
            collection.write_rate.take(sum(max(1, p.points) for p in prepared), now_s, "Write")


class _Result(msgspec.Struct, frozen=True):
    operation_id: int
    status: str


def _identity(idempotency_key: str, body: bytes) -> tuple[bytes, bytes]:
    """What the log keeps of a request that the client may repeat: an id of 16 bytes, a hash of the body."""
    if not idempotency_key:
        return b"", b""
    digest = hashlib.blake2b(idempotency_key.encode(), digest_size=_ID_BYTES).digest()
    return digest, hashlib.blake2b(body, digest_size=_ID_BYTES).digest()


def _raise_missing(operation: Prepared, outcomes: list[Outcome]) -> None:
    """The rest was done; the client learns the first id, in its own order, that does not exist, or else
    the first whose payload was left alone."""
    too_large = min((one.too_large for one in outcomes if one.too_large is not None), default=None)
    missing = {outcome.missing for outcome in outcomes if outcome.missing is not None}
    if not missing and too_large is not None:
        raise BadRequest(
            f"Wrong input: payload of point {point_id(too_large)}: would be over {PAYLOAD_BYTES_MAX} bytes, "
            "it was left as it was"
        )
    if not missing:
        return
    first = next((key for key in operation.ids if key in missing), next(iter(missing)))
    raise NotFound(f"Not found: No point with id {point_id(first)} found")


def _adds(operation: Prepared) -> bool:
    """Whether it may make the collection larger."""
    return any(
        not isinstance(op, Delete | DeletePayload | DeleteVectors | ClearPayload)
        for ops in operation.entries.values()
        for op in ops
    )


def _storage_bytes(collection: Open) -> tuple[int, int]:
    """Of vectors, as if each point had them all; of payloads, with ids, as they are on the disk."""
    points = sum(shard.points_count for shard in collection.shards.values())
    numbers = sum(vector.size for vector in collection.info.params.vectors.values())
    files = (shard.folder / "points.db" for shard in collection.shards.values())
    return points * numbers * 4, sum(file.stat().st_size for file in files if file.exists())


def target_of(info: Collection, limits: Limits) -> Target:
    """What parsing must know of a collection."""
    params = info.params
    return Target(
        dict(params.vectors),
        dict(info.vectors),
        params.shard_number,
        limits,
        strict_mode(params),
        frozenset(info.indexes),
    )
