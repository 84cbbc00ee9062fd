"""What a replica asks the agent (or the simulator) to do.

The effects of one replica, over all its calls, are performed in their order. KeepIdentity and Install
hold back all that follow until they are durable. Persist and Truncate go to the log's writer, in order,
and don't hold back what follows: whatever rests on them comes only after `persisted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from core.errors import ShoalError, Unavailable
from core.replication.log import Entry, Position
from core.replication.messages import (
    Append,
    CommandAnswer,
    Fetched,
    HasPersisted,
    Message,
    Refused,
    ReplicaId,
)
from core.wire import Outcome


class Consistency(StrEnum):
    EVENTUAL = "eventual"
    QUORUM = "quorum"
    STRONG = "strong"


class StaleTerm(Unavailable):
    """This replica has promised a newer term, and takes nothing in the one asked for."""

    code = "stale-term"


class NotPrimary(Unavailable):
    """This replica is not its shard's active primary."""

    code = "not-primary"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is: made with its empty log, kept beside it, durable. The terms only grow."""

    incarnation: int
    history: int
    promised: int
    leader_term: int = 0
    """The highest term of a leader whose command came."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Append these to the log and fsync, then call `persisted`; or `withdraw` if not a byte was written."""

    entries: tuple[Entry, ...]
    generation: int = 0
    """To be given back: what was cut off since then is not on disk, whatever had been written."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut the log after this seq, durably before any Persist that follows."""

    after_seq: int


@dataclass(frozen=True, slots=True)
class KeepIdentity:
    """Make the identity durable before any effect that follows it."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Apply:
    """Entries first_seq..last_seq are committed: apply them in order, then call `applied`."""

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The entry at `seq` was applied: tell everybody who waits for it."""

    seq: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Attach:
    """A retry met its own entry: whoever asked waits for `seq` like the first who did."""

    seq: int


@dataclass(frozen=True, slots=True)
class Reached:
    """Up to which seq a write may be acknowledged, by consistency."""

    eventual: int
    quorum: int
    strong: int

    def seq(self, consistency: Consistency) -> int:
        match consistency:
            case Consistency.EVENTUAL:
                return self.eventual
            case Consistency.QUORUM:
                return self.quorum
            case Consistency.STRONG:
                return self.strong


@dataclass(frozen=True, slots=True)
class SteppedDown:
    """Who waits for a write or a strong read here is told to ask the new primary, with the same id."""

    term: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing happened, and why."""

    error: ShoalError


@dataclass(frozen=True, slots=True)
class Send:
    """To the replica that the message names."""

    message: Message


@dataclass(frozen=True, slots=True)
class SendEntries:
    """Fill in the entries after `message.previous` up to `last_seq`, read from the log, and send it.

    Fewer may be sent; none, and nothing at all, if the log does not have them any more.
    """

    message: Append | Fetched
    last_seq: int


@dataclass(frozen=True, slots=True)
class Reply:
    """To whoever asked. CaughtUp and Leveled: to all who asked and have no answer yet."""

    message: CommandAnswer | HasPersisted | Refused


@dataclass(frozen=True, slots=True)
class OfferSnapshot:
    """`to` needs what this log has no more: send it a snapshot at `applied`, unless one is under way."""

    to: ReplicaId
    term: int


@dataclass(frozen=True, slots=True)
class Install:
    """Replace contents and log by the snapshot that ends here, atomically, before any effect that follows;
    then call `installed`. What was still to be persisted or applied is void."""

    position: Position


@dataclass(frozen=True, slots=True)
class ReadReady:
    """A strong read may be answered from what is applied."""

    token: int


@dataclass(frozen=True, slots=True)
class DeleteReplica:
    """Remove it all from disk. Nothing follows."""


Effect = (
    Persist
    | Truncate
    | KeepIdentity
    | Apply
    | Answer
    | Attach
    | Reached
    | SteppedDown
    | Refuse
    | Send
    | SendEntries
    | Reply
    | OfferSnapshot
    | Install
    | ReadReady
    | DeleteReplica
)
