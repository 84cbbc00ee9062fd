"""The link's calls about settings: read them, with their history, and change them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from agent.link import Answer, Handler, Header
from agent.store.settings import SettingsStore
from core.api.decode import decode
from core.errors import BadRequest


class ChangeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PATCH: null takes a setting back to its default."""

    values: dict[str, Any]
    why: str = ""
    version: int | None = None
    """Only if the settings are at this version still."""


class SettingsCalls:
    """`changed` is awaited after each change, before it is answered."""

    def __init__(self, store: SettingsStore, changed: Callable[[], Awaitable[None]]) -> None:
        self._store, self._changed = store, changed

    def handlers(self) -> Mapping[str, Handler]:
        return {"settings.get": self._get, "settings.change": self._change, "settings.history": self._history}

    async def _get(self, header: Header, body: bytes, deadline: float) -> Answer:
        return {"version": self._store.version}, msgspec.json.encode(self._store.current)

    async def _change(self, header: Header, body: bytes, deadline: float) -> Answer:
        request = decode(ChangeSettings, body)
        if not request.values:
            raise BadRequest("values: no setting is named; see GET /shoal/v1/settings for what there is")
        version = await self._store.change(
            request.values, who=header["who"], why=request.why, version=request.version
        )
        await self._changed()
        return {}, msgspec.json.encode({"version": version})

    async def _history(self, header: Header, body: bytes, deadline: float) -> Answer:
        return {}, msgspec.json.encode({"changes": await self._store.history()})
