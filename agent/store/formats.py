"""How a file of a later format is refused: whole, but nothing that this version may read, change or heal."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from core.errors import StartRefused


def refused_format(path: Path, found: int, known: int) -> StartRefused:
    """To be raised."""
    return StartRefused(
        f"{path} has format {found}, this version of Shoal reads {known}: "
        "run the version that wrote it, or a later one"
    )


class _Marked(Struct, frozen=True):
    format: int = 1


def check_json_format(path: Path, raw: bytes, known: int) -> None:
    """Of a JSON file whose checksum was right. Before the rest is decoded: its fields may be others.

    Raises StartRefused.
    """
    try:
        found = msgspec.json.decode(raw, type=_Marked).format
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # whoever reads it all says what it is
    if found != known:
        raise refused_format(path, found, known)
