"""The vectors, queries and payloads of the benchmarks: real ones where they are, made ones elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "vectors-50k-384-f16.npy"
QUERIES = 500
NOISE = 0.3  # of a row's length
PAYLOAD_BYTES = 300


@dataclass(frozen=True, slots=True)
class Data:
    """rows (n, d) and queries (q, d), both of unit length; the queries are none of the rows."""

    rows: F32
    queries: F32
    name: str

    @property
    def dim(self) -> int:
        return int(self.rows.shape[1])


def unit(rows: F32) -> F32:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def load(file: Path | None, rows_max: int) -> Data:
    """`file`: any .npy of (n, d). None: the reference data if it is there, else clusters that we make."""
    if file is None and not REAL.exists():
        return _made(rows_max)
    path = file or REAL
    rows = np.load(path, mmap_mode="r")
    queries_path = path.with_name("queries-500-384-f16.npy")
    if path == REAL and queries_path.exists():
        queries = np.load(queries_path)
    else:
        rows, queries = rows[:-QUERIES], np.asarray(rows[-QUERIES:])
    kept = np.asarray(rows[:rows_max], dtype=np.float32)
    return Data(unit(kept), unit(np.asarray(queries, dtype=np.float32)), path.name)


def _made(rows_max: int, dim: int = 384) -> Data:
    """Points around 500 centres that lie near a space of 48 dimensions, as embeddings do."""
    rng = np.random.default_rng(7)
    total = rows_max + QUERIES
    centres = rng.standard_normal((500, 48))
    inner = centres[rng.integers(0, 500, total)] + 0.7 * rng.standard_normal((total, 48))
    outer = inner @ rng.standard_normal((48, dim)) + 0.5 * rng.standard_normal((total, dim))
    rows = unit(outer.astype(np.float32))
    return Data(rows[:rows_max], rows[rows_max:], "made by tests/bench/data.py")


def doubled(data: Data) -> Data:
    """Each row twice, the second with noise of .3 of its length."""
    rng = np.random.default_rng(11)
    noise = unit(rng.standard_normal(data.rows.shape).astype(np.float32)) * NOISE
    return Data(np.concatenate([data.rows, unit(data.rows + noise)]), data.queries, f"{data.name}, doubled")


def exact(rows: F32, queries: F32, k: int) -> I64:
    """Row numbers of the true k nearest by inner product, nearest first."""
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ rows.T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found[start : start + 100] = np.take_along_axis(best, order, axis=1)
    return found


def recall(found: list[list[int]], true: I64) -> float:
    """The share of the true neighbours that were found."""
    hits = sum(len(set(f) & set(t.tolist())) for f, t in zip(found, true, strict=True))
    return hits / true.size


def payload(row: int) -> dict[str, object]:
    """About 300 bytes of JSON. `one`, `ten`, `half` hold for 1 %, 10 % and 50 % of the rows, in no order."""
    mixed = (row * 2_654_435_761) % 2**32 // 7
    return {
        "one": mixed % 100 == 0,
        "ten": mixed % 10 == 0,
        "half": mixed % 2 == 0,
        "number": row,
        "group": f"group-{mixed % 1000}",
        "text": f"row {row} of the benchmark ".ljust(PAYLOAD_BYTES - 100, "."),
    }
