"""Facets: how many points have each value at a path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

FacetValue = str | int | bool
FacetCounts = Mapping[tuple[int, FacetValue], int]
"""By kind and value: True and 1 are equal keys, but other values."""

_KINDS = {bool: 0, int: 1, str: 2}


def facet_counts(values: Iterable[Sequence[object]]) -> FacetCounts:
    """A point counts once for each of its different strings, integers and bools."""
    counts: Counter[tuple[int, FacetValue]] = Counter()
    for each in values:
        if len(each) == 1:
            kind = _KINDS.get(type(each[0]))
            if kind is not None:
                counts[kind, cast(FacetValue, each[0])] += 1
        else:
            counts.update({(_KINDS[type(v)], cast(FacetValue, v)) for v in each if type(v) in _KINDS})
    return counts


def facet_hits(counts: Iterable[FacetCounts], limit: int) -> list[tuple[FacetValue, int]]:
    """The shards' counts added up: the most frequent values, ties by value."""
    total: Counter[tuple[int, FacetValue]] = Counter()
    for each in counts:
        total.update(each)
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return [(value, count) for (_, value), count in ranked[:limit]]
