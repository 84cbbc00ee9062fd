"""A front's picture of the cluster: the map as the store last published it, and readers of the local shards.

The page tells when there is a newer map; it is fetched before the next request is answered, so that a
client that meets another front sees what it was just told.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from agent.front.asking import Where
from agent.front.others import Others
from agent.front.places import Held
from agent.front.queries.collection import Collection as Look
from agent.front.queries.plan import VectorSpec
from agent.front.queries.source import LocalSource, Source
from agent.front.reader import ShardReader
from agent.front.shard_state import ShardState
from agent.link import Client
from agent.metrics import Metrics
from agent.page import NodeFlag, Page, Reads, ShardFlag, ShardRecord
from core import cluster, cluster_answers
from core.cluster import ClusterView, CollectionId, NodeId
from core.errors import Damaged, NotFound, ShoalError, Unavailable
from core.settings import Settings
from net.logs import Log

FOLLOW_S = 1.0
_NOWHERE: Mapping[int, Where] = {}
_FETCH_TIMEOUT_S = 5.0
_decode_view = msgspec.json.Decoder(ClusterView).decode
_decode_settings = msgspec.json.Decoder(Settings).decode


class NoReader:
    """In place of the reader of a shard that cannot be read: a collection without it would answer less
    than it holds, as if that were all."""

    def __init__(self, why: ShoalError) -> None:
        self._why = why

    def view(self) -> NoReturn:
        raise type(self._why)(str(self._why))

    def set_schema(self, info: cluster.Collection) -> None:
        """Nothing is read by it."""

    def built(self, v: int) -> int:
        return 0

    def indexed_vectors(self) -> int:
        return 0

    def segments(self) -> int:
        return 0

    def index_points(self, number: int) -> int:
        return 0

    def close(self) -> None:
        """Nothing was opened."""


class Shard:
    """A local shard as this front serves it."""

    def __init__(self, page: Page, place: int | None, number: int, reader: ShardReader | NoReader) -> None:
        self._page, self.place, self.number, self.reader = page, place, number, reader
        self._incarnation = self.record().incarnation

    def is_at(self, place: int) -> bool:
        """Whether it is still the replica that was opened, at that place of the page."""
        return self.place == place and self.record().incarnation == self._incarnation

    def record(self) -> ShardRecord:
        return ShardRecord() if self.place is None else self._page.shard(self.place)

    def state(self, indexes: Sequence[int]) -> ShardState:
        record = self.record()
        return ShardState(
            number=self.number,
            points=record.points,
            indexed=self.reader.indexed_vectors(),
            segments=self.reader.segments(),
            index_points={number: self.reader.index_points(number) for number in indexes},
            building=bool(record.flags & ShardFlag.BUILDING),
            damaged=bool(record.flags & ShardFlag.DAMAGED),
            slots=record.slot_high - record.slot_low,
            tail=self.tail(),
        )

    def tail(self) -> int:
        """Slots that are in no graph yet, of a shard that has graphs."""
        record = self.record()
        return record.slot_high - max(record.built, record.slot_low)

    def scanned(self, v: int) -> int:
        """Slots that a search of vector v compares exactly: all of them where it has no graph."""
        record = self.record()
        return record.slot_high - max(self.reader.built(v), record.slot_low)


class Served:
    """One collection: its definition in the map, and its shards."""

    def __init__(
        self,
        info: cluster.Collection,
        shards: tuple[Shard, ...],
        reads: Reads,
        records: tuple[cluster.Shard, ...],
    ) -> None:
        self.info, self.shards, self._reads = info, shards, reads
        here = {shard.number: shard for shard in shards}
        self._here = here
        self._elsewhere = {one.number: one for one in records if one.number not in here}
        """Shards without a replica here that may be read."""
        self.held = Held(info.id, info.name, records, self._applied)
        self.replicas = max((len(one.in_sync) + len(one.learners) for one in records), default=1)
        self.name = info.name
        self.vectors: Mapping[str, VectorSpec] = {
            name: VectorSpec(name, info.vectors[name], params) for name, params in info.params.vectors.items()
        }
        self.text_indexes = cluster_answers.text_indexes(info)

    @property
    def is_here(self) -> bool:
        """Whether all of it can be read on this node."""
        return not self._elsewhere

    @contextmanager
    def look(
        self,
        elsewhere: Mapping[int, Where] = _NOWHERE,
        others: Others | None = None,
        deadline_s: float = 0.0,
        *,
        without: Collection[int] = (),
    ) -> Iterator[Look]:
        """A consistent look at each shard, released at the end; through `others` at those `elsewhere`.

        Damage met meanwhile names the collection. `without`: shards that the request can do without.
        """
        with ExitStack() as stack:
            stack.enter_context(self._reads.held())
            try:
                shards = self.shards
                if elsewhere or without:
                    shards = tuple(s for s in shards if s.number not in elsewhere and s.number not in without)
                views = [stack.enter_context(shard.reader.view()) for shard in shards]
                sources: list[Source] = [LocalSource(view) for view in views]
                if elsewhere or self._elsewhere:
                    asked = self._asked_of(others)
                    wanted = [where for where in elsewhere.values() if where.shard not in without]
                    sources += [asked.source(where, deadline_s) for where in wanted]
                yield Look(self.name, self.vectors, sources, self.text_indexes, len(sources) == len(views))
            except Damaged as problem:
                raise Damaged(f"collection {self.name!r}: {problem}") from None

    @contextmanager
    def look_at(self, number: int) -> Iterator[LocalSource]:
        """A look at one shard, for another node. Raises NotFound if there is no replica here."""
        for shard in self.shards:
            if shard.number == number:
                with self._reads.held(), shard.reader.view() as view:
                    yield LocalSource(view)
                return
        raise NotFound(f"this node has no replica of shard {number} of collection {self.name}")

    def _applied(self, number: int) -> int | None:
        shard = self._here.get(number)
        return None if shard is None or isinstance(shard.reader, NoReader) else shard.record().applied

    def points(self) -> int:
        return sum(shard.record().points for shard in self.shards)

    def states(self) -> list[ShardState]:
        """Of the shards that are here."""
        indexes = [index.number for index in self.info.indexes.values()]
        return [shard.state(indexes) for shard in self.shards]

    async def describe(self, others: Others | None, timeout_s: float) -> dict[str, Any]:
        """The answer of GET /collections/{name}. Raises Unavailable if a shard elsewhere does not answer."""
        states = self.states()
        if self._elsewhere:
            asked = self._asked_of(others)
            states += await asyncio.gather(
                *(
                    asked.state(self.held.where(one, one.in_sync), timeout_s)
                    for one in self._elsewhere.values()
                )
            )
            states.sort(key=lambda state: state.number)
        return cluster_answers.collection_answer(
            self.info,
            points=sum(state.points for state in states),
            indexed=sum(state.indexed for state in states),
            segments=sum(state.segments for state in states),
            index_points={
                path: sum(state.index_points.get(index.number, 0) for state in states)
                for path, index in self.info.indexes.items()
            },
            building=any(state.building for state in states),
            damaged=any(state.damaged for state in states),
            placed=min((len(one.replicas) for one in self.held.shards), default=0),
            progress=[{"shard": s.number, "slots": s.slots, "tail": s.tail} for s in states],
        )

    def _asked_of(self, others: Others | None) -> Others:
        if others is None:
            where = ", ".join(f"shard {n} on {', '.join(one.in_sync)}" for n, one in self._elsewhere.items())
            raise Unavailable(f"{where}: this node's file names no secret_file, so it can't ask there")
        return others

    def optimizations(self) -> dict[str, Any]:
        """The answer of GET /collections/{name}/optimizations: what the builder still has to do."""
        running = [
            {
                "uuid": str(uuid.UUID(int=shard.record().incarnation)),
                "optimizer": "fold",
                "status": "optimizing",
                "segments": [],
                "progress": {
                    "name": f"shard {shard.number}",
                    "done": max(0, shard.record().built - shard.record().slot_low),
                    "total": shard.record().slot_high - shard.record().slot_low,
                },
            }
            for shard in self.shards
            if shard.record().flags & ShardFlag.BUILDING
        ]
        pending = sum(
            max(0, s.record().slot_high - max(s.record().built, s.record().slot_low)) for s in self.shards
        )
        return {
            "summary": {
                "queued_optimizations": 0,
                "queued_segments": 0,
                "queued_points": pending if running else 0,
                "idle_segments": sum(shard.reader.segments() for shard in self.shards),
            },
            "running": running,
        }


class Serving:
    """What this front serves now."""

    def __init__(self, me: str, page: Page, link: Client, metrics: Metrics, log: Log, reads: Reads) -> None:
        self._me = NodeId(me)
        self.others: Others | None = None
        """Set by who starts this front, if there can be other nodes."""
        self._page, self._link, self._metrics, self._log = page, link, metrics, log
        self._reads = reads
        self._view: ClusterView | None = None
        self._by_name: dict[str, Served] = {}
        self._by_id: dict[CollectionId, Served] = {}
        self._unread: set[tuple[int, int]] = set()
        self._fetching = asyncio.Lock()
        self.settings = Settings()
        self.settings_version = 0
        self.limits = self.settings.limits()

    @property
    def map(self) -> cluster.ClusterMap:
        if self._view is None:
            raise Unavailable("the node is starting: its store does not answer yet; retry")
        return self._view.map

    @property
    def view(self) -> ClusterView:
        if self._view is None:
            raise Unavailable("the node is starting: its store does not answer yet; retry")
        return self._view

    @property
    def cluster_uuid(self) -> str:
        return self.map.cluster

    async def current(self) -> None:
        """Return with the newest map that the store has published."""
        if not self.is_current:
            await self.refresh()

    @property
    def is_current(self) -> bool:
        """Whether the map and the settings at hand are the newest."""
        node, view = self._page.node(), self._view
        return view is not None and node.epoch <= view.epoch and node.settings <= self.settings_version

    async def collection(self, name: str) -> Served:
        """The collection of that name or alias. Raises NotFound."""
        if not self.is_current:
            await self.refresh()
        return self.known(name)

    def known(self, name: str) -> Served:
        """The collection by the map at hand. Raises NotFound."""
        found = self._by_name.get(name)
        if found is None:
            raise NotFound.collection(name)
        return found

    def has(self, name: str) -> bool:
        return name in self._by_name

    def names(self) -> list[str]:
        return [served.name for served in self._by_id.values()]

    def collections(self) -> list[Served]:
        return list(self._by_id.values())

    def label(self, name: str) -> str:
        """The collection's name as a metric's label: an alias is resolved, a stranger's name is not kept."""
        found = self._by_name.get(name)
        return found.name if found is not None else "(unknown)"

    def aliases(self, of: str | None) -> dict[str, Any]:
        found = [
            {"alias_name": alias, "collection_name": self.map.collections[id_].name}
            for alias, id_ in sorted(self.map.aliases.items())
            if of is None or self.map.collections[id_].name == of
        ]
        return {"aliases": found}

    async def refresh(self) -> None:
        """Fetch the map if the page says that there is a newer one."""
        async with self._fetching:
            if self.is_current:
                return
            node = self._page.node()
            if not node.flags & NodeFlag.READY:
                raise Unavailable("the node is starting: its shards are being opened; retry")
            if node.settings > self.settings_version:
                header, body = await self._link.call("settings.get", {}, timeout_s=_FETCH_TIMEOUT_S)
                self.settings, self.settings_version = _decode_settings(body), header["version"]
                self.limits = self.settings.limits()
                if self.others is not None:
                    self.others.prefer(self.settings)
            if self._view is None or node.epoch > self._view.epoch:
                _, body = await self._link.call("view.get", {}, timeout_s=_FETCH_TIMEOUT_S)
                self._take(_decode_view(body))

    async def follow(self) -> None:
        """Keep readers up to date also while no request comes; runs until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                if self._page.node().flags & NodeFlag.READY:
                    await self.current()
                    self._look_again()
            except ShoalError as problem:  # the store may be stopping; the next request says so itself
                self._log.warning("front.map_not_fetched", text=str(problem))

    def _look_again(self) -> None:
        """Shards that could not be read may be open by now; no epoch tells of that."""
        if self._unread and self._view is not None:
            places = self._places()
            if any(self._page.shard(places[k]).flags & ShardFlag.OPEN for k in self._unread & places.keys()):
                self._take(self._view)

    def close(self) -> None:
        for served in self._by_id.values():
            for shard in served.shards:
                shard.reader.close()

    def _take(self, view: ClusterView) -> None:
        places = self._places()
        old = {(id_, shard.number): shard for id_, s in self._by_id.items() for shard in s.shards}
        kept: set[tuple[int, int]] = set()
        by_id: dict[CollectionId, Served] = {}
        for id_, info in view.map.collections.items():
            shards: list[Shard] = []
            for one in view.shards[id_].shards:
                if self._me not in one.in_sync:
                    continue
                key = (id_, one.number)
                place = places.get(key)
                found = old.get(key)
                if place is not None and found is not None and found.is_at(place) and key not in self._unread:
                    kept.add(key)
                else:
                    folder = Path("shards") / f"{id_}-{one.number}"
                    found = Shard(self._page, place, one.number, self._reader(folder, place))
                found.reader.set_schema(info)
                shards.append(found)
            by_id[id_] = Served(info, tuple(shards), self._reads, view.shards[id_].shards)
        for key, shard in old.items():
            if key not in kept:
                shard.reader.close()
        self._unread = {
            (id_, shard.number)
            for id_, served in by_id.items()
            for shard in served.shards
            if isinstance(shard.reader, NoReader)
        }
        self._by_id = by_id
        self._by_name = {name: by_id[c.id] for name, c in cluster.directory(view.map).items()}
        self._view = view
        if self.others is not None:
            self.others.learn(view.map)

    def state_of(self, collection: int, shard: int) -> ShardState:
        """For another node. Raises NotFound."""
        served = self._by_id.get(CollectionId(collection))
        for state in served.states() if served is not None else ():
            if state.number == shard:
                return state
        raise NotFound(f"this node has no replica of shard {shard} of collection {collection}")

    def applied_at(self, collection: int, shard: int) -> int:
        """How far this node's replica is, for another node; 0 if there is none that can be read."""
        served = self._by_id.get(CollectionId(collection))
        return (served.held.applied(shard) or 0) if served is not None else 0

    def look_at(self, collection: int, shard: int) -> AbstractContextManager[LocalSource]:
        """For another node. Raises NotFound."""
        served = self._by_id.get(CollectionId(collection))
        if served is None:
            raise NotFound(f"this node has no collection {collection} in its map yet")
        return served.look_at(shard)

    def _reader(self, folder: Path, place: int | None) -> ShardReader | NoReader:
        """One shard that cannot be read must not keep this front from serving the others."""
        if place is None:  # the store is closing it, or opens another in its place; a new epoch follows
            return NoReader(Unavailable(f"shard {folder.name} is not open now; retry"))
        if self._page.shard(place).flags & ShardFlag.DAMAGED:
            return NoReader(
                Damaged(
                    f"shard {folder.name} is damaged, the store's log names the file; "
                    "restore the shard or the collection from a snapshot"
                )
            )
        try:
            return ShardReader(folder, self._page, place, self._metrics)
        except Damaged as problem:
            self._log.error("front.shard_damaged", shard=folder.name, text=str(problem))
            return NoReader(Damaged(f"{problem}; restart the agent, or restore the shard from a snapshot"))
        except OSError as problem:  # its folder has gone since the page was read: a new epoch follows
            self._log.warning("front.shard_not_opened", shard=folder.name, text=str(problem))
            return NoReader(Unavailable(f"shard {folder.name} cannot be opened now; retry"))

    def _places(self) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        for place in range(self._page.node().shards):
            record = self._page.shard(place)
            if record.flags & (ShardFlag.OPEN | ShardFlag.DAMAGED):
                found[record.collection, record.shard] = place
        return found
