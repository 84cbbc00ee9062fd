"""Handlers about collections: changes go to the store, answers come from the map."""

from __future__ import annotations

import msgspec

from agent.front.access import Role
from agent.front.routes import Handler, Reply, Request, Route, check_choice, flag
from agent.front.serving import Serving
from agent.link import Client
from core.consistency import ORDERINGS


class Collections:
    """What is in the map of the cluster, and the calls that change it."""

    def __init__(self, link: Client, serving: Serving) -> None:
        self._link, self._serving = link, serving

    def routes(self) -> list[Route]:
        one = "/collections/*"
        return [
            Route("GET", "/collections", Role.READ, self.names),
            Route("GET", one, Role.READ, self.show),
            Route("GET", f"{one}/exists", Role.READ, self.exists),
            Route("GET", f"{one}/aliases", Role.READ, self.aliases_of),
            Route("GET", "/aliases", Role.READ, self.aliases),
            Route("GET", f"{one}/optimizations", Role.READ, self.optimizations),
            Route("PUT", one, Role.FULL, self._change("collection.create")),
            Route("PATCH", one, Role.FULL, self._change("collection.update")),
            Route("DELETE", one, Role.FULL, self._change("collection.delete")),
            Route("POST", "/collections/aliases", Role.FULL, self._change("aliases.change")),
            Route("PUT", f"{one}/index", Role.FULL, self._change("index.put")),
            Route("DELETE", f"{one}/index/*", Role.FULL, self._change("index.delete")),
            Route("PUT", f"{one}/vectors/*", Role.FULL, self._change("vector.put")),
            Route("DELETE", f"{one}/vectors/*", Role.FULL, self._change("vector.delete")),
        ]

    def _change(self, kind: str) -> Handler:
        async def change(request: Request) -> Reply:
            flag(request.query, "wait")  # what is answered is done, either way
            check_choice(request.query, "ordering", ORDERINGS)
            header = {"path": request.parameters, "query": dict(request.query), "who": request.key_name}
            _, result = await self._link.call(kind, header, request.body, timeout_s=request.left_s())
            # What was answered must be seen by the client's next call: here now, elsewhere by the epoch.
            await self._serving.refresh()
            return Reply(result)

        return change

    async def names(self, request: Request) -> Reply:
        await self._serving.current()
        found = [{"name": name} for name in sorted(self._serving.names())]
        return Reply(msgspec.json.encode({"collections": found}))

    async def show(self, request: Request) -> Reply:
        collection = await self._serving.collection(request.parameters[0])
        answer = await collection.describe(self._serving.others, request.left_s())
        return Reply(msgspec.json.encode(answer))

    async def exists(self, request: Request) -> Reply:
        await self._serving.current()
        return Reply(b'{"exists":true}' if self._serving.has(request.parameters[0]) else b'{"exists":false}')

    async def aliases_of(self, request: Request) -> Reply:
        collection = await self._serving.collection(request.parameters[0])
        return Reply(msgspec.json.encode(self._serving.aliases(collection.name)))

    async def aliases(self, request: Request) -> Reply:
        await self._serving.current()
        return Reply(msgspec.json.encode(self._serving.aliases(None)))

    async def optimizations(self, request: Request) -> Reply:
        collection = await self._serving.collection(request.parameters[0])
        return Reply(msgspec.json.encode(collection.optimizations()))
