"""How a search is run: decisions over counts."""

from __future__ import annotations

import pytest

from core.search_plan import EXACT, SearchPlan, candidates, filtered, rescored, widened


@pytest.mark.parametrize(("limit", "count"), [(1, 20), (10, 20), (14, 21), (100, 150)])
def test_half_as_many_again_are_rescored_as_are_wanted(limit: int, count: int) -> None:
    assert rescored(limit) == count


@pytest.mark.parametrize(
    ("limit", "ef", "share", "count"),
    [(10, 48, 1.0, 48), (100, 48, 1.0, 150), (10, 48, 0.5, 96), (10, 48, 0.0, 192), (10, 48, 1.2, 48)],
)
def test_dead_slots_widen_a_search_fourfold_at_most(limit: int, ef: int, share: float, count: int) -> None:
    assert candidates(limit, ef, share) == count


@pytest.mark.parametrize(
    ("matching", "exact"), [(0, True), (1_000, True), (5_000, True), (10_000, False), (100_000, False)]
)
def test_few_matches_are_compared_one_by_one(matching: int, exact: bool) -> None:
    assert filtered(10, 48, matching=matching, built=100_000).exact == exact


@pytest.mark.parametrize(("matching", "count"), [(10_000, 160), (20_000, 100), (50_000, 60), (100_000, 48)])
def test_many_matches_are_found_by_asking_for_more(matching: int, count: int) -> None:
    assert filtered(10, 48, matching=matching, built=100_000) == SearchPlan(exact=False, count=count)


def test_a_search_that_comes_up_short_doubles_until_all_would_be_read() -> None:
    plan, counts = SearchPlan(exact=False, count=100), []
    while plan is not EXACT:
        counts.append(plan.count)
        plan = widened(plan, built=2_000)
    assert counts == [100, 200, 400]
