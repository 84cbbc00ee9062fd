"""How one search of a shard is run: exactly, or through the graphs and how wide."""

from __future__ import annotations

from dataclasses import dataclass

EF_DEFAULT = 48
EF_WIDER = ((64_000, 48), (500_000, 64), (float("inf"), 96))
"""(up to so many points, the least width): real questions about 100,000 × 384 found .94 at 48, .96 at 64."""
RECALL_HOPELESS = 0.7
"""A graph that finds less than this, however wide it is searched, is not used: the search is exact."""
RESCORED_MIN = 20
"""16 of 48 candidates of an i8 graph had the recall of all 48, at limit 10 (50,000 × 384)."""
ROWS_PER_CANDIDATE = 20
"""So many scattered rows are compared in the time in which a graph finds one candidate more."""
OVER_FETCH = ((0.15, 1.6), (0.35, 2.0), (float("inf"), 3.0))
"""(up to this share of matching points, times limit / share candidates); recall@10 was ≥ .96 at each."""
WIDEN_DEAD_MAX = 4.0


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """Exact over what matches, or `count` candidates of each graph."""

    exact: bool
    count: int = 0


EXACT = SearchPlan(exact=True)


def ef_least(points: int) -> int:
    """The narrowest search of a graph over so many points, whatever a sample of questions says."""
    return next(ef for bound, ef in EF_WIDER if points <= bound)


def rescored(limit: int) -> int:
    """How many candidates are compared again by their f32 rows."""
    return max(RESCORED_MIN, limit + (limit >> 1))


def candidates(limit: int, ef: int, live_share: float) -> int:
    """How many a graph is asked for when every live point matches; dead ones only take up room."""
    count = max(ef, rescored(limit))
    if live_share >= 1:
        return count
    return int(count * min(WIDEN_DEAD_MAX, 1 / max(live_share, 1e-9)))


def filtered(limit: int, ef: int, *, matching: int, built: int) -> SearchPlan:
    """`matching` of the `built` slots that the graphs hold are live and match."""
    if not matching:
        return EXACT
    share = matching / built
    factor = next(factor for bound, factor in OVER_FETCH if share <= bound)
    count = max(ef, rescored(limit), int(factor * limit / share))
    if matching <= count * ROWS_PER_CANDIDATE:
        return EXACT
    return SearchPlan(exact=False, count=count)


def widened(plan: SearchPlan, *, built: int) -> SearchPlan:
    """The next try when too few candidates were live and matched; exact once a graph would be read whole."""
    count = plan.count * 2
    return EXACT if count * 4 > built else SearchPlan(exact=False, count=count)
