"""A shard's replica: proposals, messages, ticks, fsyncs and applied entries in, effects out.

The agent (or the simulator) performs the effects in the order in which the calls returned them; see
effects.py for which of them hold back the rest. A replica is nothing, or a follower, or catching up to
become the primary, or the primary, and begins each term as nothing. One member or many is the same path:
a set of one commits what it has itself persisted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from core.errors import InvariantBroken, Overloaded, Unprocessable
from core.replication.catching_up import CatchingUp, on_fetch
from core.replication.effects import (
    Answer,
    Apply,
    Attach,
    Consistency,
    DeleteReplica,
    Effect,
    Identity,
    KeepIdentity,
    Persist,
    Refuse,
    Reply,
    Send,
    StaleTerm,
    SteppedDown,
)
from core.replication.follower import Follower
from core.replication.local import LocalLog
from core.replication.log import START, Entry, Log, Position
from core.replication.messages import (
    Activate,
    Activated,
    Append,
    Appended,
    AskPersisted,
    CatchUp,
    CaughtUp,
    Delete,
    Deleted,
    Fetch,
    Fetched,
    HasPersisted,
    Level,
    Message,
    Mismatch,
    NotCaughtUp,
    Promise,
    Promised,
    Refused,
    ReplicaId,
)
from core.replication.primary import Primary, majority_seq
from core.replication.progress import Pace
from core.replication.recent import RecentRequests
from core.wire import Nothing, Outcome, encode_op

__all__ = [
    "ALONE", "Answer", "Apply", "Attach", "Effect", "Identity", "KeepIdentity", "Persist", "Refuse",
    "Replica", "StaleTerm", "majority_seq",
]  # fmt: skip

ALONE = ReplicaId("", 0)
"""The only member of a set of one."""


class Replica:
    """`log` and `recent` hold what recovery found, all of it on disk; `applied`: how far the contents are.

    With `members` it is their active primary, in the promised term; without, it waits for a message or for
    `activate`. `run` must be new at each start.
    """

    def __init__(
        self,
        identity: Identity,
        log: Log,
        *,
        me: ReplicaId = ALONE,
        members: Iterable[ReplicaId] = (ALONE,),
        run: int = 0,
        applied: int = 0,
        time_us: int = 0,
        recent: RecentRequests | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.identity = identity
        self.me = me
        self.is_deleted = False
        self._run = run
        self._pace = Pace() if pace is None else pace
        self._local = LocalLog(log, RecentRequests() if recent is None else recent, applied, time_us)
        self._role: Primary | Follower | CatchingUp | None = None
        in_sync = tuple(members)
        if in_sync:
            self._role = self._primary(in_sync)
            self._role.is_active = True

    # -- what it is -------------------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        return self._local.log

    @property
    def recent(self) -> RecentRequests:
        return self._local.recent

    @property
    def term(self) -> int:
        """The promised term; it acts in no other."""
        return self.identity.promised

    @property
    def committed(self) -> int:
        return self._local.committed

    @property
    def applied_seq(self) -> int:
        return self._local.applied_seq

    @property
    def persisted_seq(self) -> int:
        """How far this replica's own log is on disk."""
        return self._local.persisted_seq

    @property
    def is_primary(self) -> bool:
        """Active: it may take writes and strong reads."""
        return isinstance(self._role, Primary) and self._role.is_active

    @property
    def primary(self) -> ReplicaId | None:
        """Whom it knows to be the primary in its term."""
        if self.is_primary:
            return self.me
        return self._role.primary if isinstance(self._role, Follower) else None

    def reached(self, consistency: Consistency) -> int:
        """Up to which seq a write may be acknowledged here, as the last Reached said."""
        return self._role.reached(consistency) if isinstance(self._role, Primary) else 0

    def lags(self) -> dict[ReplicaId, int]:
        """Of a primary: how many entries each follower and learner has not on disk."""
        if not isinstance(self._role, Primary):
            return {}
        last_seq = self.log.last.seq
        return {to: last_seq - target.persisted for to, target in self._role.targets.items()}

    # -- its own disk -----------------------------------------------------------------------------------

    def remember(self, entries: Iterable[Entry]) -> None:
        """Take entries that recovery read from the log, those that have a request id, oldest first."""
        self._local.remember(entries)

    def persisted(self, upto: int, generation: int | None = None) -> list[Effect]:
        """The log is on disk up to `upto`; `generation` as the Persist said (None: nothing was cut off)."""
        if not self._local.persisted(upto, generation):
            return []
        match self._role:
            case Primary() as role:
                return role.advance()
            case Follower() | CatchingUp() as role:
                return role.on_persisted()
        return []

    def applied(self, outcomes: Sequence[Outcome], last_seq: int) -> list[Effect]:
        """The entries that end at `last_seq` are applied and visible, with these outcomes."""
        effects = self._local.applied(outcomes, last_seq)
        if not isinstance(self._role, Primary):
            return []
        return [*effects, *self._role.advance()]

    def withdraw(self, after_seq: int) -> None:
        """Forget entries of which not a byte was written (no room), as if they had never come.

        All Persists that were not performed are void with them.
        """
        self._local.withdraw(after_seq)
        if isinstance(self._role, Follower):
            self._role.on_withdrawn()

    # -- clients ----------------------------------------------------------------------------------------

    def propose(
        self,
        op: bytes,
        now_us: int,
        *,
        request_id: bytes = b"",
        number: int = 0,
        body_hash: bytes = b"",
        schema: int = 0,
    ) -> list[Effect]:
        """One operation of a client's request. One effect: Persist, Attach, Answer or Refuse.

        Whoever waits for a seq may be answered when Reached (its consistency) or Answer (applied) says so.
        """
        role = self._role
        if not isinstance(role, Primary) or not role.is_active:
            return [Refuse(self._stale())]
        if request_id:
            try:
                known = self.recent.find(request_id, number, body_hash)
                if known is None:
                    self.recent.admit(now_us)
            except (Unprocessable, Overloaded) as error:
                return [Refuse(error)]
            if known is not None:
                return [Attach(known.seq) if known.outcome is None else Answer(known.seq, known.outcome)]
        if role.is_full():
            waiting = self.log.last.seq - self.committed
            return [Refuse(Overloaded(f"{waiting} writes wait for a majority of the replicas; try again"))]
        # The log's time never goes back, or a remembered request could outlive a later one.
        time_us = max(self._local.time_us, now_us)
        seq = self.log.last.seq + 1
        entry = Entry(self.term, seq, time_us, op, request_id, number, body_hash, schema)
        return [self._local.append(entry)]

    def read_strongly(self, token: int, term: int) -> list[Effect]:
        """ReadReady(token) comes when a majority has confirmed the term; nothing, after SteppedDown.

        `term` is what the router believes in.
        """
        if not isinstance(self._role, Primary) or not self._role.is_active or term != self.term:
            return [Refuse(self._stale())]
        return self._role.read(token)

    def may_read(self, seq: int, term: int) -> bool:
        """Whether a quorum read that asked up to `seq` may be answered from what is applied here.

        Raises StaleTerm if the router's term is old.
        """
        if self.term > term:
            raise self._stale()
        return self.applied_seq >= seq

    def _stale(self) -> StaleTerm:
        primary = self.primary
        led = "the shard is fenced" if primary is None else f"{primary.node or 'this node'} is the primary"
        return StaleTerm(f"{led}, in term {self.term}; fetch the map and try again")

    # -- messages and time ------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Effect]:
        """Call every 50 to 100 ms."""
        self._local.now_s = max(self._local.now_s, now_s)
        return self._role.tick() if isinstance(self._role, Primary | CatchingUp) else []

    def on_message(self, m: Message, now_s: float) -> list[Effect]:
        """Nothing happens if it is meant for another replica than this one, which this node once had."""
        self._local.now_s = max(self._local.now_s, now_s)
        if self.is_deleted or getattr(m, "to", None) != self.me:
            return []
        match m:
            case Append():
                return self._refusal(m.term, m.sender) or self._on_append(m)
            case Fetch():
                return self._refusal(m.term, m.sender) or self._on_fetch(m)
            case Appended() | Mismatch() | Fetched():
                return self._on_answer(m)
            case AskPersisted():
                return self._on_ask(m)
            case Promise() | CatchUp() | Level() | Activate() | Delete():
                return self._on_command(m)
        return []

    def _refusal(self, term: int, sender: ReplicaId) -> list[Effect]:
        """The refusal of an older term, if it is one."""
        if term >= self.term:
            return []
        return [Send(Refused(self.me, sender, term, self.term, self.identity.leader_term))]

    def _on_append(self, m: Append) -> list[Effect]:
        effects = self._promise(m.term)
        if self._role is None:
            self._role = Follower(self._local, self.me, m.term, m.sender)
        if not isinstance(self._role, Follower):
            raise InvariantBroken(f"{m.sender} and {self.me} are both primary in term {m.term}")
        return [*effects, *self._role.on_append(m)]

    def _on_fetch(self, m: Fetch) -> list[Effect]:
        return [*self._promise(m.term), *on_fetch(self._local, self.me, m, self._pace)]

    def _on_answer(self, m: Appended | Mismatch | Fetched) -> list[Effect]:
        if m.term != self.term:
            return []
        match self._role, m:
            case Primary() as role, Appended():
                return role.on_appended(m)
            case Primary() as role, Mismatch():
                return role.on_mismatch(m)
            case CatchingUp() as role, Fetched():
                return role.on_fetched(m)
        return []

    def _on_ask(self, m: AskPersisted) -> list[Effect]:
        if m.term != self.term:  # a fence and a majority meet: an old map can't gather a majority
            return [Reply(Refused(self.me, None, m.term, self.term))]
        return [Reply(HasPersisted(self.me, m.term, self.persisted_seq))]

    # -- the leader's commands --------------------------------------------------------------------------

    def promise(self, term: int) -> list[Effect]:
        """Accept nothing of an older term from now on."""
        if term < self.term:
            return [Refuse(StaleTerm(f"term {term} is older than {self.term}; fetch the map"))]
        return self._promise(term)

    def activate(
        self,
        term: int,
        in_sync: Iterable[ReplicaId],
        now_us: int,
        learners: Iterable[ReplicaId] = (),
    ) -> list[Effect]:
        """The map names this replica the primary, in a term that it has promised: by a chosen value only.

        Also after a restart in its own term, and when the learners have changed.
        """
        if term != self.term:
            return [Refuse(StaleTerm(f"term {term} was not promised, {self.term} was"))]
        effects: list[Effect] = []
        if not isinstance(self._role, Primary):
            if self.log.last.term != term and self.log.last != START:
                raise InvariantBroken(
                    f"{self.me} is active in term {term}, but its log ends at {self.log.last}"
                )
            effects = self._begin_term(tuple(in_sync), now_us)
        assert isinstance(self._role, Primary)
        return [*effects, *self._role.activate(learners)]

    def _on_command(self, m: Promise | CatchUp | Level | Activate | Delete) -> list[Effect]:
        if m.leader_term < self.identity.leader_term or m.term < self.term:
            refused = Refused(self.me, None, m.term, self.term, self.identity.leader_term)
            return [Reply(refused)]
        match m:
            case Promise():
                effects = self._promise(m.term, m.leader_term)
                last = self.log.position_at(self.persisted_seq)
                return [*effects, Reply(Promised(self.me, m.term, last))]
            case CatchUp():
                return [*self._promise(m.term, m.leader_term), *self._on_catch_up(m)]
            case Level():
                return [*self._promise(m.term, m.leader_term), *self._on_level(m)]
            case Activate():
                effects = self._promise(self.term, m.leader_term)
                if m.term > self.term:  # it never leveled in that term
                    return [*effects, Reply(NotCaughtUp(self.me, m.term))]
                activated = self.activate(m.term, m.in_sync, self._local.time_us, m.learners)
                return [*effects, *activated, Reply(Activated(self.me, m.term))]
            case Delete():
                self.is_deleted = True
                self._role = None
                return [SteppedDown(m.term), DeleteReplica(), Reply(Deleted(self.me, m.term))]

    def _on_catch_up(self, m: CatchUp) -> list[Effect]:
        # Once the log has an entry of the term, its end is ours to say: never again equal to an older one.
        if self.log.last.term == m.term or isinstance(self._role, Primary):
            return [Reply(CaughtUp(self.me, m.term))]
        if isinstance(self._role, Follower):
            raise InvariantBroken(f"{self._role.primary} and {self.me} are both primary in term {m.term}")
        if isinstance(self._role, CatchingUp) and self._role.is_done:
            return [Reply(CaughtUp(self.me, m.term))]
        self._role = CatchingUp(self._local, self.me, self._run, m, self._pace)
        return self._role.begin()

    def _on_level(self, m: Level) -> list[Effect]:
        role = self._role
        if isinstance(role, Primary):
            return [role.leveled()]
        is_equal = isinstance(role, CatchingUp) and role.is_done
        if not is_equal and self.log.last.term != m.term:
            return [Reply(NotCaughtUp(self.me, m.term))]
        effects = self._begin_term(m.in_sync, self._local.time_us)
        assert isinstance(self._role, Primary)
        return [*effects, *self._role.advance()]

    def _begin_term(self, in_sync: tuple[ReplicaId, ...], now_us: int) -> list[Effect]:
        """An empty entry of the new term will commit all that came before it."""
        if isinstance(self._role, Follower):
            raise InvariantBroken(f"{self._role.primary} and {self.me} are both primary in term {self.term}")
        effects: list[Effect] = []
        if self.log.last.term != self.term:
            time_us = max(self._local.time_us, now_us)
            entry = Entry(self.term, self.log.last.seq + 1, time_us, encode_op(Nothing()))
            effects = [self._local.append(entry)]
        self._role = self._primary(in_sync)
        return effects

    def _primary(self, in_sync: tuple[ReplicaId, ...]) -> Primary:
        return Primary(self._local, self.me, self.term, self._run, in_sync, self._pace)

    def _promise(self, term: int, leader_term: int = 0) -> list[Effect]:
        """Durable before whatever follows. In a new term this replica is nothing yet."""
        leader_term = max(leader_term, self.identity.leader_term)
        if (term, leader_term) == (self.term, self.identity.leader_term):
            return []
        down: list[Effect] = []
        if term > self.term:
            down = [SteppedDown(term)] if isinstance(self._role, Primary) else []
            self._role = None
        self.identity = replace(self.identity, promised=term, leader_term=leader_term)
        return [KeepIdentity(self.identity), *down]

    # -- snapshots --------------------------------------------------------------------------------------

    def wants_snapshot(self, term: int, position: Position) -> bool:
        """Whether a snapshot that is offered in this term, of what is committed up to here, is of use."""
        return not self.is_deleted and term >= self.term and self._local.wants(position)

    def install(self, term: int, position: Position, recent: RecentRequests, time_us: int) -> list[Effect]:
        """A whole, checked snapshot is there. Nothing happens if this replica has more, or a newer term."""
        if not self.wants_snapshot(term, position):
            return []
        if isinstance(self._role, Primary) and term == self.term:
            raise InvariantBroken(f"{self.me} leads term {term} and lacks {position}, which is committed")
        effects: list[Effect] = [*self._promise(term)]
        if isinstance(self._role, Follower):
            self._role.on_install(position.seq)
        return [*effects, self._local.install(position, recent, time_us)]

    def installed(self, position: Position) -> list[Effect]:
        """Log and contents on disk are the snapshot's, and what has followed it."""
        self._local.installed(position.seq)
        match self._role:
            case Follower() as role:
                return role.on_installed()
            case CatchingUp() as role:
                return role.begin()
        return []
