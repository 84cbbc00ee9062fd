"""Changes of collections that fronts hand on: parsed, CASed by the catalogue, answered when visible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agent.link import Answer, Handler, Header
from agent.store.catalogue import Catalogue
from agent.store.guards import Guards
from core.api.checks import Limits
from core.api.collections import (
    ChangeAliases,
    CreateCollection,
    UpdateCollection,
    parse_aliases,
    parse_create,
    parse_update,
)
from core.api.decode import decode
from core.api.indexes import CreateIndex, CreateVector, parse_index, parse_vector
from core.cluster import ClusterView, named
from core.cluster_changes import check_new_name

Change = Callable[[list[str], bytes, str], Awaitable[bool]]


class Changes:
    """Serves the kinds that change the map. Each handler answers the encoded result of the API."""

    def __init__(self, catalogue: Catalogue, guards: Guards, limits: Callable[[], Limits]) -> None:
        self._catalogue, self._guards, self._limits = catalogue, guards, limits

    def handlers(self) -> dict[str, Handler]:
        found: dict[str, Change] = {
            "collection.create": self.create,
            "collection.update": self.update,
            "collection.delete": self.delete,
            "aliases.change": self.aliases,
        }
        return {kind: self._handler(change) for kind, change in found.items()} | {
            "index.put": self.put_index,
            "index.delete": self.delete_index,
            "vector.put": self.put_vector,
            "vector.delete": self.delete_vector,
        }

    def _handler(self, change: Change) -> Handler:
        async def handle(header: Header, body: bytes, deadline: float) -> Answer:
            done = await change(header["path"], body, header["who"])
            return {}, b"true" if done else b"false"

        return handle

    @property
    def _view(self) -> ClusterView:
        return self._catalogue.view

    async def create(self, path: list[str], body: bytes, who: str) -> bool:
        check_new_name(self._view.map, path[0])
        params = parse_create(decode(CreateCollection, body), self._limits())
        self._guards.admit(params.shard_number << 20)  # logs and databases are preallocated
        await self._catalogue.create_collection(path[0], params, who=who)
        return True

    async def update(self, path: list[str], body: bytes, who: str) -> bool:
        request = decode(UpdateCollection, body)
        parse_update(request, named(self._view.map, path[0]).params)
        await self._catalogue.update_collection(path[0], request, who=who)
        return True

    async def delete(self, path: list[str], body: bytes, who: str) -> bool:
        return await self._catalogue.delete_collection(path[0], who=who)

    async def aliases(self, path: list[str], body: bytes, who: str) -> bool:
        await self._catalogue.set_aliases(parse_aliases(decode(ChangeAliases, body), self._limits()), who=who)
        return True

    async def put_vector(self, header: Header, body: bytes, deadline: float) -> Answer:
        name, vector = header["path"]
        named(self._view.map, name)
        params = parse_vector(vector, decode(CreateVector, body), self._limits())
        await self._catalogue.put_vector(name, vector, params, who=header["who"])
        return {}, self._operation(header)

    async def delete_vector(self, header: Header, body: bytes, deadline: float) -> Answer:
        name, vector = header["path"]
        await self._catalogue.delete_vector(name, vector, who=header["who"])
        return {}, self._operation(header)

    async def put_index(self, header: Header, body: bytes, deadline: float) -> Answer:
        name = header["path"][0]
        named(self._view.map, name)
        index = parse_index(decode(CreateIndex, body))
        await self._catalogue.put_index(name, index, who=header["who"])
        return {}, self._operation(header)

    async def delete_index(self, header: Header, body: bytes, deadline: float) -> Answer:
        name, field = header["path"]
        await self._catalogue.delete_index(name, field, who=header["who"])
        return {}, self._operation(header)

    def _operation(self, header: Header) -> bytes:
        """Answered like writes of points; the map's epoch stands for the operation's number."""
        status = b"completed" if header["query"].get("wait") in ("true", "1") else b"acknowledged"
        return b'{"operation_id":%d,"status":"%s"}' % (self._catalogue.epoch, status)
