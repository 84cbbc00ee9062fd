"""What replicas, the leader and routers say to each other about one shard.

Each message carries the term it belongs to, and so does its answer. `run` is drawn by a primary at each
start: an answer to what it sent before a restart counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from core.replication.log import Entry, Position


class ReplicaId(NamedTuple):
    """A node, and which of the logs that it ever had: a lost disk makes another replica."""

    node: str
    incarnation: int


# -- primary and followers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """Entries that follow `previous`, or none: then it only carries the commit index and the round."""

    sender: ReplicaId
    to: ReplicaId
    term: int
    run: int
    previous: Position
    entries: tuple[Entry, ...]
    committed: int
    round: int
    """The newest round of reads that had begun when this was sent."""
    ask: bool = False
    """Answer even if there is nothing new to say."""


@dataclass(frozen=True, slots=True)
class Appended:
    """`matched`: as far the log is the primary's. `persisted`: as far that part of it is on disk."""

    sender: ReplicaId
    to: ReplicaId
    term: int
    run: int
    matched: int
    persisted: int
    round: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """`previous` is not in the log; the last entry that may be in both is at or before `hint`."""

    sender: ReplicaId
    to: ReplicaId
    term: int
    run: int
    previous: Position
    hint: Position
    round: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The asked replica has promised a newer term than `term`, or heard of a newer leader."""

    sender: ReplicaId
    to: ReplicaId | None
    """None: the leader, or a router."""
    term: int
    promised: int
    leader_term: int = 0


# -- catching up --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """A primary to be asks a fenced member for entries after `previous`, up to `upto_seq`."""

    sender: ReplicaId
    to: ReplicaId
    term: int
    run: int
    previous: Position
    upto_seq: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Entries after `previous`; or none, and `hint` is where to ask again."""

    sender: ReplicaId
    to: ReplicaId
    term: int
    run: int
    previous: Position
    entries: tuple[Entry, ...]
    hint: Position | None = None


# -- the leader's commands and their answers ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Promise:
    """Fence: accept nothing of an older term from now on, and say what you have."""

    to: ReplicaId
    term: int
    leader_term: int


@dataclass(frozen=True, slots=True)
class Promised:
    sender: ReplicaId
    term: int
    last: Position
    """The end of what is on disk."""


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Make your log equal to that of `source`, which ends at `best`; keep your own if it `counts` and is
    not behind."""

    to: ReplicaId
    term: int
    leader_term: int
    source: ReplicaId
    best: Position
    counts: bool


@dataclass(frozen=True, slots=True)
class CaughtUp:
    sender: ReplicaId
    term: int


@dataclass(frozen=True, slots=True)
class Level:
    """Append an empty entry of the term and bring all of `in_sync` up to it."""

    to: ReplicaId
    term: int
    leader_term: int
    in_sync: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True)
class Leveled:
    """Which of the new set have the term's first entry on disk, so far."""

    sender: ReplicaId
    term: int
    members: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True)
class NotCaughtUp:
    """Level came first, or a restart has interrupted the catching up."""

    sender: ReplicaId
    term: int


@dataclass(frozen=True, slots=True)
class Activate:
    """The map says so: sent only with what a successful CAS wrote, or a linearizable read found."""

    to: ReplicaId
    term: int
    leader_term: int
    in_sync: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True)
class Activated:
    sender: ReplicaId
    term: int


@dataclass(frozen=True, slots=True)
class Delete:
    """The configuration of `term`, which is active, is without this replica."""

    to: ReplicaId
    term: int
    leader_term: int


@dataclass(frozen=True, slots=True)
class Deleted:
    sender: ReplicaId
    term: int


# -- a router's quorum read ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskPersisted:
    to: ReplicaId
    term: int
    """The term that the router believes to be active."""


@dataclass(frozen=True, slots=True)
class HasPersisted:
    sender: ReplicaId
    term: int
    seq: int


AmongReplicas = Append | Appended | Mismatch | Refused | Fetch | Fetched
Command = Promise | CatchUp | Level | Activate | Delete
CommandAnswer = Promised | CaughtUp | Leveled | NotCaughtUp | Activated | Deleted | Refused
Message = AmongReplicas | Command | CommandAnswer | AskPersisted | HasPersisted
