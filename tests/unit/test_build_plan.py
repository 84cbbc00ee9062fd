"""What is built next: the rules, over counts."""

from __future__ import annotations

import pytest

from core.build_plan import (
    BuildKind,
    BuildRules,
    GraphState,
    SegmentSize,
    build_until,
    next_build,
    slots_beyond,
    slots_to_free,
)

MB = 1 << 20


def graphs(*sizes: tuple[int, int], live: int | None = None, tail: int = 0) -> GraphState:
    """Segments as (rows, MB)."""
    segments = [SegmentSize(rows, mb * MB) for rows, mb in sizes]
    return GraphState(segments, sum(s.count for s in segments) if live is None else live, tail)


def test_of_a_long_tail_a_part_is_built_at_once() -> None:
    rules = BuildRules(once_rows=16_384)
    assert build_until(built=100, high=10_000, rules=rules) == 10_000
    assert build_until(built=100, high=50_000, rules=rules) == 16_484
    assert build_until(built=0, high=50_000, rules=BuildRules(start_rows=30_000)) == 30_000


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (graphs(tail=3_999), None),
        (graphs(tail=4_000), "base"),
        (graphs((50_000, 25), tail=3_999), None),
        (graphs((50_000, 25), tail=4_000), "fold"),
        (graphs((500_000, 250), tail=4_000), "delta"),
        (graphs((500_000, 250), (90_000, 45), tail=4_000), "delta"),
        (graphs((500_000, 250), (98_000, 49), tail=4_000), "merge"),
        (graphs((50_000, 25), (4_000, 2), tail=4_000), "merge"),
        (graphs((50_000, 25), live=40_000), None),
        (graphs((50_000, 25), live=37_500), "vacuum"),
        (graphs((3_000, 2), live=2_100), None),
        (graphs((3_000, 2), live=0), "vacuum"),
    ],
)
def test_what_is_due_follows_from_the_counts(state: GraphState, kind: BuildKind | None) -> None:
    assert next_build(state, 3.7e-9) == kind


def test_a_small_shard_may_span_half_as_much_again_as_its_live_slots_and_a_large_one_more() -> None:
    assert slots_to_free(low=1_000, high=16_512, live=10_000) == 0
    assert slots_to_free(low=1_000, high=16_513, live=10_000) == 2_513
    assert slots_to_free(low=0, high=512, live=0) == 0
    assert slots_to_free(low=0, high=190_512, live=100_000) == 0
    assert slots_to_free(low=0, high=190_513, live=100_000) == 40_513


def test_writers_wait_for_space_only_when_it_is_not_freed_in_time() -> None:
    assert slots_beyond(low=1_000, high=16_513, live=10_000) == 0
    assert slots_beyond(low=1_000, high=18_063, live=10_000) == 0
    assert slots_beyond(low=1_000, high=20_064, live=10_000) == 2_000
