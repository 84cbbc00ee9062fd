"""How long acknowledgements are held back, so that writers go no faster than the builder."""

from __future__ import annotations

ROWS_PER_S = 2_000.0
"""What all writers of a shard together get when the tail is one bound over its bound."""
EXCESS_ROWS = 8_000.0
HOLD_MAX_S = 5.0
UNSEARCHED_BYTES = 64 << 20
"""Of vectors in no graph, while nobody searches: the first search then takes some milliseconds, for as long
as the builder needs to catch up. Until then processors that would wait for the builder take writes."""


def tail_bound(rows_max: int, row_bytes: int, *, searched: bool) -> int:
    """How long the tail may be before acknowledgements slow down."""
    return rows_max if searched else max(rows_max, UNSEARCHED_BYTES // max(1, row_bytes))


class Pacing:
    """A clock of rows: each held write moves it on, the faster the longer the tail is."""

    def __init__(self) -> None:
        self._free_s = 0.0
        self.delay_s = 0.0
        """What the last write was held back by."""

    def hold_until(self, now_s: float, rows: int, excess_rows: int) -> float:
        """When a write of `rows` may be acknowledged, with the tail `excess_rows` over its bound."""
        if excess_rows <= 0:
            self._free_s = self.delay_s = 0.0
            return now_s
        cost_s = excess_rows / EXCESS_ROWS / ROWS_PER_S
        self._free_s = min(max(self._free_s, now_s) + rows * cost_s, now_s + HOLD_MAX_S)
        self.delay_s = self._free_s - now_s
        return self._free_s
