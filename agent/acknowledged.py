"""How far each shard's writes have been acknowledged through this node: the store notes it, fronts look.

It lies in the page, so that a client that meets another front of the node sees its own writes, too.
Places are taken in order and never given back; beyond the last one nothing is remembered.
"""

from __future__ import annotations

from agent.page import ACKNOWLEDGED_MAX, Page

Key = tuple[int, int]
"""Collection id, shard number."""


class Acknowledged:
    """The store's end, its only writer."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._seqs: dict[Key, int] = {}
        self._places: dict[Key, int] = {}

    def note(self, collection: int, shard: int, seq: int) -> None:
        """A write was acknowledged that everybody has seen who has applied `seq`."""
        key = collection, shard
        if seq <= self._seqs.get(key, 0):
            return
        place = self._places.get(key)
        if place is None:
            if len(self._places) == ACKNOWLEDGED_MAX:
                return
            place = self._places[key] = len(self._places)
        self._seqs[key] = seq
        self._page.write_acknowledged(place, (collection, shard, seq))
        self._page.write_acknowledged_count(len(self._places))


class AcknowledgedHere:
    """A front's end."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._places: dict[Key, int] = {}

    def seq(self, collection: int, shard: int) -> int:
        """What an eventual read of the shard must have seen; 0: anything will do."""
        count = self._page.acknowledged_count()
        for place in range(len(self._places), count):
            found = self._page.acknowledged(place)
            self._places[found[0], found[1]] = place
        place = self._places.get((collection, shard), -1)
        return self._page.acknowledged(place)[2] if place >= 0 else 0
