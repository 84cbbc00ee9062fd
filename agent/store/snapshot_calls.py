"""Calls of fronts about snapshots. Those that take long may be answered before they are done (wait=false)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agent.link import Answer, Handler, Header
from agent.store.snapshot_folder import Scope
from agent.store.snapshots import Snapshots
from core.errors import ShoalError
from net.logs import Log

Call = Callable[[Scope, Header], Awaitable[Any]]


class SnapshotCalls:
    """Serves `snapshot.…`. Headers hold collection, shard, name, checksum, who and wait, as they apply."""

    def __init__(self, snapshots: Snapshots, log: Log) -> None:
        self._snapshots, self._log = snapshots, log
        self._behind: set[asyncio.Task[Any]] = set()

    def handlers(self) -> dict[str, Handler]:
        calls: dict[str, Call] = {
            "snapshot.list": self._list,
            "snapshot.make": self._make,
            "snapshot.delete": self._delete,
            "snapshot.find": self._find,
            "snapshot.recover": self._recover,
            "snapshot.upload": self._upload,
        }
        return {kind: self._handler(kind, call) for kind, call in calls.items()}

    def _handler(self, kind: str, call: Call) -> Handler:
        async def handle(header: Header, body: bytes, deadline: float) -> Answer:
            scope = Scope(header.get("collection"), header.get("shard"))
            if header.get("wait", True):
                return {}, msgspec.json.encode(await call(scope, header))
            task = asyncio.create_task(self._log_failure(kind, call(scope, header)))
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)
            return {}, b"null"

        return handle

    async def _log_failure(self, kind: str, work: Awaitable[Any]) -> None:
        """Nobody waits for it, so the log is who is told."""
        try:
            await work
        except ShoalError as error:
            self._log.error("snapshot.failed", kind=kind, code=error.code, text=str(error))

    async def close(self) -> None:
        await asyncio.gather(*self._behind, return_exceptions=True)

    async def _list(self, scope: Scope, header: Header) -> Any:
        return await self._snapshots.list(scope)

    async def _make(self, scope: Scope, header: Header) -> Any:
        return await self._snapshots.make(scope)

    async def _delete(self, scope: Scope, header: Header) -> bool:
        await self._snapshots.delete(scope, header["name"])
        return True

    async def _find(self, scope: Scope, header: Header) -> str:
        """Where the file is, for a front that sends it; relative to the data folder."""
        return str(await self._snapshots.path(scope, header["name"]))

    async def _recover(self, scope: Scope, header: Header) -> bool:
        await self._snapshots.recover(
            scope, header["name"], checksum=header.get("checksum"), who=header["who"]
        )
        return True

    async def _upload(self, scope: Scope, header: Header) -> bool:
        await self._snapshots.recover_upload(
            scope, header["name"], checksum=header.get("checksum"), who=header["who"]
        )
        return True
