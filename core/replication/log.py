"""A shard's log as a replica reasons about it: entries, where terms begin, what matches."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from core.errors import InvariantBroken


class Position(NamedTuple):
    """Where a log ends. Compared by term first: of two logs the one with the larger position knows more."""

    term: int
    seq: int


START = Position(term=0, seq=0)
"""Before the first entry of every log."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation in the log, with what a replica needs to answer its retry."""

    term: int
    seq: int
    time_us: int
    """The primary's clock when it was appended, never less than the entry before: the log's own time."""
    op: bytes
    request_id: bytes = b""
    """Empty when nobody will ask again."""
    number: int = 0
    """Which operation of the request this is."""
    body_hash: bytes = b""
    schema: int = 0
    """The version of the schema that the operation was checked against."""

    @property
    def position(self) -> Position:
        return Position(self.term, self.seq)


class Log:
    """Which entries a replica has: a run of seqs after `base`, divided into terms."""

    __slots__ = ("_ends", "_term_starts", "_terms", "base", "last")

    def __init__(self, base: Position = START) -> None:
        self.base = base
        """What was cut away ends here."""
        self.last = base
        self._term_starts: list[int] = []
        self._terms: list[int] = []
        self._ends = array("q", [0])  # bytes of operations up to the base and to each entry, from anywhere

    def append(self, position: Position, size_bytes: int = 0) -> None:
        """Add the next entry. Raises InvariantBroken on a gap or a term that goes back."""
        if position.seq != self.last.seq + 1 or position.term < self.last.term:
            raise InvariantBroken(f"log ends at {self.last}, cannot go on with {position}")
        if not self._terms or position.term != self._terms[-1]:
            self._terms.append(position.term)
            self._term_starts.append(position.seq)
        self._ends.append(self._ends[-1] + size_bytes)
        self.last = position

    def term_at(self, seq: int) -> int | None:
        """The term of an entry, or None if the log does not have it."""
        if seq == self.base.seq:
            return self.base.term
        if not self.base.seq < seq <= self.last.seq:
            return None
        return self._terms[bisect_right(self._term_starts, seq) - 1]

    def position_at(self, seq: int) -> Position:
        """Raises InvariantBroken if the log does not have it."""
        term = self.term_at(seq)
        if term is None:
            raise InvariantBroken(f"log has ({self.base}, {self.last}], not seq {seq}")
        return Position(term, seq)

    def last_not_above(self, position: Position) -> Position | None:
        """The last entry whose term and seq are both at most these: where a walk back goes on.

        None if only what was cut away could be it.
        """
        seq = min(position.seq, self.last.seq)
        while seq > self.base.seq:
            at = bisect_right(self._term_starts, seq) - 1
            if self._terms[at] <= position.term:
                return Position(self._terms[at], seq)
            seq = self._term_starts[at] - 1
        found = self.base
        return found if found.seq <= position.seq and found.term <= position.term else None

    def bytes_after(self, seq: int) -> int:
        """How many bytes of operations the entries after `seq` have."""
        return self._ends[-1] - self._ends[max(seq - self.base.seq, 0)]

    def fit(self, first_seq: int, last_seq: int, *, entries_max: int, bytes_max: int) -> int:
        """The last seq of a message that begins with `first_seq`: at least one entry, however large."""
        before = self._ends[first_seq - self.base.seq - 1]
        by_bytes = self.base.seq + bisect_right(self._ends, before + bytes_max) - 1
        return max(first_seq, min(last_seq, first_seq + entries_max - 1, by_bytes))

    def matches(self, previous: Position) -> bool:
        """Whether entries that follow `previous` may be appended, after what conflicts is cut off."""
        return self.term_at(previous.seq) == previous.term

    def truncate(self, after_seq: int) -> None:
        """Forget the entries after `after_seq`."""
        term = self.term_at(after_seq)
        if term is None:
            raise InvariantBroken(f"log has ({self.base}, {self.last}], cannot end at {after_seq}")
        while self._term_starts and self._term_starts[-1] > after_seq:
            self._term_starts.pop()
            self._terms.pop()
        del self._ends[after_seq - self.base.seq + 1 :]
        self.last = Position(term, after_seq)

    def cut(self, through_seq: int) -> None:
        """Forget the entries up to `through_seq`: the checkpoint has them."""
        term = self.term_at(through_seq)
        if term is None:
            raise InvariantBroken(f"log has ({self.base}, {self.last}], cannot begin after {through_seq}")
        keep = max(bisect_right(self._term_starts, through_seq) - 1, 0)
        del self._term_starts[:keep]
        del self._terms[:keep]
        del self._ends[: through_seq - self.base.seq]
        self.base = Position(term, through_seq)
