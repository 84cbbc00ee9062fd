"""The requests that a replica remembers, so that a retry meets its own entry and gets the same answer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from core.errors import Overloaded, Unprocessable
from core.wire import Outcome

COUNT_MIN = 10_000
KEEP_US = 120_000_000
COUNT_MAX = 100_000
"""Some tens of megabytes. Rather than to forget one that may be repeated, no more are taken."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """One operation of a request; `outcome` is None until it is applied."""

    request_id: bytes
    number: int
    body_hash: bytes
    seq: int
    time_us: int
    outcome: Outcome | None = None


class RecentRequests:
    """Remembers requests in log order. One goes only when past both bounds: how many follow, and log time."""

    def __init__(
        self, *, count_min: int = COUNT_MIN, keep_us: int = KEEP_US, count_max: int = COUNT_MAX
    ) -> None:
        self._count_min = count_min
        self._count_max = count_max
        self._keep_us = keep_us
        self._by_id: dict[tuple[bytes, int], Remembered] = {}
        self._in_order: deque[tuple[int, bytes, int]] = deque()
        self._unanswered: dict[int, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, request_id: bytes, number: int, body_hash: bytes) -> Remembered | None:
        """The entry that this request already has. Raises Unprocessable if it came with another body."""
        found = self._by_id.get((request_id, number))
        if found is not None and found.body_hash != body_hash:
            raise Unprocessable(
                "Idempotency-Key: this key was used for a request with another body; use a new key"
            )
        return found

    def admit(self, now_us: int) -> None:
        """Whether one more can be remembered. Raises Overloaded."""
        if len(self._in_order) < self._count_max:
            return
        self._forget_old(now_us)
        if len(self._in_order) >= self._count_max:
            oldest = self._by_id[self._in_order[0][1:]]
            wait_s = max(1, (oldest.time_us + self._keep_us - now_us) // 1_000_000 + 1)
            raise Overloaded(
                f"Idempotency-Key: {len(self._in_order)} operations with a key came to this shard within "
                f"{self._keep_us // 1_000_000} s, the most it remembers; retry later, or write without keys",
                retry_after_s=wait_s,
            )

    def remember(self, request: Remembered) -> None:
        key = (request.request_id, request.number)
        self._by_id[key] = request
        self._in_order.append((request.seq, *key))
        if request.outcome is None:
            self._unanswered[request.seq] = key
        self._forget_old(request.time_us)

    def answer(self, seq: int, outcome: Outcome) -> None:
        """The entry was applied; nothing happens if it had no request id."""
        key = self._unanswered.pop(seq, None)
        if key is not None:
            self._by_id[key] = replace(self._by_id[key], outcome=outcome)

    def truncate(self, after_seq: int) -> None:
        """The log lost its entries after `after_seq`, and with them the requests."""
        while self._in_order and self._in_order[-1][0] > after_seq:
            seq, request_id, number = self._in_order.pop()
            del self._by_id[request_id, number]
            self._unanswered.pop(seq, None)

    @property
    def oldest_seq(self) -> int | None:
        """From where on requests are remembered, or None if there are none."""
        return self._in_order[0][0] if self._in_order else None

    def _forget_old(self, now_us: int) -> None:
        while len(self._in_order) > self._count_min:
            _, request_id, number = self._in_order[0]
            oldest = self._by_id[request_id, number]
            if oldest.time_us + self._keep_us >= now_us or oldest.outcome is None:
                return
            self._in_order.popleft()
            del self._by_id[request_id, number]
