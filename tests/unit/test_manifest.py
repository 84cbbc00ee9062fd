"""The manifest checks itself, and its checksums find every block that changed."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from agent.store.files import Files
from agent.store.manifest import (
    BLOCK_BYTES,
    Manifest,
    Segment,
    VectorState,
    block_crcs,
    damaged_blocks,
    encode_manifest,
    read_manifest,
    write_manifest,
)
from core.api.config import Distance
from core.errors import Damaged


def manifest(**fields: object) -> Manifest:
    known = {
        "number": 3, "collection": 7, "shard": 0, "incarnation": 1, "history": 2, "checkpoint": 9,
        "slot_low": 0, "slot_high": 50, **fields,
    }  # fmt: skip
    return Manifest(**known)  # type: ignore[arg-type]


def vector(graph: str, *highs: int) -> VectorState:
    segments = tuple(Segment("base", "f", 0, high, high, 1, "hash") for high in highs)
    return VectorState(dim=4, distance=Distance.COSINE, graph=graph, segments=segments)  # type: ignore[arg-type]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = manifest(vectors={"1": vector("i8", 10, 20)}, files={"a": block_crcs(memoryview(b"abc"))})
    write_manifest(tmp_path / "m", written, Files())
    read = read_manifest(tmp_path / "m")
    assert (read.vectors, read.files, read.number) == (written.vectors, written.files, 3)


def test_any_change_of_a_manifest_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_manifest(path, manifest(vectors={"1": vector("i8", 10)}), Files())
    good = path.read_bytes()
    rng = random.Random(1)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(Damaged, match="m"):
            read_manifest(path)
    for size in (0, 1, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(Damaged):
            read_manifest(path)


@pytest.mark.parametrize(
    ("vectors", "built"),
    [
        ({}, 50),
        ({"1": vector("none")}, 50),
        ({"1": vector("i8")}, 0),
        ({"1": vector("i8", 10, 30), "2": vector("bf16", 20), "3": vector("none")}, 20),
    ],
)
def test_built_is_what_every_graph_covers(vectors: dict[str, VectorState], built: int) -> None:
    assert manifest(vectors=vectors).built == built


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_a_changed_or_cut_block_is_named(size: int) -> None:
    data = bytearray(random.Random(size).randbytes(size))
    blocks = block_crcs(memoryview(bytes(data)))
    assert damaged_blocks(memoryview(bytes(data)), blocks) == []
    for number in range(len(blocks.crcs)):
        bad = bytearray(data)
        bad[number * BLOCK_BYTES] ^= 1
        assert damaged_blocks(memoryview(bytes(bad)), blocks) == [number]
    if size:
        assert damaged_blocks(memoryview(bytes(data[:-1])), blocks) == [len(blocks.crcs) - 1]


def test_whole_blocks_that_are_known_are_not_read_again() -> None:
    first = block_crcs(memoryview(bytes(BLOCK_BYTES + 10)))
    grown = block_crcs(memoryview(b"x" * BLOCK_BYTES + bytes(2 * BLOCK_BYTES)), first)
    assert grown.crcs[0] == first.crcs[0]
    assert damaged_blocks(memoryview(bytes(3 * BLOCK_BYTES)), grown) == []


def test_a_manifest_without_a_field_that_came_later_is_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    raw = encode_manifest(
        Manifest(
            number=3, collection=1, shard=0, incarnation=5, history=6, checkpoint=7, slot_low=0, slot_high=9
        )
    )
    older = raw.replace(b'"schema":0,', b"").rpartition(b'"crc":')[0] + b'"crc":0}'
    path.write_bytes(older[:-2] + b"%d}" % zlib.crc32(older))
    assert read_manifest(path).number == 3
