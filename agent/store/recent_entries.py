"""The log's newest entries in memory: what is applied or sent seldom has to be read from its files."""

from __future__ import annotations

from typing import NamedTuple

from core.replication.log import Entry
from core.wire import Op


class Logged(NamedTuple):
    """An entry, and its operation if that is there decoded."""

    entry: Entry
    op: Op | None = None


class RecentEntries:
    """A run without gaps that ends with the log. Beyond `bytes_max` the oldest go, applied or not."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._by_seq: dict[int, Logged] = {}
        self._first = 1
        self._bytes = 0

    @property
    def bytes(self) -> int:
        return self._bytes

    def add(self, logged: Logged) -> None:
        seq = logged.entry.seq
        if seq != self._first + len(self._by_seq):
            self.clear()
            self._first = seq
        self._by_seq[seq] = logged
        self._bytes += len(logged.entry.op)
        while self._bytes > self._bytes_max and len(self._by_seq) > 1:
            self._drop_first()

    def get(self, seq: int) -> Logged | None:
        return self._by_seq.get(seq)

    def run(self, first_seq: int, last_seq: int) -> tuple[Entry, ...] | None:
        """All of these, or None."""
        if first_seq not in self._by_seq or last_seq not in self._by_seq:
            return None
        return tuple(self._by_seq[seq].entry for seq in range(first_seq, last_seq + 1))

    def truncate(self, after_seq: int) -> None:
        """The log lost its end."""
        seq = self._first + len(self._by_seq) - 1
        while self._by_seq and seq > after_seq:
            self._bytes -= len(self._by_seq.pop(seq).entry.op)
            seq -= 1

    def let_go(self, through_seq: int, keep_bytes: int) -> None:
        """Of those up to `through_seq` only the newest are still needed: so many bytes of them."""
        while self._by_seq and self._first <= through_seq and self._bytes > keep_bytes:
            self._drop_first()

    def clear(self) -> None:
        self._by_seq.clear()
        self._bytes = 0

    def _drop_first(self) -> None:
        self._bytes -= len(self._by_seq.pop(self._first).entry.op)
        self._first += 1
