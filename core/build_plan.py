"""What should be built next over one vector of a shard. Pure decisions over counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BuildKind = Literal["base", "fold", "delta", "merge", "vacuum"]
"""base: the first graph, from rows. fold: the tail into the base. delta: the tail into a small graph
beside it. merge: all above the base into it. vacuum: a base from the live rows alone."""


@dataclass(frozen=True, slots=True)
class BuildRules:
    """When a build is due."""

    start_rows: int = 4_000
    """A tail of so many slots is folded; a shorter one counts as indexed, as searching it costs little."""
    quiet_rows: int = 512
    """The same where nobody writes: at rest no search should pay for a tail, and time is free."""
    dead_share: float = 0.25
    dead_rows_min: int = 1_000
    """So many rows of the graphs must be dead before they are made anew."""
    save_s_max: float = 0.5
    """A base that takes longer to write gets a delta beside it."""
    merge_share: float = 0.2
    """The delta goes into the base when it is this part of it."""
    once_rows: int = 16_384
    """Of a longer tail so much is built at once: searches have what is done before all is."""


@dataclass(frozen=True, slots=True)
class SegmentSize:
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GraphState:
    """What there is: segments (base first), how many of their rows live, and the slots above them."""

    segments: Sequence[SegmentSize]
    live: int
    tail: int


DEFAULT_RULES = BuildRules()


def build_until(*, built: int, high: int, rules: BuildRules) -> int:
    """Up to which slot a build goes, over graphs that end at `built`, of slots that end at `high`."""
    return min(high, built + max(rules.once_rows, rules.start_rows))


def next_build(
    state: GraphState, save_s_per_byte: float, rules: BuildRules = DEFAULT_RULES, *, quiet: bool = False
) -> BuildKind | None:
    """None: the graphs are as they should be. `quiet`: nothing was written for a while."""
    if not state.segments:
        return "base" if state.tail >= rules.start_rows else None
    base, *deltas = state.segments
    count = sum(segment.count for segment in state.segments)
    if count - state.live >= max(rules.dead_rows_min, rules.dead_share * count):
        return "vacuum"
    if state.tail < (rules.quiet_rows if quiet else rules.start_rows):
        return None
    if base.bytes * save_s_per_byte <= rules.save_s_max:
        return "merge" if deltas else "fold"
    above = sum(delta.count for delta in deltas) + state.tail
    return "merge" if above > rules.merge_share * base.count else "delta"


SPAN_SLACK = 512
SMALL_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Span:
    """How many slots a shard may take for each that lives. Over `most` its oldest survivors move up until
    it takes `aim`, and the space below them is freed."""

    most: float
    aim: float


SMALL_SPAN = Span(1.5, 1.3)
SPAN = Span(1.9, 1.5)
"""Moved rows are rows to build into graphs again, which is what costs; beside the few bytes of a small
shard, though, its log and its graphs weigh more."""
SPAN_WHILE_FREED = 1.1


def slots_to_free(*, low: int, high: int, live: int) -> int:
    """How many of the lowest slots should be emptied, so that their space can be given back."""
    span = _span(live)
    if high - low <= span.most * live + SPAN_SLACK:
        return 0
    return int(high - low - span.aim * live)


def slots_beyond(*, low: int, high: int, live: int) -> int:
    """How many slots a shard takes beyond what it may even while some are being freed."""
    return max(0, int(high - low - SPAN_WHILE_FREED * (_span(live).most * live + SPAN_SLACK)))


def _span(live: int) -> Span:
    return SMALL_SPAN if live <= SMALL_ROWS else SPAN
