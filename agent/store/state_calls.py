"""The StateStore for consoles: they read and write the keys of the cluster through any node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from agent.link import Answer, Handler, Header
from agent.store.state.port import StateStore, VersionConflict, Versioned
from core.errors import BadRequest, DeadlineExceeded

KEY_BYTES_MAX = 200
VALUE_BYTES_MAX = 1 << 20


class _Key(msgspec.Struct, frozen=True):
    key: str


class _Cas(msgspec.Struct, frozen=True):
    key: str
    version: int
    delete: bool = False


class _Prefix(msgspec.Struct, frozen=True):
    prefix: str


class _Watch(msgspec.Struct, frozen=True):
    key: str
    after: int


class StateCalls:
    """Serves `state.*` to consoles."""

    def __init__(self, state: StateStore) -> None:
        self._state = state

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "state.read": self._read,
            "state.cas": self._cas,
            "state.list": self._list,
            "state.watch": self._watch,
        }

    async def _read(self, header: Header, body: bytes, deadline: float) -> Answer:
        return _found(await self._state.read(_checked(msgspec.convert(header, _Key).key)))

    async def _cas(self, header: Header, body: bytes, deadline: float) -> Answer:
        asked = msgspec.convert(header, _Cas)
        key = _checked(asked.key)
        if len(body) > VALUE_BYTES_MAX:
            raise BadRequest(f"{key}: a value of {len(body)} bytes is over {VALUE_BYTES_MAX}")
        if asked.delete:
            answer = await self._state.delete(key, asked.version)
        else:
            answer = await self._state.compare_and_set(key, asked.version, body)
        if isinstance(answer, VersionConflict):
            told, value = _found(answer.current)
            return {"conflict": told["version"], "none": told["none"]}, value
        return {"version": answer}, b""

    async def _list(self, header: Header, body: bytes, deadline: float) -> Answer:
        found = await self._state.list(msgspec.convert(header, _Prefix).prefix)
        return {"items": [[key, one.version, one.value] for key, one in found.items()]}, b""

    async def _watch(self, header: Header, body: bytes, deadline: float) -> Answer:
        asked = msgspec.convert(header, _Watch)
        try:
            async with asyncio.timeout_at(deadline):
                return _found(await self._state.watch(_checked(asked.key), asked.after))
        except TimeoutError:
            raise DeadlineExceeded(f"{asked.key} is still at version {asked.after}") from None


def _found(found: Versioned) -> Answer:
    return {"version": found.version, "none": found.value is None}, found.value or b""


def _checked(key: str) -> str:
    if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
        raise BadRequest(f"a key of {len(key)} characters; up to {KEY_BYTES_MAX} bytes are possible")
    return key
