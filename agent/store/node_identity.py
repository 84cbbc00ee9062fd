"""Who this node is: the data folder's lock, and node.json with the cluster that it belongs to.

node.json is written before the register holds anything (`begun` false) and again once it does. So a
missing register is right only before that, and a node that belongs to a cluster never begins another.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.store.files import Files
from agent.store.formats import check_json_format
from core.errors import Damaged, StartRefused

NODE_JSON = "node.json"
LOCK = "lock"
FORMAT = 1


class NodeIdentity(Struct, frozen=True, kw_only=True):
    """`cluster`: its uuid. `voters`: whom to ask for the truth, as of the last start that asked."""

    node: str
    cluster: str
    voters: tuple[str, ...]
    begun: bool = False
    format: int = FORMAT
    crc: int = 0


def lock_folder(folder: Path) -> int:
    """Makes the folder and locks it until the returned descriptor is closed. Raises StartRefused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StartRefused(
            f"{folder} is in use by another agent: stop that one, or give this one a data_dir of its own"
        ) from None
    return fd


def read_identity(folder: Path, node: str) -> NodeIdentity | None:
    """What node.json says; None if there is none. Raises Damaged, or StartRefused if it is another node's."""
    path = folder / NODE_JSON
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    if _is_whole(raw):
        check_json_format(path, raw, FORMAT)
    try:
        identity = msgspec.json.decode(raw, type=NodeIdentity)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Damaged(f"{path} cannot be read: {e}") from None
    if _encoded(identity) != raw:
        raise Damaged(f"{path} does not match its checksum")
    if identity.node != node:
        raise StartRefused(
            f"{folder} belongs to node {identity.node!r}, this agent is {node!r}: check data_dir and --node"
        )
    return identity


def write_identity(folder: Path, identity: NodeIdentity, files: Files) -> None:
    files.replace(folder / NODE_JSON, _encoded(identity))


def _is_whole(raw: bytes) -> bool:
    """By the text, as a later version may have other fields; the last one is always the checksum."""
    text, mark, crc = raw.rpartition(b'"crc":')
    return bool(mark) and crc == b"%d}" % zlib.crc32(text + mark + b"0}")


def _encoded(identity: NodeIdentity) -> bytes:
    bare = msgspec.json.encode(replace(identity, crc=0))
    return msgspec.json.encode(replace(identity, crc=zlib.crc32(bare)))
