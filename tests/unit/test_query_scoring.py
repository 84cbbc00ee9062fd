"""The scores of each kind of query, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.api.config import Distance
from core.errors import BadRequest
from core.query import fusion, mmr, scoring
from core.query.facets import facet_counts, facet_hits
from core.query.groups import Grouping, group_ids
from core.query.order import first, places
from core.query.ranking import best
from core.query.scoring import F32

ROWS = np.array([[1, 0], [0, 1], [0.6, 0.8], [3, 4]], np.float32)


def f32(*rows: list[float]) -> F32:
    return np.array(rows, np.float32).reshape(-1, 2)


@pytest.mark.parametrize(
    ("metric", "s", "scores"),
    [
        (Distance.COSINE, [1, 0, 0.6, 3], [1, 0, 0.6, 3]),
        (Distance.DOT, [1, 0, 0.6, 3], [1, 0, 0.6, 3]),
        (Distance.EUCLID, [0, -2, -0.8, -20], [0, math.sqrt(2), math.sqrt(0.8), math.sqrt(20)]),
        (Distance.MANHATTAN, [0, -2, -1.2, -6], [0, 2, 1.2, 6]),
    ],
)
def test_similarity_is_larger_for_nearer_rows_and_scores_are_the_apis(
    metric: Distance, s: list[float], scores: list[float]
) -> None:
    got = scoring.similarity(metric, ROWS, ROWS[0])
    assert got == pytest.approx(s)
    assert scoring.scores_of(metric, got) == pytest.approx(scores)


@pytest.mark.parametrize("metric", list(Distance))
def test_a_rows_score_does_not_depend_on_its_place(metric: Distance) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(3001, 37)).astype(np.float32)
    query = rng.normal(size=37).astype(np.float32)
    whole = scoring.similarity(metric, rows, query)
    for cut in (1, 2, 1023, 3000):
        parts = [scoring.similarity(metric, part, query) for part in (rows[:cut], rows[cut:])]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_average_goes_from_the_negatives_through_the_positives() -> None:
    positives, negatives = f32([1, 0], [3, 2]), f32([1, 1])
    assert scoring.average(positives, negatives).tolist() == [3, 1]
    assert scoring.average(positives, negatives[:0]).tolist() == [2, 1]


def test_best_score_takes_the_side_of_the_nearest_example() -> None:
    got = scoring.best_score(Distance.DOT, ROWS[:2], f32([1, 0]), f32([0, 3]))
    assert got == pytest.approx([(1 / 2 + 1) / 2, -(3 / 4 + 1) / 2])


def test_best_score_of_negatives_alone_is_below_zero_and_finite() -> None:
    got = scoring.best_score(Distance.EUCLID, ROWS, ROWS[:0], f32([0, 1]))
    assert (got < 0).all()
    assert np.isfinite(got).all()


def test_sum_scores_adds_positives_and_takes_negatives_away() -> None:
    got = scoring.sum_scores(Distance.DOT, ROWS, f32([1, 0], [0, 1]), f32([0, 2]))
    assert got == pytest.approx([1, -1, 0.6 - 0.8, 3 - 4])


def test_discover_ranks_by_pairs_then_by_target() -> None:
    got = scoring.discover(Distance.DOT, ROWS[:2], f32([0, 1])[0], f32([1, 0], [1, 1]), f32([0, 1], [1, 1]))
    assert got == pytest.approx([1 + 0.5, -1 + 0.75])


def test_context_is_zero_where_all_pairs_agree() -> None:
    got = scoring.context(Distance.DOT, ROWS[:2], f32([1, 0]), f32([0, 1]))
    assert got[0] == 0
    assert got[1] == pytest.approx(-0.5)


def test_feedback_counts_pairs_with_a_lead() -> None:
    got = scoring.feedback(
        Distance.DOT, ROWS[:1], f32([2, 0])[0], f32([1, 0], [0.5, 0]), (0.9, 0.4), (2.0, 3.0, 4.0)
    )
    assert got == pytest.approx([2 * 2 + 0.5**3 * 4 * (1 - 0.5)])


def keys(count: int) -> list[bytes]:
    return [bytes([count - i]) for i in range(count)]


def test_the_best_are_cut_by_key_where_scores_are_equal() -> None:
    names = keys(6)
    scores = np.array([1, 2, 1, 1, 3, 1], np.float32)
    got = best(scores, 4, lambda at: [names[i] for i in at.tolist()])
    assert got.tolist() == [4, 1, 5, 3]
    assert best(scores, 0, lambda at: []).tolist() == []


def test_rrf_counts_ranks_by_weight() -> None:
    lists = [([b"a", b"b"], f32([9, 8])[0]), ([b"b"], np.array([1], np.float32))]
    names, scores = fusion.rrf(lists, k=2, weights=(1.0, 3.0))
    assert names == [b"b", b"a"]
    assert scores == pytest.approx([1 / 3 + 1 / (1 / 3 + 1), 1 / 2])
    assert fusion.rrf(lists, weights=(0.0, -1.0))[1].tolist() == [0, 0]
    with pytest.raises(BadRequest, match="3 weights for 2"):
        fusion.rrf(lists, weights=(1.0, 1.0, 1.0))


def test_dbsf_spreads_scores_by_their_distribution() -> None:
    lists = [
        ([b"a", b"b"], f32([3, 1])[0]),
        ([b"b"], np.array([7], np.float32)),
        ([], np.array([], np.float32)),
    ]
    names, scores = fusion.dbsf(lists)
    sd = math.sqrt(2)
    assert names == [b"b", b"a"]
    assert scores == pytest.approx([0.5 + (1 - (2 - 3 * sd)) / (6 * sd), (3 - (2 - 3 * sd)) / (6 * sd)])
    assert fusion.dbsf([([b"a", b"b"], f32([2, 2])[0])])[1].tolist() == [0.5, 0.5]


def test_mmr_trades_nearness_for_distance_to_the_chosen() -> None:
    rows = f32([1, 0], [0.99, 0.1], [0.5, 0.5])
    query = f32([1, 0])[0]
    assert mmr.choose(Distance.DOT, rows, query, 0.0, 3).tolist() == [0, 1, 2]
    assert mmr.choose(Distance.DOT, rows, query, 0.9, 2).tolist() == [0, 2]
    assert mmr.choose(Distance.DOT, rows[:0], query, 0.5, 2).tolist() == []


def test_order_values_are_numbers_and_datetimes() -> None:
    values = [True, 3, 2.5, 3, None, "x", "1970-01-01T00:00:01Z", [4]]
    assert places(values, start_from=None, descending=False) == [3, 2.5, 1_000_000]
    assert places(values, start_from=3, descending=False) == [3, 1_000_000]
    assert places(values, start_from=3, descending=True) == [3, 2.5]


def test_rows_of_one_value_come_in_key_order_in_both_directions() -> None:
    rows = [(1, b"c"), (2, b"b"), (1, b"a"), (2.0, b"a")]
    assert first(rows, 9, descending=False) == [(1, b"a"), (1, b"c"), (2.0, b"a"), (2, b"b")]
    assert first(rows, 3, descending=True) == [(2.0, b"a"), (2, b"b"), (1, b"a")]


def test_facets_count_points_by_value_and_kind() -> None:
    counts = facet_counts([["a"], ["a", "a", "b"], [True], [1, 1.0, None], [2**60], []])
    assert facet_hits([counts, facet_counts([[1]])], 9) == [(1, 2), ("a", 2), (True, 1), (2**60, 1), ("b", 1)]


def test_a_value_that_is_no_group_id_keeps_its_point_out() -> None:
    assert group_ids(["x", 2, "x"]) == ["x", 2]
    assert group_ids(["x", True]) == []
    assert group_ids([1.5]) == []
    assert group_ids([]) == []


def test_groups_come_in_the_order_of_their_best_hits() -> None:
    grouping = Grouping(limit=2, size=2)
    for i, ids in enumerate([["b"], ["a", "b"], ["c", "a"], ["b"]]):
        grouping.add(i, ids)
    assert grouping.groups == {"b": [0, 1], "a": [1, 2]}
    assert grouping.complete
    assert grouping.unfilled() == []
