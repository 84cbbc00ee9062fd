"""Sealed graphs as files: whole or not, named by the manifest or left over."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.store.files import Files
from agent.store.manifest import Manifest, Segment

_HASH_HEX = 32
_CHUNK_BYTES = 4 << 20


def damage_of(folder: Path, segment: Segment) -> str | None:
    """What is wrong with a segment's file in the shard's folder, or None."""
    return _damage(folder / "segments" / Path(segment.file).name, segment.hash)


def damage_of_mean(folder: Path, file: str) -> str | None:
    """The same for `<v>.<hash>.mean`, which the graphs of a Euclid vector cannot be searched without."""
    path = folder / "segments" / Path(file).name
    return _damage(path, path.name.split(".")[1])


def _damage(path: Path, hash_: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        return f"{path}: missing"
    found = digest.hexdigest()[:_HASH_HEX]
    return None if found == hash_ else f"{path}: its hash is {found}, should be {hash_}"


def remove_unnamed(folder: Path, manifest: Manifest, files: Files) -> None:
    """Unlink what a builder that was killed left behind, before anybody can build again."""
    named = {Path(s.file).name for state in manifest.vectors.values() for s in state.segments}
    named |= {Path(state.mean).name for state in manifest.vectors.values() if state.mean is not None}
    for path in (folder / "segments").iterdir():
        if path.name not in named and path.is_file():
            files.unlink(path)
