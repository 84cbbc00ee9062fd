"""Sealed HNSW graphs: how usearch is asked to build, save, open and search one. The key of a row is its slot.

usearch accepts NaN, zero vectors, a key twice and corrupt files without a word, so callers validate first and
files are opened only if their hash is right. `threads` is always given: its default is every core.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from usearch.compiled import (
    Index,
    MetricKind,
    MetricSignature,
    ScalarKind,
    index_dense_metadata_from_path,
)

from core.api.config import Distance
from core.errors import Damaged, InvariantBroken

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Scalar = Literal["i8", "bf16", "f16", "f32"]

HASH_HEX = 32
F16_MAX = 200.0
"""Rows with larger values overflow f16 in a dot product of some hundred dimensions."""
I8_PRODUCT_DIM = 128
"""From so many dimensions on an i8 graph by inner product finds what one by cosine finds (clusters, real
rows); with 3 it missed a tenth. A file keeps the metric it was made with."""
_SCALARS: dict[Scalar, ScalarKind] = {
    "i8": ScalarKind.I8,
    "bf16": ScalarKind.BF16,
    "f16": ScalarKind.F16,
    "f32": ScalarKind.F32,
}
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What a graph is made of. Two specs that are equal open each other's files."""

    dim: int
    distance: Distance
    scalar: Scalar
    m: int = 16
    ef_construct: int = 128

    @property
    def metric(self) -> MetricKind:
        if self.distance is Distance.EUCLID:
            return MetricKind.L2sq
        if not self.distance.larger_is_better:
            raise InvariantBroken(f"no graph can hold distance {self.distance}: it is searched exactly")
        # All rows have unit length, so the inner product is the cosine, at 3/4 of the price; but rounding to
        # i8 changes the lengths of short rows, and then only the cosine has the right order.
        return MetricKind.Cos if self.scalar == "i8" and self.dim < I8_PRODUCT_DIM else MetricKind.IP


def usable_scalar(wanted: Scalar, distance: Distance, largest: float) -> Scalar:
    """The kind that can hold rows whose largest |x| is `largest`: i8 is for Cosine, f16 for small numbers."""
    if (wanted == "i8" and distance is not Distance.COSINE) or (wanted == "f16" and largest >= F16_MAX):
        return "bf16"
    return wanted


class Graph:
    """One HNSW graph, in memory or viewed from its file. Searches may run beside each other."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self._index = Index(
            ndim=spec.dim,
            dtype=_SCALARS[spec.scalar],
            connectivity=spec.m,
            expansion_add=spec.ef_construct,
            # usearch expands max(this, count): each search asks for as many as it wants expanded, so two
            # searches with different ef need no shared setting.
            expansion_search=1,
            multi=False,
            enable_key_lookups=False,
            metric_kind=spec.metric,
            metric_pointer=0,
            metric_signature=MetricSignature.ArrayArraySize,
        )
        self.search_many = self._index.search_many

    def __len__(self) -> int:
        return int(self._index.size)

    @property
    def bytes(self) -> int:
        """Its size as a file."""
        return int(self._index.serialized_length)

    def add(self, slots: I64, rows: F32, *, threads: int) -> None:
        """Add finite rows under slots that are not in the graph yet."""
        if len(slots):
            self._index.add_many(
                slots.astype(np.uint64), np.ascontiguousarray(rows), copy=True, threads=threads
            )

    def search(self, queries: F32, count: int, *, threads: int) -> tuple[I64, F32, I64]:
        """The slots (q, count) nearest to each query, their distances, and how many of each row are real."""
        slots, distances, found, _, _ = self._index.search_many(
            queries, count=count, exact=False, threads=threads
        )
        return slots.view(np.int64), distances, found

    def save(self, path: Path) -> None:
        """Write the graph; holds the GIL for 3.7 ms a megabyte."""
        self._index.save_index_to_path(os.fspath(path))

    def load(self, path: Path) -> None:
        """Read a file into memory, to add to it."""
        self._index.load_index_from_path(os.fspath(path))
        self._check_shape(path)

    def view(self, path: Path) -> None:
        """Map a file; it cannot be added to."""
        self._index.view_index_from_path(os.fspath(path))
        self._check_shape(path)

    def _check_shape(self, path: Path) -> None:
        if self._index.ndim != self.spec.dim:
            raise Damaged(f"{path}: holds rows of {self._index.ndim} dimensions, not {self.spec.dim}")
        self._index.expansion_search = 1
        self._index.expansion_add = self.spec.ef_construct


def file_hash(path: Path) -> str:
    """The name that a sealed file's contents give it. Releases the GIL."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:HASH_HEX]


def open_graph(
    path: Path, hash_: str, *, dim: int, distance: Distance, m: int, ef_construct: int, to_add: bool = False
) -> Graph:
    """A sealed graph, viewed or (`to_add`) loaded; the file says which scalars it holds.

    Raises Damaged, also when the file is missing.
    """
    remedy = "the builder can make it anew from the rows"
    try:
        found = file_hash(path)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing; {remedy}") from None
    if found != hash_:
        raise Damaged(f"{path} hashes to {found}, not {hash_}; {remedy}")
    try:
        graph = Graph(GraphSpec(dim, distance, _scalar_in(path), m, ef_construct))
        (graph.load if to_add else graph.view)(path)
    except (RuntimeError, ValueError) as error:
        raise Damaged(f"{path}: {error}; {remedy}") from None
    return graph


def _scalar_in(path: Path) -> Scalar:
    kind = index_dense_metadata_from_path(os.fspath(path))["kind_scalar"]
    for name, value in _SCALARS.items():
        if value == kind:
            return name
    raise Damaged(f"{path}: holds {kind}, which no graph of ours does")
