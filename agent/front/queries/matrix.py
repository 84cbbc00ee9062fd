"""The distance matrix of a random sample: for each of its points the nearest others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.front.queries import merging
from agent.front.queries.candidates import Candidates
from agent.front.queries.execution import Execution
from agent.front.queries.leaves import Among, Sampled
from agent.front.queries.plan import VectorSpec
from agent.front.queries.source import each_with
from core.api.reads import Matrix
from core.query import scoring
from core.query.ranking import best


@dataclass(frozen=True, slots=True)
class Distances:
    """Row, column and score of each pair; rows and columns are positions in `keys`, which are in id order."""

    keys: list[bytes]
    rows: list[int]
    columns: list[int]
    scores: list[float]


def distances(execution: Execution, vector: VectorSpec, request: Matrix) -> Distances:
    """Empty if fewer than two points match and have the vector."""
    among, deadline = Among(request.filter), execution.deadline
    leaves = [Sampled(among, request.sample, execution.draw(), vector.v) for _ in execution.sources]
    draws = each_with(execution.sources, leaves, lambda source, leaf: source.run(leaf, deadline))
    sample = merging.by_key([merging.by_score(draws, request.sample)], request.sample)
    if len(sample) < 2:
        return Distances([], [], [], [])
    points = Candidates(execution.sources, sample).rows(vector)
    others = np.arange(len(points))
    rows: list[int] = []
    columns: list[int] = []
    scores: list[float] = []
    for i, point in enumerate(points):
        deadline.check()
        rest = others[others != i]
        s = scoring.similarity(vector.metric, points[rest], point)
        keys = sample.keys[:i] + sample.keys[i + 1 :]
        at = best(s, request.limit, lambda found, keys=keys: [keys[j] for j in found.tolist()])  # type: ignore[misc]
        rows.extend([i] * len(at))
        columns.extend(rest[at].tolist())
        scores.extend(scoring.scores_of(vector.metric, s[at]).tolist())
    return Distances(sample.keys, rows, columns, scores)
