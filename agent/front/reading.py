"""One request's read over shards wherever they are: looks, attempts, and the account of what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import msgspec

from agent.front.asking import ShardMissing, Where
from agent.front.others import Others
from agent.front.places import Terms
from agent.front.queries.collection import Collection as Look
from agent.front.serving import Served
from agent.front.view import LookTooOld
from core.cluster import CollectionId
from core.replication.effects import Consistency

T = TypeVar("T")
LOOKS_MAX = 3
"""How often a read begins anew that took so long that rows it needs were let go."""
PLACES_MAX = 3
"""How often a place is looked for at which a linearizable read of one shard may be made."""
_Key = tuple[int, int]
_encode = msgspec.json.Encoder().encode


def again(read: Callable[[], T]) -> T:
    """Begin a read anew, within bounds, that took so long that rows it needs were let go."""
    tries = 1
    while True:
        try:
            return read()
        except LookTooOld:
            if tries == LOOKS_MAX:
                raise
        tries += 1


class Reading:
    """`prepare` on the loop, then `run` in a thread. `others` None: this node is alone."""

    def __init__(self, others: Others | None, terms: Terms) -> None:
        self._others, self._terms = others, terms
        self._prepared: dict[CollectionId, Mapping[int, Where]] = {}
        self._here: set[_Key] = set()
        self._tries: dict[_Key, int] = {}
        self._missing: dict[_Key, Where] = {}

    async def prepare(self, served: Served) -> bool:
        """Whether it will not wait for other nodes."""
        if self._others is None:
            return served.is_here
        try:
            places = await self._others.places.find(served.held, self._terms)
        except ShardMissing as problem:  # `run` looks again
            self._go_on(problem)
            return False
        self._prepared[served.info.id] = places
        return not places

    def run(self, read: Callable[[ExitStack], T]) -> T:
        """What `read` makes of it, which looks by `look`. Raises ShardMissing unless it may be partial."""
        while True:
            try:
                return again(lambda: self._once(read))
            except ShardMissing as problem:
                self._go_on(problem)

    def look(self, served: Served, stack: ExitStack) -> Look:
        """A look that lasts as long as the stack."""
        places = self._places(served)
        here = served.held
        if self._terms.allow_partial:
            for shard in served.held.shards:
                if shard.number not in places and here.applied(shard.number) is None:
                    self._missing.setdefault((here.id, shard.number), here.where(shard, shard.in_sync))
        without = {number for id_, number in self._missing if id_ == served.info.id}
        look = served.look(places, self._others, self._terms.deadline_s, without=without)
        return stack.enter_context(look)

    def partial(self) -> bytes | None:
        """What the answer lacks, as JSON; None if nothing."""
        if not self._missing:
            return None
        shards = [
            {
                "collection": where.collection_name,
                "shard": where.shard,
                "nodes": where.nodes,
                "points": self._points(where),
            }
            for where in self._missing.values()
        ]
        counts = [self._points(where) for where in self._missing.values()]
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else None
        return _encode({"missing_shards": shards, "missing_points": total})

    def _once(self, read: Callable[[ExitStack], T]) -> T:
        with ExitStack() as stack:
            return read(stack)

    def _places(self, served: Served) -> Mapping[int, Where]:
        prepared = self._prepared.pop(served.info.id, None)
        if prepared is not None:
            return prepared
        if self._others is None:
            return {}
        id_ = served.info.id
        here = frozenset([number for key, number in self._here if key == id_])
        without = frozenset([number for key, number in self._missing if key == id_])
        return self._others.find(served.held, self._terms, here=here, without=without)

    def _go_on(self, problem: ShardMissing) -> None:
        """Another attempt: here after all, at another place, or without the shard. Else raises it."""
        key = problem.where.collection, problem.where.shard
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        if self._terms.level is Consistency.EVENTUAL:
            if problem.where.is_here and key not in self._here:
                self._here.add(key)
                return
        elif tries < PLACES_MAX and not problem.where.is_unplaced:
            return
        if not self._terms.allow_partial:
            raise problem
        self._missing[key] = problem.where

    def _points(self, where: Where) -> int | None:
        return None if self._others is None else self._others.points(where.collection, where.shard)
