"""What queries need of one shard: a consistent look at its points, for the time of one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.filters import Filter

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bits = NDArray[np.bool_]


class ShardView(Protocol):
    """Synchronous. Points are named by slot inside a look, by id key (17 bytes) between looks."""

    def heed(self, check: Callable[[], None]) -> None:
        """Ask it now and then in long work: it raises when there is no time left."""

    def nearest(
        self, v: int, queries: F32, *, limit: int, ef: int | None, exact: bool, where: Filter | None
    ) -> list[tuple[I64, F32]]:
        """Per query (q, d) the slots and internal similarities s of at most `limit` live points.

        Best first, ties by id key. Queries come normalised for cosine.
        """

    def scan(self, where: Filter | None, *, v: int | None = None) -> I64:
        """All live slots that match (and have vector v), ascending."""

    def rows(self, v: int, slots: I64) -> F32:
        """(n, d), as stored."""

    def has(self, v: int, slots: I64) -> Bits:
        """Which of the slots have vector v."""

    def keys(self, slots: I64) -> list[bytes]:
        """Their id keys."""

    def slots(self, keys: Sequence[bytes]) -> I64:
        """Their live slots, -1 where there is none."""

    def payloads(self, slots: I64) -> list[bytes]:
        """JSON objects; b"" stands for {}."""

    def seqs(self, slots: I64) -> I64:
        """The seq of each point's last write: its "version"."""

    def page(self, after: bytes | None, limit: int, where: Filter | None, *, inclusive: bool = True) -> I64:
        """At most `limit` matching slots in id order, from this key on."""

    def count(self, where: Filter | None) -> int:
        """How many live points match."""

    def values(self, path: str, slots: I64) -> list[list[object]]:
        """The payload's values at the path, per slot; a list there counts by element."""
