"""Handlers about the cluster: answered from the map; what can't be done is refused in words."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import NoReturn

import msgspec
import psutil

from agent.front.access import Role
from agent.front.routes import Reply, Request, Route
from agent.front.serving import Serving
from agent.link import Client
from core import cluster_answers
from core.cluster import NodeId
from core.errors import NotSupported


class Cluster:
    """/cluster and what hangs below it."""

    def __init__(self, link: Client, serving: Serving, node: str, scheme: str) -> None:
        self._link, self._serving, self._node, self._scheme = link, serving, NodeId(node), scheme

    def routes(self) -> list[Route]:
        one = "/collections/*"
        return [
            Route("GET", "/cluster", Role.READ, self.show),
            Route("GET", "/cluster/telemetry", Role.READ, self.telemetry),
            Route("POST", "/cluster/recover", Role.ADMIN, self.recover),
            Route("DELETE", "/cluster/peer/*", Role.ADMIN, self.remove_peer),
            Route("GET", f"{one}/cluster", Role.READ, self.show_collection),
            Route("POST", f"{one}/cluster", Role.ADMIN, self.change_shards),
            Route("GET", f"{one}/shards", Role.READ, self.shard_keys),
            Route("PUT", f"{one}/shards", Role.FULL, self.refuse_shard_key),
            Route("POST", f"{one}/shards/delete", Role.FULL, self.refuse_shard_key),
            Route("GET", "/quotas", Role.READ, self.quotas),
            Route("PUT", "/quotas", Role.ADMIN, self.set_quotas),
        ]

    async def show(self, request: Request) -> Reply:
        await self._serving.current()
        now = datetime.now(UTC).isoformat()
        answer = cluster_answers.cluster_answer(self._serving.view, self._node, scheme=self._scheme, now=now)
        return Reply(msgspec.json.encode(answer))

    async def show_collection(self, request: Request) -> Reply:
        served = await self._serving.collection(request.parameters[0])
        points = {shard.number: shard.record().points for shard in served.shards}
        answer = cluster_answers.collection_cluster_answer(
            self._serving.view, served.name, self._node, points
        )
        return Reply(msgspec.json.encode(answer))

    async def telemetry(self, request: Request) -> Reply:
        await self._serving.current()
        view = self._serving.view
        answer = {
            "collections": {served.name: {"id": served.name} for served in self._serving.collections()},
            "cluster": {"enabled": True, "number_of_peers": len(view.map.nodes), "peers": {}},
        }
        return Reply(msgspec.json.encode(answer))

    async def recover(self, request: Request) -> Reply:
        return Reply(b"true")

    async def remove_peer(self, request: Request) -> NoReturn:
        await self._serving.current()
        if len(self._serving.map.nodes) == 1:
            raise NotSupported("peer_id: this cluster has one node, which cannot be removed")
        raise NotSupported("peer_id: removing a node from the cluster is not supported yet; stop it instead")

    async def change_shards(self, request: Request) -> Reply:
        header = {"collection": request.parameters[0]}
        _, result = await self._link.call("shards.change", header, request.body, timeout_s=request.left_s())
        await self._serving.refresh()
        return Reply(result)

    async def shard_keys(self, request: Request) -> Reply:
        await self._serving.collection(request.parameters[0])
        return Reply(b'{"shard_keys":[]}')

    async def refuse_shard_key(self, request: Request) -> NoReturn:
        raise NotSupported(
            "shard_key: points are placed by the hash of their id; custom sharding is not supported"
        )

    async def quotas(self, request: Request) -> Reply:
        disk, memory = shutil.disk_usage("."), psutil.virtual_memory()
        usage = {
            "resident_memory_percent": round(memory.percent),
            "disk_usage_percent": round(100 * disk.used / disk.total),
        }
        return Reply(msgspec.json.encode({"config": {"enabled": False}, "usage": usage, "peers": {}}))

    async def set_quotas(self, request: Request) -> NoReturn:
        raise NotSupported(
            "quotas: a node's cluster.toml says what it leaves free: disk_low_water, memory_low_water"
        )
