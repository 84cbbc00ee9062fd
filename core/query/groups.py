"""Groups of hits by the values of a payload field, best group first."""

from __future__ import annotations

from collections.abc import Sequence

GroupId = str | int


def group_ids(values: Sequence[object]) -> list[GroupId]:
    """The groups a point belongs to: none if one of its values is neither a string nor an integer."""
    ids: dict[GroupId, None] = {}
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return []
        ids[value] = None
    return list(ids)


class Grouping:
    """The first `limit` groups that appear among hits, best first, and the first `size` hits of each."""

    def __init__(self, limit: int, size: int) -> None:
        self._limit = limit
        self._size = size
        self.groups: dict[GroupId, list[int]] = {}
        """Positions of the hits, by group, in the order of the groups' best hits."""

    def add(self, position: int, ids: Sequence[GroupId]) -> None:
        for group in ids:
            hits = self.groups.get(group)
            if hits is None:
                if len(self.groups) < self._limit:
                    self.groups[group] = [position]
            elif len(hits) < self._size:
                hits.append(position)

    @property
    def complete(self) -> bool:
        """No group can be missing any more."""
        return len(self.groups) >= self._limit

    def unfilled(self) -> list[GroupId]:
        return [group for group, hits in self.groups.items() if len(hits) < self._size]
