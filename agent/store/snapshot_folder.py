"""The snapshots that lie on this node: file names (ours), and what is known of each in a file beside it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.store.archive import ArchiveReader, Kind
from agent.store.files import Files
from core.api.answers import SnapshotInfo
from core.errors import BadRequest

_NAME = re.compile(r"[a-z0-9-]{1,80}\.snapshot")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a snapshot is of: a shard of a collection, a collection, or, without either, the node."""

    collection: str | None = None
    shard: int | None = None

    @property
    def kind(self) -> Kind:
        if self.collection is None:
            return "node"
        return "collection" if self.shard is None else "shard"


class About(Struct, frozen=True):
    """What is known of a snapshot without opening it. Made anew from the snapshot if it is lost."""

    kind: Kind
    collection: str | None
    shard: int | None
    made_us: int
    size_bytes: int
    sha256: str
    is_ours: bool
    """This node wrote it: then its graphs can be trusted, if the sha256 is still right."""

    def info(self, name: str) -> SnapshotInfo:
        made = _time_of(self.made_us).strftime("%Y-%m-%dT%H:%M:%S")
        return SnapshotInfo(name, self.size_bytes, made, self.sha256)


class SnapshotFolder:
    """Blocking calls, for a thread. A client's name is only ever looked up among those that are there."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.glob("*.part*"):  # of a crash
            left.unlink()

    def new_path(self, label: str, made_us: int) -> Path:
        stamp = _time_of(made_us).strftime("%Y-%m-%d-%H-%M-%S")
        return self._folder / f"{label}-{stamp}-{secrets.token_hex(3)}.snapshot"

    def all(self) -> dict[str, About]:
        found: dict[str, About] = {}
        for path in sorted(self._folder.glob("*.snapshot")):
            about = self._about(path) if _NAME.fullmatch(path.name) and path.is_file() else None
            if about is not None:
                found[path.name] = about
        return found

    def path(self, name: str) -> Path:
        """Only for a name that `all` gave."""
        assert _NAME.fullmatch(name)
        return self._folder / name

    def publish(self, part: Path, path: Path, about: About) -> None:
        self._files.replace(_beside(path), msgspec.json.encode(about))
        self._files.rename(part, path)
        self._files.sync_folder(self._folder)

    def delete(self, name: str) -> None:
        for path in (self.path(name), _beside(self.path(name))):
            self._files.unlink(path)
        self._files.sync_folder(self._folder)

    def _about(self, path: Path) -> About | None:
        try:
            about = msgspec.json.decode(_beside(path).read_bytes(), type=About)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return self._about_anew(path)
        return about if about.size_bytes == path.stat().st_size else self._about_anew(path)

    def _about_anew(self, path: Path) -> About | None:
        """From the snapshot itself, which then counts as from elsewhere; None if it is none."""
        try:
            reader = ArchiveReader(path)
        except (BadRequest, OSError):
            return None
        try:
            table, sha256 = reader.table, reader.sha256()
        finally:
            reader.close()
        saved = table.collections[0] if table.kind != "node" and table.collections else None
        about = About(
            kind=table.kind,
            collection=saved.collection.name if saved else None,
            shard=saved.shards[0].number if saved and table.kind == "shard" and saved.shards else None,
            made_us=table.made_us,
            size_bytes=path.stat().st_size,
            sha256=sha256,
            is_ours=False,
        )
        self._files.replace(_beside(path), msgspec.json.encode(about))
        return about


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _time_of(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)
