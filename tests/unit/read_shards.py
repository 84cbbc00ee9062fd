"""A shard written by the real store code, and its reader, for tests of the read side."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.front.reader import ShardReader
from agent.page import Page, ShardPlaces
from agent.store.manifest import ColumnParams, GraphKind, ShardSchema, VectorParams
from agent.store.shard import Shard, ShardPorts, ShardSettings
from core.api.config import Distance
from core.hashing import id_key
from core.payload import parse_path
from core.tokens import DEFAULT_TEXT
from core.wire import Delete, Op, OverwritePayload, Rows, Upsert
from net.logs import log_to

F32 = NDArray[np.float32]
LOG = log_to(sys.stderr, level="error")
LONG_TAILS = ShardSettings(tail_rows_max=10**9, checkpoint_bytes_min=8 << 20)


def schema(
    *,
    dim: int = 8,
    distance: Distance = Distance.COSINE,
    graph: GraphKind = "i8",
    columns: dict[str, str] | None = None,
) -> ShardSchema:
    """One vector, number 0; columns: path → type, numbered from 1."""
    return ShardSchema(
        version=1,
        vectors={0: VectorParams(dim=dim, distance=distance, graph=graph)},
        columns={k: ColumnParams(path, kind) for k, (path, kind) in enumerate((columns or {}).items(), 1)},
    )


class Written:
    """A shard under test: `write` as the store does, `reader` as a front does."""

    def __init__(self, shard: Shard, page: Page, folder: Path, names: Mapping[str, int]) -> None:
        self.shard, self.page, self.folder = shard, page, folder
        self.texts = [c.path for c in shard.schema.columns.values() if c.type == "text"]
        self.reader = ShardReader(folder, page, 0)
        self.reader.names = names
        self.reader.bitmaps.set_schema(
            {parse_path(path): DEFAULT_TEXT for path in self.texts}, self.reader.names
        )

    async def write(self, op: Op) -> None:
        await self.shard.write(op, deadline_s=asyncio.get_running_loop().time() + 30)

    async def upsert(
        self, ids: Sequence[int | str], rows: F32, payloads: Sequence[dict[str, Any]] | None = None
    ) -> None:
        await self.write(
            Upsert(
                keys(ids),
                (Rows(0, rows.shape[1], np.ascontiguousarray(rows, np.float32).tobytes()),),
                tuple(msgspec.json.encode(p) for p in payloads) if payloads else (b"",) * len(ids),
            )
        )

    async def delete(self, ids: Sequence[int | str]) -> None:
        await self.write(Delete(keys(ids)))

    async def overwrite(self, ids: Sequence[int | str], payload: dict[str, Any]) -> None:
        await self.write(OverwritePayload(keys(ids), None, msgspec.json.encode(payload)))


def keys(ids: Sequence[int | str]) -> bytes:
    return b"".join(id_key(i) for i in ids)


@asynccontextmanager
async def written_shard(
    folder: Path,
    wanted: ShardSchema,
    *,
    names: Mapping[str, int] | None = None,
    purge_after_s: float = 10.0,
) -> AsyncIterator[Written]:
    page = Page.make()
    with ThreadPoolExecutor(4) as executor:
        ports = ShardPorts(page, ShardPlaces(page), executor, LOG)
        settings = msgspec.structs.replace(LONG_TAILS, purge_after_s=purge_after_s)
        shard = await Shard.create(
            folder, collection=1, shard=0, schema=wanted, ports=ports, settings=settings
        )
        written = Written(shard, page, folder, names or {})
        try:
            yield written
        finally:
            written.reader.close()
            await shard.close()
