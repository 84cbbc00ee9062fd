"""A shard with its ports, in this process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.page import Page, ShardPlaces, ShardRecord
from agent.store.files import Files
from agent.store.manifest import ShardSchema
from agent.store.shard import Shard, ShardPorts, ShardSettings
from core.wire import Op, Outcome
from net.logs import log_to
from tests.storing.contents import SCHEMA, Points, read_points


class Bench:
    """Opens one shard, again and again."""

    def __init__(
        self, folder: Path, files: Files | None = None, schema: ShardSchema = SCHEMA, **settings: Any
    ) -> None:
        self.folder = folder
        self.page = Page.make()
        self.executor = ThreadPoolExecutor(4)
        self.logged = io.StringIO()
        self.schema = schema
        self.settings = ShardSettings(**{"purge_after_s": 0.0, "checkpoint_every_s": 3600.0, **settings})
        self.ports = ShardPorts(
            self.page, ShardPlaces(self.page), self.executor, log_to(self.logged), files or Files()
        )

    @asynccontextmanager
    async def shard(self, *, checkpoint: bool = True, create: bool | None = None) -> AsyncIterator[Shard]:
        """The shard, made if it is not there; closed afterwards, without a checkpoint if so wanted."""
        if create is None:
            create = not (self.folder / "log").exists()
        begin = Shard.create if create else Shard.open
        shard = await begin(
            self.folder, collection=7, shard=0, schema=self.schema, ports=self.ports, settings=self.settings
        )
        try:
            yield shard
        finally:
            await shard.close(checkpoint=checkpoint)

    @property
    def record(self) -> ShardRecord:
        return self.page.shard(0)

    def points(self) -> Points:
        return read_points(self.folder, self.record)

    def close(self) -> None:
        self.executor.shutdown()


async def write(shard: Shard, op: Op, **options: Any) -> Outcome:
    """A write with ten seconds to live."""
    return await shard.write(op, deadline_s=asyncio.get_running_loop().time() + 10, **options)
