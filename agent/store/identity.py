"""A replica's identity on disk: incarnation, history and promised term, in two copies beside its log."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.store.files import Files
from agent.store.formats import refused_format
from core.errors import Damaged
from core.replication.replica import Identity

FORMAT = 1
_NAMES = ("replica.json", "replica-copy.json")
"""Two, because a forgotten promise is a broken fence and nothing else could tell what it was."""


class _Stored(Struct, frozen=True):
    incarnation: int
    history: int
    promised: int
    crc: int
    leader_term: int = 0
    format: int = FORMAT


def write_identity(log_folder: Path, identity: Identity, files: Files) -> None:
    """Durable once this returns."""
    stored = _Stored(
        identity.incarnation, identity.history, identity.promised, _crc(identity), identity.leader_term
    )
    for name in _NAMES:
        files.replace(log_folder / name, msgspec.json.encode(stored))


def read_identity(log_folder: Path) -> tuple[Identity, list[str]]:
    """The identity with the newest promise, and what is wrong with the copies.

    Raises Damaged, StartRefused.
    """
    found: list[Identity] = []
    wrong: list[str] = []
    for name in _NAMES:
        path = log_folder / name
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
            identity = Identity(stored.incarnation, stored.history, stored.promised, stored.leader_term)
            if stored.crc != _crc(identity, stored.format):
                raise Damaged(f"{path}: checksum is not {stored.crc}")
            if stored.format != FORMAT:
                raise refused_format(path, stored.format, FORMAT)
            found.append(identity)
        except FileNotFoundError:
            wrong.append(f"{path}: missing")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong.append(f"{path}: {error}")
        except Damaged as error:
            wrong.append(str(error))
    if not found:
        raise Damaged(f"{'; '.join(wrong)}: the replica does not know what it promised")
    newest = max(found, key=lambda identity: (identity.promised, identity.leader_term))
    if any((i.incarnation, i.history) != (newest.incarnation, newest.history) for i in found):
        raise Damaged(f"{log_folder}: the two copies of the identity belong to different replicas")
    if len(set(found)) > 1:
        wrong.append(f"{log_folder}: the copies of the identity differ, the newer promise counts")
    return newest, wrong


def _crc(identity: Identity, format_: int = FORMAT) -> int:
    text = f"{identity.incarnation} {identity.history} {identity.promised}"
    # Without a leader's term as it was before there were leaders: those files stay valid.
    text = f"{text} {identity.leader_term}" if identity.leader_term else text
    # Another format is in its own checksum: a spoilt digit must not look like one.
    return zlib.crc32((text if format_ == FORMAT else f"{text} format {format_}").encode())
