"""Handlers about the node itself: health, version, metrics, telemetry, the API's description."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime

import msgspec
import psutil

from agent.front.access import Role
from agent.front.routes import Reply, Request, Route
from agent.front.serving import Serving
from agent.metrics import key_of, render
from agent.page import BUILDER, FIRST_FRONT, MAIN, PROCESSES_MAX, STORE, NodeFlag, Page, ShardFlag
from core.openapi import document
from core.version import QDRANT_VERSION, VERSION

_TEXT = "text/plain"
_HELPS = {
    "shoal_http_requests_total": "Requests answered, by method and status",
    "shoal_search_seconds": "Time to answer a search, by collection",
    "shoal_write_seconds": "Time to answer a write, by collection",
    "shoal_log_fsync_seconds": "Time of one fsync of a shard's log",
    "shoal_shard_points": "Live points of a shard",
    "shoal_shard_tail_slots": "Slots of a shard that are in no graph yet",
    "shoal_shard_slots": "Slots of a shard between the lowest live one and the next new one",
    "shoal_process_resident_bytes": "Resident memory of one of the node's processes",
    "shoal_log_queue_entries": "Operations that wait for a log or for the files",
    "shoal_log_queue_bytes": "Their size",
    "shoal_write_delay_seconds": "How long acknowledgements are held back, as the tails are too long",
    "shoal_dead_rows": "Rows of replaced and deleted points that wait for a checkpoint",
    "shoal_connections": "Open connections of clients, of all fronts",
    "shoal_connections_refused_total": "Connections closed at once: too many in all, or of one client",
    "shoal_connections_timed_out_total": "Connections closed because the head of a request did not come",
    "shoal_disk_free_bytes": "Free bytes of the data folder's file system",
}


class Node:
    """Health, metrics and telemetry of this node."""

    def __init__(self, page: Page, serving: Serving) -> None:
        self._page, self._serving = page, serving
        self._started = time.time()
        self._description: bytes | None = None

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/", Role.NOBODY, self.root, free=True),
            Route("GET", "/healthz", Role.NOBODY, self.alive, free=True),
            Route("GET", "/livez", Role.NOBODY, self.alive, free=True),
            Route("GET", "/readyz", Role.NOBODY, self.ready, free=True),
            Route("GET", "/metrics", Role.READ, self.metrics),
            Route("GET", "/telemetry", Role.READ, self.telemetry),
            Route("GET", "/openapi.json", Role.READ, self.openapi),
            Route("GET", "/issues", Role.READ, self.issues),
            Route("DELETE", "/issues", Role.FULL, self.clear_issues),
        ]

    async def root(self, request: Request) -> Reply:
        # Clients compare this version with their own; Shoal's own is in the commit and in /telemetry.
        body = {"title": "shoal - vector search", "version": QDRANT_VERSION, "commit": f"shoal-{VERSION}"}
        return Reply(raw=msgspec.json.encode(body))

    async def alive(self, request: Request) -> Reply:
        return Reply(raw=b"healthz check passed", content_type=_TEXT)

    async def ready(self, request: Request) -> Reply:
        node = self._page.node()
        if not node.flags & NodeFlag.READY:
            return Reply(raw=b"not ready: shards are being opened", content_type=_TEXT, status=503)
        if node.flags & NodeFlag.STOPPING:
            return Reply(raw=b"not ready: stopping", content_type=_TEXT, status=503)
        # Ready all the same: the other collections are served, and taking the node away heals nothing.
        damaged = len(self._damaged())
        if not damaged:
            return Reply(raw=b"all shards are ready", content_type=_TEXT)
        counted = "1 shard is" if damaged == 1 else f"{damaged} shards are"
        return Reply(raw=f"ready, but {counted} damaged: see /issues".encode(), content_type=_TEXT)

    async def metrics(self, request: Request) -> Reply:
        parts = [self._page.metrics(place) for place in range(PROCESSES_MAX)]
        text = render(parts, _HELPS, self._gauges())
        return Reply(raw=text.encode(), content_type=_TEXT)

    async def telemetry(self, request: Request) -> Reply:
        await self._serving.current()
        started = datetime.fromtimestamp(self._started, UTC).isoformat()
        result = {
            "id": self._serving.cluster_uuid,
            "app": {"name": "shoal", "version": VERSION, "startup": started},
            "collections": {"number_of_collections": len(self._serving.collections())},
            "cluster": {"enabled": True},
        }
        return Reply(msgspec.json.encode(result))

    async def openapi(self, request: Request) -> Reply:
        if self._description is None:
            self._description = msgspec.json.encode(document())
        return Reply(raw=self._description)

    async def issues(self, request: Request) -> Reply:
        description = {"description": "damaged file, see the store's log", "solution": "refactor"}
        found = [{"id": f"shard/{name}/{number}", **description} for name, number in self._damaged()]
        return Reply(msgspec.json.encode({"issues": found}))

    async def clear_issues(self, request: Request) -> Reply:
        return Reply(b"true")

    def _damaged(self) -> list[tuple[str, int]]:
        """Collection and number of each shard here that is refused."""
        return [
            (collection.name, shard.number)
            for collection in self._serving.collections()
            for shard in collection.shards
            if shard.record().flags & ShardFlag.DAMAGED
        ]

    def _gauges(self) -> dict[str, float]:
        """What is measured at the scrape: shards, processes, disk."""
        node = self._page.node()
        found: dict[str, float] = {
            "shoal_map_epoch": node.epoch,
            "shoal_writes_refused_disk": float(bool(node.flags & NodeFlag.DISK_LOW)),
            "shoal_writes_refused_memory": float(bool(node.flags & NodeFlag.MEMORY_LOW)),
            "shoal_disk_free_bytes": shutil.disk_usage(".").free,
            "shoal_collections": len(self._serving.collections()),
        }
        for collection in self._serving.collections():
            for shard in collection.shards:
                record = shard.record()
                labels = {"collection": collection.name, "shard": str(shard.number)}
                for name, value in (
                    ("points", record.points),
                    ("slots", record.slot_high - record.slot_low),
                    ("tail_slots", record.slot_high - max(record.built, record.slot_low)),
                    ("applied_seq", record.applied),
                    ("damaged", bool(record.flags & ShardFlag.DAMAGED)),
                    ("building", bool(record.flags & ShardFlag.BUILDING)),
                ):
                    found[key_of(f"shoal_shard_{name}", labels)] = float(value)
        for name, resident in self._processes():
            found[key_of("shoal_process_resident_bytes", {"process": name})] = resident
        return found

    def _processes(self) -> list[tuple[str, int]]:
        names = {MAIN: "main", STORE: "store", BUILDER: "builder"}
        found: list[tuple[str, int]] = []
        for place in range(PROCESSES_MAX):
            pid = self._page.process(place).pid
            if pid:
                try:
                    found.append(
                        (
                            names.get(place, f"front-{place - FIRST_FRONT}"),
                            psutil.Process(pid).memory_info().rss,
                        )
                    )
                except psutil.NoSuchProcess:
                    continue  # it ended since its last tick
        return found
