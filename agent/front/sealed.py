"""The graphs that a manifest names, opened for searching; those that an older one named too are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.graphs import Graph, file_hash, open_graph
from agent.store.manifest import VectorState
from core.errors import Damaged
from core.query.scoring import F32
from core.search_plan import EF_DEFAULT, RECALL_HOPELESS


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """The graphs of one vector."""

    graphs: tuple[Graph, ...] = ()
    files: tuple[str, ...] = ()
    built: int = 0
    """Slots from here on are the tail, which is searched exactly."""
    count: int = 0
    ef: int = EF_DEFAULT
    """How wide the canary had to search."""
    mean: F32 | None = None
    """Of Euclid: what was taken off each row, and is taken off each query."""


NO_GRAPHS = Sealed()


def open_sealed(folder: Path, state: VectorState, known: Sealed) -> Sealed:
    """Open the segments of one vector. Raises Damaged."""
    recalls = [s.recall for s in state.segments if s.recall is not None]
    if not state.segments or min(recalls, default=1.0) < RECALL_HOPELESS:
        return NO_GRAPHS
    kept = dict(zip(known.files, known.graphs, strict=True))
    graphs: list[Graph] = []
    for segment in state.segments:
        graph = kept.get(segment.file) or open_graph(
            folder / segment.file,
            segment.hash,
            dim=state.dim,
            distance=state.distance,
            m=state.m,
            ef_construct=state.ef_construct,
        )
        graphs.append(graph)
    return Sealed(
        tuple(graphs),
        tuple(segment.file for segment in state.segments),
        state.built,
        sum(segment.count for segment in state.segments),
        max(segment.ef or EF_DEFAULT for segment in state.segments),
        None if state.mean is None else read_mean(folder / state.mean, state.dim),
    )


def read_mean(path: Path, dim: int) -> F32:
    """The row `<v>.<hash>.mean`. Raises Damaged."""
    try:
        right = file_hash(path) == path.name.split(".")[1] and path.stat().st_size == dim * 4
    except FileNotFoundError:
        right = False
    if not right:
        raise Damaged(f"{path} is missing or does not match its name; the builder can make the graph anew")
    return np.fromfile(path, np.float32)
