"""A shard's contents sent to replicas that lack more than the log has: made once, in chunks, resumed.

The receiver says how much it has; a call that fails is not repeated here, the replica offers again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.store.archive import ArchiveWriter, SavedShard, Table
from agent.store.driven_replica import DrivenReplica
from agent.store.pipeline import Pipeline
from agent.store.replica_sending import Key, Links
from agent.store.shard_copy import save_shard
from core.errors import ShoalError, Unavailable
from core.replication.effects import OfferSnapshot
from core.replication.log import Position
from core.replication.messages import ReplicaId
from net.logs import Log

CHUNK_BYTES = 1 << 20
CALL_S = 20.0
BYTES_PER_S = 64 << 20
"""Of one snapshot on its way: reads and writes of clients go on beside it."""
SENDING_MAX = 2
KEEP_S = 60.0
"""How long a snapshot stays that nobody fetches: another learner may, or the same one after a cut."""


@dataclass(slots=True)
class Made:
    """One snapshot on disk."""

    path: Path
    hash: str
    size_bytes: int
    position: Position
    saved: SavedShard
    schema: int
    pipeline: Pipeline
    """Keeps the log that follows."""
    used_s: float

    def remove(self) -> None:
        self.pipeline.keep_after = None
        self.path.unlink(missing_ok=True)


class SnapshotSending:
    """Of one store. `check_room(bytes)` raises NoRoom."""

    def __init__(self, links: Links, log: Log, check_room: Callable[[int], None]) -> None:
        self._links, self._log, self._check_room = links, log, check_room
        self._under_way: set[tuple[Key, ReplicaId]] = set()
        self._made: dict[Key, Made] = {}
        self._making: dict[Key, asyncio.Lock] = {}
        self._room = asyncio.Semaphore(SENDING_MAX)

    async def send(self, driven: DrivenReplica, offer: OfferSnapshot) -> None:
        """Returns when the receiver has it all, needs none, or could not be reached."""
        under_way = (driven.key, offer.to)
        if under_way in self._under_way:
            return
        self._under_way.add(under_way)
        try:
            async with self._room:
                await self._send(driven, offer)
        except (ShoalError, OSError) as error:
            self._log.info("snapshot.not_sent", shard=_name(driven.key), to=offer.to.node, why=str(error))
        finally:
            self._under_way.discard(under_way)

    async def _send(self, driven: DrivenReplica, offer: OfferSnapshot) -> None:
        caller = self._links.caller(offer.to.node)
        common = {
            "collection": driven.key[0],
            "shard": driven.key[1],
            "to": offer.to.incarnation,
            "term": offer.term,
        }
        replica = driven.replica
        if replica is None:
            return
        ask = {**common, "position": list(replica.log.position_at(replica.applied_seq))}
        wanted, _ = await caller.call("snapshot.ask", ask, timeout_s=CALL_S)
        if not wanted["wanted"]:
            return
        made = await self.snapshot(driven)
        offset = int(wanted["have"]) if wanted["hash"] == made.hash else 0
        began_s, first = time.monotonic(), offset
        header = {**common, "position": list(made.position), "hash": made.hash, "size": made.size_bytes}
        header |= {"schema": made.schema, "saved": msgspec.json.encode(made.saved)}
        while offset < made.size_bytes:
            made.used_s = time.monotonic()
            chunk = await asyncio.to_thread(read_chunk, made.path, offset)
            answer, _ = await caller.call(
                "snapshot.part", {**header, "offset": offset}, chunk, timeout_s=CALL_S
            )
            offset = int(answer["have"])
            ahead_s = (offset - first) / BYTES_PER_S - (time.monotonic() - began_s)
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
        self._log.info(
            "snapshot.sent",
            shard=_name(driven.key),
            to=offer.to.node,
            seq=made.position.seq,
            bytes=made.size_bytes - first,
            took_ms=round((time.monotonic() - began_s) * 1000),
        )

    async def snapshot(self, driven: DrivenReplica) -> Made:
        """The one that there is, if the log goes on from it, or a new one."""
        async with self._making.setdefault(driven.key, asyncio.Lock()):
            replica, made = driven.replica, self._made.get(driven.key)
            if replica is None:
                raise Unavailable("the replica is not open")
            if made is not None and made.position.seq >= replica.log.base.seq and made.path.exists():
                return made
            made = self._made[driven.key] = await self._make(driven)
            return made

    async def _make(self, driven: DrivenReplica) -> Made:
        shard, key = driven.shard, driven.key
        path = sending_path(shard.folder)
        path.unlink(missing_ok=True)
        self._check_room(0)
        writer = await asyncio.to_thread(ArchiveWriter, path, lambda: self._check_room(0))
        try:
            async with shard.frozen() as manifest:
                scratch = path.with_name(f"{path.name}-db")
                saved = await asyncio.to_thread(
                    save_shard, writer, shard.folder, manifest, prefix=_name(key), scratch=scratch
                )
                replica = driven.replica
                if replica is None:
                    raise Unavailable("the replica was closed while its snapshot was made")
                # No checkpoint meanwhile, so the log reaches back to it.
                position = replica.log.position_at(saved.applied)
                shard.pipeline.keep_after = position.seq
            table = Table("shard", "", 0, ())
            size_bytes, digest = await asyncio.to_thread(writer.finish, table)
        except BaseException:
            shard.pipeline.keep_after = None
            path.unlink(missing_ok=True)
            raise
        finally:
            writer.close()
        return Made(
            path, digest, size_bytes, position, saved, manifest.schema, shard.pipeline, time.monotonic()
        )

    def sweep(self) -> None:
        """Remove what nobody has fetched from for a while."""
        now_s = time.monotonic()
        for key, made in list(self._made.items()):
            if now_s - made.used_s > KEEP_S and not any(at == key for at, _ in self._under_way):
                del self._made[key]
                made.remove()

    def close(self) -> None:
        for made in self._made.values():
            made.remove()
        self._made.clear()


def sending_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sending")


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def read_chunk(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)
