"""Handlers of Shoal's own API for the settings of the cluster."""

from __future__ import annotations

import msgspec

from agent.front.access import Role
from agent.front.routes import Reply, Request, Route
from agent.front.serving import Serving
from agent.link import Client


class SettingsHandlers:
    """GET and PATCH /shoal/v1/settings, and their history."""

    def __init__(self, link: Client, serving: Serving) -> None:
        self._link, self._serving = link, serving

    def routes(self) -> list[Route]:
        path = "/shoal/v1/settings"
        return [
            Route("GET", path, Role.READ, self.show),
            Route("PATCH", path, Role.ADMIN, self.change),
            Route("GET", f"{path}/history", Role.READ, self.history),
        ]

    async def show(self, request: Request) -> Reply:
        await self._serving.current()
        version, settings = self._serving.settings_version, self._serving.settings
        return Reply(msgspec.json.encode({"version": version, "values": settings}))

    async def change(self, request: Request) -> Reply:
        header = {"who": request.key_name}
        _, result = await self._link.call("settings.change", header, request.body, timeout_s=request.left_s())
        await self._serving.refresh()
        return Reply(result)

    async def history(self, request: Request) -> Reply:
        _, result = await self._link.call("settings.history", {}, timeout_s=request.left_s())
        return Reply(result)
