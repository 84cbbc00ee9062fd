"""What is built next: decisions over counts, as a table."""

from __future__ import annotations

import pytest

from core.build_plan import BuildKind, BuildRules, GraphState, SegmentSize, next_build, slots_to_free

RULES = BuildRules(start_rows=4_000, quiet_rows=512, dead_share=0.25, dead_rows_min=1_000, save_s_max=0.5)
SMALL, LARGE = 10_000_000, 1_000_000_000
"""Bytes of a base that is saved in 40 ms, and in 4 s."""
S_PER_BYTE = 4e-9


def base(count: int, size: int = SMALL) -> list[SegmentSize]:
    return [SegmentSize(count, size)]


@pytest.mark.parametrize(
    ("segments", "live", "tail", "quiet", "expected"),
    [
        ([], 0, 3_999, False, None),
        ([], 0, 3_999, True, None),  # a small shard has no graph at all
        ([], 0, 4_000, False, "base"),
        (base(10_000), 10_000, 3_999, False, None),
        (base(10_000), 10_000, 4_000, False, "fold"),
        (base(10_000), 10_000, 511, True, None),
        (base(10_000), 10_000, 512, True, "fold"),
        (base(10_000), 7_500, 0, False, "vacuum"),
        (base(10_000), 7_501, 0, False, None),
        (base(2_000), 1_100, 0, False, None),  # too few dead to make it anew
        (base(1_000_000, LARGE), 1_000_000, 4_000, False, "delta"),
        ([*base(1_000_000, LARGE), SegmentSize(190_000, SMALL)], 1_190_000, 9_000, False, "delta"),
        ([*base(1_000_000, LARGE), SegmentSize(199_000, SMALL)], 1_199_000, 9_000, False, "merge"),
        ([*base(10_000), SegmentSize(4_000, SMALL)], 14_000, 4_000, False, "merge"),
    ],
)
def test_what_is_built_next(
    segments: list[SegmentSize], live: int, tail: int, quiet: bool, expected: BuildKind | None
) -> None:
    assert next_build(GraphState(segments, live, tail), S_PER_BYTE, RULES, quiet=quiet) == expected


@pytest.mark.parametrize(
    ("low", "high", "live", "count"),
    [
        (0, 10_000, 10_000, 0),
        (0, 28_192, 10_000, 0),
        (0, 28_193, 10_000, 13_193),
        (50_000, 60_000, 0, 10_000),
    ],
)
def test_the_oldest_slots_are_emptied_when_a_shard_spans_too_many(
    low: int, high: int, live: int, count: int
) -> None:
    assert slots_to_free(low=low, high=high, live=live) == count
