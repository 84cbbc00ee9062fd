"""What store and builder tell each other about one build."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from agent.store.manifest import GraphKind, Segment
from core.api.config import Distance
from core.build_plan import BuildKind


class Job(Struct, frozen=True, kw_only=True):
    """One graph to make: over the live slots low..high-1, which have all been published."""

    number: int
    kind: BuildKind
    collection: int
    shard: int
    v: int
    folder: str
    low: int
    """The shard's lowest slot."""
    high: int
    dim: int
    distance: Distance
    graph: GraphKind
    m: int
    ef_construct: int
    segments: tuple[Segment, ...] = ()
    mean: str | None = None


class Built(Struct, frozen=True, kw_only=True):
    """The segments that take the place of the job's; their files are on disk."""

    number: int
    segments: tuple[Segment, ...]
    mean: str | None
    added: int
    add_s: float
    save_s: float


_decode_job = msgspec.json.Decoder(Job).decode
_decode_built = msgspec.json.Decoder(Built).decode


def to_body(message: Job | Built) -> bytes:
    return msgspec.json.encode(message)


def job_of(body: bytes) -> Job | None:
    """Empty: there is nothing to do."""
    return _decode_job(body) if body else None


def built_of(body: bytes) -> Built:
    return _decode_built(body)
