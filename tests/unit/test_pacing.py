"""How long acknowledgements are held back, and by whom: the builder's pace, and searches."""

from __future__ import annotations

import pytest

from agent.metrics import Metrics
from agent.page import FIRST_FRONT, Page
from agent.store.pacing import EXCESS_ROWS, HOLD_MAX_S, ROWS_PER_S, UNSEARCHED_BYTES, Pacing, tail_bound
from agent.store.searched import LATELY_S, LOOK_S, Searched


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def page() -> Page:
    return Page.make()


def test_a_tail_within_its_bound_holds_nothing_back() -> None:
    assert Pacing().hold_until(5.0, 256, 0) == 5.0


def test_the_longer_the_tail_the_slower_go_the_writes() -> None:
    pacing = Pacing()
    assert pacing.hold_until(0.0, 256, int(EXCESS_ROWS)) == pytest.approx(256 / ROWS_PER_S)
    assert pacing.hold_until(0.0, 256, int(EXCESS_ROWS)) == pytest.approx(2 * 256 / ROWS_PER_S)
    assert pacing.hold_until(0.0, 10**6, int(EXCESS_ROWS)) == HOLD_MAX_S


def test_while_nobody_searches_the_bound_is_one_of_bytes_never_a_lower_one() -> None:
    assert tail_bound(8_000, 1536, searched=True) == 8_000
    assert tail_bound(8_000, 1536, searched=False) == UNSEARCHED_BYTES // 1536
    assert tail_bound(8_000, 4 * 65_536, searched=False) == 8_000
    assert tail_bound(10**9, 1536, searched=False) == 10**9


def test_a_search_at_any_front_counts_for_a_while(page: Page) -> None:
    clock = Clock()
    searched = Searched(page, clock)
    assert not searched()
    for front in (0, 1):
        took = Metrics(page.metrics(FIRST_FRONT + front)).histogram("shoal_search_seconds", collection="a")
        took.observe(0.001)
        clock.now_s += LOOK_S
        assert searched()
        clock.now_s += LATELY_S - 0.001
        assert searched()
        clock.now_s += 0.002
        assert not searched()


def test_writes_are_no_searches(page: Page) -> None:
    clock = Clock()
    searched = Searched(page, clock)
    Metrics(page.metrics(FIRST_FRONT)).histogram("shoal_write_seconds", collection="a").observe(0.001)
    clock.now_s += LOOK_S
    assert not searched()
