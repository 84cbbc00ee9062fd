"""The settings in the register: the key `settings`, and `settings/<version>` for their history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agent.store.state.port import StateStore, VersionConflict, Versioned
from core.errors import Conflict, Damaged
from core.settings import Settings, changed, difference, settings_of

KEY = "settings"
HISTORY_MAX = 1_000


class Change(Struct, frozen=True):
    """Who changed what, when and why. `diff`: name → before, after."""

    version: int
    time_us: int
    who: str
    why: str
    diff: dict[str, tuple[Any, Any]]


class Stored(Struct, frozen=True):
    """The value of the key. It carries its own change: a crash before the history's CAS loses nothing."""

    version: int = 0
    values: dict[str, Any] = {}
    last: Change | None = None


class SettingsStore:
    """Settings of the cluster as this agent last saw them."""

    def __init__(self, state: StateStore, now_us: Callable[[], int]) -> None:
        self._state, self._now_us = state, now_us
        self._stored = Stored()
        self._settings = Settings()
        self._key_version = 0
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, state: StateStore, *, now_us: Callable[[], int]) -> SettingsStore:
        """Raises Damaged if what is stored can't be used."""
        store = cls(state, now_us)
        await store._look()
        await store._keep_history()
        return store

    @property
    def current(self) -> Settings:
        return self._settings

    @property
    def version(self) -> int:
        return self._stored.version

    @property
    def values(self) -> Mapping[str, Any]:
        """Those that were given; all others have their defaults."""
        return self._stored.values

    async def change(
        self, change: Mapping[str, Any], *, who: str, why: str, version: int | None = None
    ) -> int:
        """The new version (the old one, if nothing differs). With `version`, only if that is the current one.

        Raises BadRequest, and Conflict if somebody else was first.
        """
        async with self._turn:
            await self._look()
            await self._keep_history()  # of a change whose own attempt failed
            while True:
                old = self._stored
                if version is not None and version != old.version:
                    raise Conflict(
                        f"settings are at version {old.version}, this change is of {version}: look again"
                    )
                values = changed(old.values, change)
                diff = difference(old.values, values)
                if not diff and values == old.values:
                    return old.version
                last = Change(old.version + 1, self._now_us(), who, why, diff)
                new = Stored(old.version + 1, values, last)
                answer = await self._state.compare_and_set(KEY, self._key_version, msgspec.json.encode(new))
                if isinstance(answer, VersionConflict):
                    self._take(answer.current)
                    continue
                self._stored, self._settings, self._key_version = new, settings_of(values), answer
                await self._keep_history()
                return new.version

    async def take_up(self) -> bool:
        """Reads the settings, which another node may have changed. Whether they are others now."""
        async with self._turn:
            before = self._stored.version
            await self._look()
            return self._stored.version != before

    def is_behind(self, key_version: int) -> bool:
        """Whether the key `settings` has been seen at a later version."""
        return key_version > self._key_version

    async def history(self) -> list[Change]:
        """The last changes, newest first."""
        found = await self._state.list(f"{KEY}/")
        changes = [msgspec.json.decode(v.value or b"", type=Change) for v in found.values()]
        return sorted(changes, key=lambda c: -c.version)

    async def _look(self) -> None:
        self._take(await self._state.read(KEY))

    def _take(self, found: Versioned) -> None:
        try:
            stored = msgspec.json.decode(found.value, type=Stored) if found.value is not None else Stored()
        except msgspec.DecodeError as e:
            raise Damaged(f"settings in the register, version {found.version}, cannot be read: {e}") from None
        # A setting of a newer version that this one does not know must not stop the start.
        known = {name: v for name, v in stored.values.items() if name in Settings.__struct_fields__}
        self._settings = settings_of(known)
        self._stored, self._key_version = stored, found.version

    async def _keep_history(self) -> None:
        last = self._stored.last
        if last is None:
            return
        key = f"{KEY}/{last.version}"
        there = await self._state.read(key)
        if there.value is None:
            await self._state.compare_and_set(key, there.version, msgspec.json.encode(last))
        oldest = f"{KEY}/{last.version - HISTORY_MAX}"
        found = await self._state.read(oldest)
        if found.value is not None:
            await self._state.delete(oldest, found.version)
