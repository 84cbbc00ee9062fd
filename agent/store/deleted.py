"""The folders of shards; those that the map no longer names are set aside in `deleted/`, and swept later."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DELETED = "deleted"
SHARDS = "shards"
ABOUT = "collection.json"

_FOLDER = re.compile(r"(\d+)-(\d+)")
_GRAVE = re.compile(r"\d+-\d+")
_STAGED = re.compile(r"(\d+)-(\d+)\.(\d+)\.new")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long, and how much of it, is kept."""

    age_s_max: float = 24 * 3600
    bytes_max: int = 10 << 30
    count_max: int = 100


def shard_folder(data: Path, collection: int, shard: int) -> Path:
    return data / SHARDS / f"{collection}-{shard}"


def staged_folder(data: Path, collection: int, shard: int, incarnation: int) -> Path:
    """Where a replica is built that is to take the place of one: it counts once the map says so."""
    return data / SHARDS / f"{collection}-{shard}.{incarnation}.new"


def collections_on_disk(data: Path) -> set[int]:
    return {int(found[1]) for path in (data / SHARDS).iterdir() if (found := _FOLDER.fullmatch(path.name))}


def staged_on_disk(data: Path) -> list[tuple[int, int, int]]:
    """Collection, shard, incarnation of what `staged_folder` names."""
    names = [_STAGED.fullmatch(path.name) for path in (data / SHARDS).iterdir()]
    return [(int(found[1]), int(found[2]), int(found[3])) for found in names if found]


def put_in_place(data: Path, collection: int, shard: int, incarnation: int, *, now_us: int) -> None:
    """The staged replica instead of the one that is there, which is set aside. Again: nothing happens."""
    staged = staged_folder(data, collection, shard, incarnation)
    if not staged.exists():
        return
    there = shard_folder(data, collection, shard)
    if there.exists():
        _bury(data, collection, [there], b"{}", now_us)
    staged.rename(there)


def shard_folders(data: Path, collection: int) -> list[Path]:
    return sorted((data / SHARDS).glob(f"{collection}-*"))


def set_aside(data: Path, collection: int, about: bytes, *, now_us: int) -> None:
    """Move a collection's folders out of the way; `about` says what it was. Repeating it is harmless."""
    if folders := shard_folders(data, collection):
        _bury(data, collection, folders, about, now_us)


def _bury(data: Path, collection: int, folders: list[Path], about: bytes, now_us: int) -> None:
    grave = data / DELETED / f"{now_us:017d}-{collection}"
    try:
        grave.mkdir(mode=0o700, parents=True, exist_ok=True)
        (grave / ABOUT).write_bytes(about)
        for folder in folders:
            folder.rename(grave / folder.name)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Deleting is how a full disk gets room again: then nothing is kept.
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(data: Path, bounds: Bounds, *, now_us: int, is_low: Callable[[], bool]) -> list[str]:
    """Remove what is past the bounds, and, while the disk is low, whatever there is. What was removed."""
    for half in (data / DELETED).glob(".*"):
        shutil.rmtree(half)
    graves = sorted(
        (path for path in (data / DELETED).glob("*-*") if _GRAVE.fullmatch(path.name)), reverse=True
    )
    removed: list[str] = []
    kept, kept_bytes = 0, 0
    for grave in graves:  # newest first: they are kept as long as they fit
        size_bytes = _size(grave)
        is_old = now_us - int(grave.name.split("-")[0]) > bounds.age_s_max * 1e6
        if is_old or kept + 1 > bounds.count_max or kept_bytes + size_bytes > bounds.bytes_max:
            _remove(grave)
            removed.append(grave.name)
        else:
            kept, kept_bytes = kept + 1, kept_bytes + size_bytes
    for grave in reversed(graves):
        if grave.name not in removed and is_low():
            _remove(grave)
            removed.append(grave.name)
    return removed


def _size(folder: Path) -> int:
    """Bytes on disk: files here have holes."""
    return sum(
        os.lstat(os.path.join(where, name)).st_blocks * 512
        for where, _, names in os.walk(folder)
        for name in names
    )


def _remove(grave: Path) -> None:
    # Named first so that a crash half-way leaves nothing that looks whole.
    going = grave.with_name(f".{grave.name}")
    grave.rename(going)
    shutil.rmtree(going)
