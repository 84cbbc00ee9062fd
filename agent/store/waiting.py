"""Who waits for which entry: until it has reached a consistency, and perhaps until it is applied."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from core.errors import ShoalError
from core.replication.effects import Consistency
from core.wire import Op, Outcome


@dataclass(eq=False, slots=True)
class Proposal:
    """An operation on its way in."""

    op: Op
    encoded: bytes
    request_id: bytes
    number: int
    body_hash: bytes
    schema: int
    until: str
    consistency: Consistency = Consistency.QUORUM
    answer: asyncio.Future[Outcome] = field(init=False)
    begun: bool = False

    def resolve(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)

    def reject(self, error: ShoalError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Waiting:
    """`reached` says up to which seq a write of some consistency may be acknowledged now."""

    def __init__(self, reached: Callable[[Consistency], int]) -> None:
        self._reached = reached
        self._applying: dict[int, list[Proposal]] = defaultdict(list)
        self._numbers = itertools.count()  # so that the heaps never compare proposals
        self._reaching: dict[Consistency, list[tuple[int, int, Proposal, Outcome]]] = {
            consistency: [] for consistency in Consistency
        }

    def add(self, seq: int, proposal: Proposal) -> None:
        """The proposal is this entry's, which is not applied yet."""
        if proposal.until == "persisted":
            self._when_reached(seq, proposal, Outcome())
        else:
            self._applying[seq].append(proposal)

    def add_applied(self, seq: int, proposal: Proposal, outcome: Outcome) -> None:
        """A retry of what is applied, but perhaps not on enough disks."""
        self._when_reached(seq, proposal, outcome)

    def applied(self, seq: int, outcome: Outcome) -> None:
        for proposal in self._applying.pop(seq, ()):
            self._when_reached(seq, proposal, outcome)

    def look(self) -> None:
        """More may be acknowledged than before."""
        for consistency, heap in self._reaching.items():
            if heap:
                upto = self._reached(consistency)
                while heap and heap[0][0] <= upto:
                    _, _, proposal, outcome = heapq.heappop(heap)
                    proposal.resolve(outcome)

    def reject_after(self, seq: int, error: ShoalError) -> None:
        """The entries after `seq` will not be logged."""
        for at in [at for at in self._applying if at > seq]:
            for proposal in self._applying.pop(at):
                proposal.reject(error)
        for heap in self._reaching.values():
            for at, _, proposal, _ in heap:
                if at > seq:
                    proposal.reject(error)
            heap[:] = [item for item in heap if item[0] <= seq]
            heapq.heapify(heap)

    def reject_all(self, error: ShoalError) -> None:
        self.reject_after(-1, error)

    def _when_reached(self, seq: int, proposal: Proposal, outcome: Outcome) -> None:
        if seq <= self._reached(proposal.consistency):
            proposal.resolve(outcome)
        else:
            item = (seq, next(self._numbers), proposal, outcome)
            heapq.heappush(self._reaching[proposal.consistency], item)
