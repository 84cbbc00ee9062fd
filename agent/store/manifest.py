"""manifest.json of a shard: which files belong together, as of which checkpoint, with their checksums."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from agent.store.files import Files
from agent.store.formats import check_json_format
from core.api.config import Distance
from core.errors import Damaged

NAME = "manifest.json"
FORMAT = 1
BLOCK_BYTES = 64 << 10
"""What one checksum covers."""

GraphKind = Literal["i8", "bf16", "f16", "f32", "none"]


class VectorParams(Struct, frozen=True):
    """A named vector of a schema, under its number."""

    dim: int
    distance: Distance
    graph: GraphKind = "none"
    m: int = 16
    ef_construct: int = 128


class ColumnParams(Struct, frozen=True):
    """A payload index of a schema, under its number."""

    path: str
    type: str
    params: dict[str, object] = {}


class ShardSchema(Struct, frozen=True):
    """What the map says of a collection that its shards must know."""

    version: int = 0
    vectors: dict[int, VectorParams] = {}
    columns: dict[int, ColumnParams] = {}
    names: dict[str, int] = {}
    """Names of the vectors, as filters in the log spell them."""


class Segment(Struct, frozen=True):
    """A sealed graph over the slots low..high-1."""

    kind: Literal["base", "delta"]
    file: str
    low: int
    high: int
    count: int
    bytes: int
    hash: str
    recall: float | None = None
    ef: int | None = None
    """What the recall canary needs."""


class VectorState(VectorParams, frozen=True, kw_only=True):
    """A vector and what was built over it."""

    mean: str | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def built(self) -> int:
        """Slots from here on are in no graph."""
        return max((s.high for s in self.segments), default=0)


class ColumnState(ColumnParams, frozen=True, kw_only=True):
    """An index, and whether searches may use it."""

    ready: bool = False


class FileBlocks(Struct, frozen=True):
    """Checksums of a file's first `bytes`, a crc32 for each block of BLOCK_BYTES."""

    bytes: int
    crcs: tuple[int, ...]


class Manifest(Struct, frozen=True, kw_only=True):
    """The state of a shard's files. `number` grows with each replacement."""

    number: int
    collection: int
    shard: int
    incarnation: int
    history: int
    checkpoint: int
    """All entries up to this seq are durable in the derived files."""
    slot_low: int
    slot_high: int
    clean: bool = False
    """The shard was closed after this was written, so files that change in place are as `files` says."""
    schema: int = 0
    vectors: dict[str, VectorState] = {}
    columns: dict[str, ColumnState] = {}
    files: dict[str, FileBlocks] = {}
    copy: int = 0
    """Drawn when the contents were installed from another replica's."""
    format: int = FORMAT
    crc: int = 0

    @property
    def contents_id(self) -> int:
        """Which files these are: another one after they were replaced, though the replica is the same."""
        return self.incarnation ^ self.copy

    @property
    def built(self) -> int:
        """Slots below this are in a graph of every vector that has graphs; slot_high if none has."""
        wanted = [v.built for v in self.vectors.values() if v.graph != "none"]
        return min(wanted, default=self.slot_high)


_CRC_MARK = b'"crc":'
"""Before the last field of the file."""
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON, its crc over the same text with crc 0."""
    bare = _encoder.encode(msgspec.structs.replace(manifest, crc=0))
    return _encoder.encode(msgspec.structs.replace(manifest, crc=zlib.crc32(bare)))


def read_manifest(path: Path) -> Manifest:
    """Raises FileNotFoundError, Damaged if it is not what was written, StartRefused if by a later version."""
    raw = path.read_bytes()
    # Over the text as it was written, not as this version would write it: fields will come and go.
    text, mark, crc = raw.rpartition(_CRC_MARK)
    if not mark or crc != b"%d}" % zlib.crc32(text + _CRC_MARK + b"0}"):
        raise Damaged(f"{path}: its checksum is not {crc[:20].decode('ascii', 'replace')}")
    check_json_format(path, raw, FORMAT)
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: not a manifest ({error})") from None


def write_manifest(path: Path, manifest: Manifest, files: Files) -> None:
    files.replace(path, encode_manifest(manifest))


def block_crcs(data: memoryview, known: FileBlocks | None = None) -> FileBlocks:
    """Checksums of `data`; those of whole blocks in `known` are taken over unread (they never change)."""
    whole = 0 if known is None else known.bytes // BLOCK_BYTES
    crcs = [] if known is None else list(known.crcs[:whole])
    for at in range(whole * BLOCK_BYTES, len(data), BLOCK_BYTES):
        crcs.append(zlib.crc32(data[at : at + BLOCK_BYTES]))
    return FileBlocks(bytes=len(data), crcs=tuple(crcs))


def damaged_blocks(data: memoryview, blocks: FileBlocks, *, first: int = 0) -> list[int]:
    """Numbers of the blocks from `first` on that are cut or differ from their checksum."""
    bad = []
    for number in range(first, len(blocks.crcs)):
        low, high = number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, blocks.bytes)
        if high > len(data) or zlib.crc32(data[low:high]) != blocks.crcs[number]:
            bad.append(number)
    return bad
