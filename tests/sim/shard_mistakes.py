"""Mistakes planted into the shard log, for the simulation to find: python -m tests.sim.shard_mistakes

Each is a patch of the real objects, in test code only. The table says after how many seeds it was caught.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from core.cluster import Pending, Shard
from core.replication import effects as fx
from core.replication import reads, reconfigure
from core.replication.catching_up import CatchingUp
from core.replication.follower import Follower
from core.replication.local import LocalLog
from core.replication.messages import (
    Append,
    Appended,
    CatchUp,
    Delete,
    HasPersisted,
    Level,
    Promise,
    Promised,
)
from core.replication.primary import Primary
from core.replication.reads import QuorumRead, ReadRounds
from core.replication.reconfigure import Reconfiguration, Step, fence_size, replica_ids
from core.replication.replica import Replica
from tests.sim.shard_actors import Coordinator
from tests.sim.shard_node import Disk, Node
from tests.sim.shard_run import run

SEEDS_MAX = 3000
Mistake = Callable[[], Any]
MISTAKES: dict[str, Mistake] = {}
RARE = (
    "promise answered before fsync",
    "late deletion obeyed",
    "strong read without the round",
    "restarted primary reads too early",
    "no term in quorum reads",
)
"""Caught in fewer than one seed of 300: tests/unit/test_shard_log.py has a directed test of each."""


@contextmanager
def patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def mistake(name: str) -> Callable[[Callable[[], list[tuple[Any, str, Any]]]], Mistake]:
    def register(changes: Callable[[], list[tuple[Any, str, Any]]]) -> Mistake:
        MISTAKES[name] = lambda: patched(*changes())
        return MISTAKES[name]

    return register


# -- the fence ----------------------------------------------------------------------------------------------


@mistake("no fence")
def _no_fence() -> list[tuple[Any, str, Any]]:
    on_command = Replica._on_command

    def answer_only(self: Replica, m: Any) -> list[fx.Effect]:
        if isinstance(m, Promise) and m.term > self.term:
            return [fx.Reply(Promised(self.me, m.term, self.log.position_at(self.persisted_seq)))]
        return on_command(self, m)

    return [(Replica, "_on_command", answer_only)]


@mistake("one too few fenced")
def _too_few() -> list[tuple[Any, str, Any]]:
    return [(reconfigure, "fence_size", lambda n: max(1, fence_size(n) - 1))]


@mistake("fence answers of non-members count")
def _non_members() -> list[tuple[Any, str, Any]]:
    begin = Reconfiguration.begin

    def ask_all(self: Reconfiguration, now_s: float) -> list[Any]:
        self._active = replica_ids(self._before, self._before.replicas)
        return begin(self, now_s)

    return [
        (Reconfiguration, "begin", ask_all),
        (reconfigure, "fence_size", lambda n: fence_size(min(n, 3))),
    ]


@mistake("promise answered before fsync")
def _promise_unsynced() -> list[tuple[Any, str, Any]]:
    def keep(self: Node, e: fx.KeepIdentity) -> None:
        self.disk.identity_unsynced = e.identity
        life = self.life

        def done() -> None:
            if life == self.life:
                self.disk.identity = max(self.disk.identity, e.identity, key=lambda i: i.promised)

        self.world.at(self.world.soon(self.world.rates.sync_s), done)

    return _performing(fx.KeepIdentity, keep)


@mistake("higher term not promised")
def _not_promised() -> list[tuple[Any, str, Any]]:
    def on_append(self: Replica, m: Append) -> list[fx.Effect]:
        if not isinstance(self._role, Follower) or self._role.term != m.term:
            self._role = Follower(self._local, self.me, m.term, m.sender)
        return self._role.on_append(m)

    return [(Replica, "_on_append", on_append)]


@mistake("lower term accepted")
def _lower_term() -> list[tuple[Any, str, Any]]:
    on_append = Replica._on_append

    def accept(self: Replica, m: Append) -> list[fx.Effect]:
        if m.term < self.term:
            self._role = Follower(self._local, self.me, m.term, m.sender)
            return self._role.on_append(m)
        if isinstance(self._role, Follower) and self._role.term != m.term:
            self._role = None
        return on_append(self, m)

    return [(Replica, "_refusal", lambda *_: []), (Replica, "_on_append", accept)]


@mistake("primary ignores its own promise")
def _own_promise() -> list[tuple[Any, str, Any]]:
    promise = Replica._promise

    def stay(self: Replica, term: int, leader_term: int = 0) -> list[fx.Effect]:
        role = self._role
        effects = promise(self, term, leader_term)
        if isinstance(role, Primary) and role.is_active:
            self._role = role
        return [e for e in effects if not isinstance(e, fx.SteppedDown)]

    def on_answer(self: Replica, m: Any) -> list[fx.Effect]:
        role = self._role
        if isinstance(role, Primary) and isinstance(m, Appended) and m.term == role.term:
            return role.on_appended(m)
        return before(self, m)

    before = Replica._on_answer
    catch_up, level = Replica._on_catch_up, Replica._on_level

    def old_role_ends(method: Any) -> Any:
        def call(self: Replica, m: Any) -> list[fx.Effect]:
            if isinstance(self._role, Primary) and self._role.term != m.term:
                self._role = None
            result: list[fx.Effect] = method(self, m)
            return result

        return call

    def on_append(self: Replica, m: Append) -> list[fx.Effect]:
        self._promise(m.term)
        if isinstance(self._role, Primary) and self._role.term < m.term:
            self._role = None
        return appended(self, m)

    appended = Replica._on_append
    return [
        (Replica, "_promise", stay),
        (Replica, "_on_answer", on_answer),
        (Replica, "_on_catch_up", old_role_ends(catch_up)),
        (Replica, "_on_level", old_role_ends(level)),
        (Replica, "_on_append", on_append),
    ]


@mistake("new primary does not promise")
def _new_primary() -> list[tuple[Any, str, Any]]:
    on_command = Replica._on_command

    def forget(self: Replica, m: Any) -> list[fx.Effect]:
        effects = on_command(self, m)
        if isinstance(m, CatchUp | Level):  # it acts in the term, but a restart makes it forget
            return [e for e in effects if not isinstance(e, fx.KeepIdentity)]
        return effects

    return [(Replica, "_on_command", forget)]


# -- catching up, truncation, level, activation -------------------------------------------------------------


@mistake("catch-up skipped")
def _no_catch_up() -> list[tuple[Any, str, Any]]:
    return [(CatchingUp, "begin", CatchingUp._finish)]


@mistake("no truncation")
def _no_truncation() -> list[tuple[Any, str, Any]]:
    def take(self: LocalLog, _: Any, entries: Any) -> list[fx.Effect]:
        fresh = tuple(e for e in entries if e.seq > self.log.last.seq and e.term >= self.log.last.term)
        for entry in fresh:
            self._add(entry)
        return [fx.Persist(fresh, self.generation)] if fresh else []

    return [(LocalLog, "take", take)]


@mistake("truncates too much")
def _too_much() -> list[tuple[Any, str, Any]]:
    take = LocalLog.take

    def cut(self: LocalLog, previous: Any, entries: Any) -> list[fx.Effect]:
        effects: list[fx.Effect] = []
        if entries and self.log.base.seq <= previous.seq < self.log.last.seq:
            effects = [self.truncate(max(previous.seq, self.committed))]
        return [*effects, *take(self, previous, entries)]

    return [(LocalLog, "take", cut)]


@mistake("late catch-up command obeyed again")
def _late_catch_up() -> list[tuple[Any, str, Any]]:
    def obey(self: Replica, m: CatchUp) -> list[fx.Effect]:
        self._role = CatchingUp(self._local, self.me, self._run, m, self._pace)
        return self._role.begin()

    return [(Replica, "_on_catch_up", obey)]


@mistake("no empty entry")
def _no_empty_entry() -> list[tuple[Any, str, Any]]:
    def begin(self: Replica, in_sync: Any, _: int) -> list[fx.Effect]:
        self._role = self._primary(in_sync)
        return []

    def activate(self: Replica, term: int, in_sync: Any, now_us: int, learners: Any = ()) -> list[fx.Effect]:
        if term != self.term:
            return []
        if not isinstance(self._role, Primary):
            self._role = self._primary(tuple(in_sync))
        return self._role.activate(learners)

    return [(Replica, "_begin_term", begin), (Replica, "activate", activate)]


@mistake("commits before it is active")
def _before_active() -> list[tuple[Any, str, Any]]:
    advance = Primary.advance

    def commit_at_once(self: Primary) -> list[fx.Effect]:
        effects = advance(self)
        return effects if self.is_active else [*effects, *self._commit()]

    return [(Primary, "advance", commit_at_once)]


@mistake("Activate overwrites a newer pending")
def _overwrites() -> list[tuple[Any, str, Any]]:
    on_conflict = Reconfiguration.on_conflict

    def insist(self: Reconfiguration, current: Shard, now_s: float) -> list[Any]:
        if self.step is Step.ACTIVATE and current.term < self.term:
            self._shard = replace(current, pending=self._shard.pending)
            change = reconfigure.Change(current, reconfigure.activated(self._shard))
            return [change]
        return on_conflict(self, current, now_s)

    return [(Reconfiguration, "on_conflict", insist)]


@mistake("next attempt in the same term")
def _same_term() -> list[tuple[Any, str, Any]]:
    def again(shard: Shard, plan: reconfigure.Plan) -> Shard:
        return replace(shard, pending=Pending(shard.term + 1, plan.primary, plan.in_sync))

    return [(reconfigure, "numbered", again)]


@mistake("pending withdrawn, number forgotten")
def _withdrawn() -> list[tuple[Any, str, Any]]:
    do = Coordinator._do

    def withdraw(self: Coordinator, effects: list[Any]) -> None:
        do(self, effects)
        record = self.world.record
        if record.pending and any(isinstance(e, reconfigure.Failed) for e in effects):
            self.world.compare_and_set(record, replace(record, pending=None))

    return [(Coordinator, "_do", withdraw)]


@mistake("late deletion obeyed")
def _late_deletion() -> list[tuple[Any, str, Any]]:
    on_command = Replica._on_command

    def obey(self: Replica, m: Any) -> list[fx.Effect]:
        if isinstance(m, Delete):
            m = Delete(m.to, max(m.term, self.term), max(m.leader_term, self.identity.leader_term))
        return on_command(self, m)

    return [(Replica, "_on_command", obey)]


# -- commit, apply, the disk --------------------------------------------------------------------------------


@mistake("apply before commit")
def _apply_early() -> list[tuple[Any, str, Any]]:
    def commit(self: Follower) -> list[fx.Effect]:
        upto = min(self._matched, self._local.persisted_seq)
        return self._local.commit(upto) if upto > self._local.committed else []

    return [(Follower, "_commit", commit)]


@mistake("commit index believed beyond the match")
def _beyond_match() -> list[tuple[Any, str, Any]]:
    def commit(self: Follower) -> list[fx.Effect]:
        upto = min(self._committed, self._local.persisted_seq)
        return self._local.commit(upto) if upto > self._local.committed else []

    on_append = Follower.on_append

    def believe(self: Follower, m: Append) -> list[fx.Effect]:
        self._committed = max(self._committed, m.committed)
        return [*commit(self), *on_append(self, m)]

    return [(Follower, "_commit", commit), (Follower, "on_append", believe)]


@mistake("learner counted")
def _learner_counted() -> list[tuple[Any, str, Any]]:
    commit = Primary._commit

    def count_all(self: Primary) -> list[fx.Effect]:
        all_ = [self._local.persisted_seq, *(t.persisted for t in self.targets.values())]
        candidate = sorted(all_, reverse=True)[len(self.in_sync) // 2]
        effects: list[fx.Effect] = []
        if candidate > self._local.committed and self._local.log.term_at(candidate) == self.term:
            effects = self._local.commit(min(candidate, self._local.persisted_seq))
        return [*effects, *commit(self)]

    return [(Primary, "_commit", count_all)]


@mistake("append answered before fsync")
def _append_unsynced() -> list[tuple[Any, str, Any]]:
    on_append = Follower.on_append

    def answer(self: Follower, m: Append) -> list[fx.Effect]:
        effects = on_append(self, m)
        if any(isinstance(e, fx.Persist) for e in effects):
            seq = self._local.log.last.seq
            run_, round_ = self._run, self._round
            effects.append(fx.Send(Appended(self._me, m.sender, m.term, run_, seq, seq, round_)))
        return effects

    return [(Follower, "on_append", answer)]


@mistake("sends before its own fsync")
def _sends_unsynced() -> list[tuple[Any, str, Any]]:
    send, propose, commit = Primary._send, Replica.propose, LocalLog.commit

    def send_all(self: Primary, to: Any, target: Any) -> list[fx.Effect]:
        before = self._local.persisted_seq
        self._local.persisted_seq = self._local.log.last.seq
        effects = send(self, to, target)
        self._local.persisted_seq = before
        return effects

    def propose_and_send(self: Replica, *args: Any, **kwargs: Any) -> list[fx.Effect]:
        effects = propose(self, *args, **kwargs)
        if isinstance(effects[0], fx.Persist) and isinstance(self._role, Primary):
            effects += self._role.advance()
        return effects

    def commit_less(self: LocalLog, upto: int) -> list[fx.Effect]:
        return commit(self, min(upto, self.persisted_seq))

    def persisted_by(self: Primary, member: Any) -> int:
        return self._local.log.last.seq if member == self._me else self.targets[member].persisted

    return [
        (Primary, "_send", send_all),
        (Replica, "propose", propose_and_send),
        (LocalLog, "commit", commit_less),
        (Primary, "_persisted_by", persisted_by),
    ]


@mistake("lost disk keeps identity")
def _keeps_identity() -> list[tuple[Any, str, Any]]:
    def lose(self: Node) -> None:
        self.disk = Disk(fx.Identity(self.disk.identity.incarnation, 1, promised=1))

    return [(Node, "lose_disk", lose)]


@mistake("damaged replica answers")
def _damaged_answers() -> list[tuple[Any, str, Any]]:
    def lose_the_end(self: Node) -> None:
        keep = max(self.disk.checkpoint.position.seq - self.disk.base.seq, len(self.disk.synced) // 2)
        del self.disk.synced[keep:]

    return [(Node, "lose_disk", lose_the_end)]


@mistake("id table not rebuilt")
def _no_table() -> list[tuple[Any, str, Any]]:
    take = LocalLog.take

    def forget(self: LocalLog, previous: Any, entries: Any) -> list[fx.Effect]:
        effects = take(self, previous, entries)
        self.recent.truncate(-1)
        return effects

    return [(LocalLog, "take", forget), (LocalLog, "remember", lambda *_: None)]


# -- reads --------------------------------------------------------------------------------------------------


@mistake("strong read without the round")
def _no_round() -> list[tuple[Any, str, Any]]:
    return [(ReadRounds, "_has_majority", lambda *_: True)]


@mistake("restarted primary reads too early")
def _reads_early() -> list[tuple[Any, str, Any]]:
    def ready(self: Primary) -> list[fx.ReadReady]:
        return self.reads.advance(self._local.committed, self._local.applied_seq, may_confirm=True)

    return [(Primary, "_ready_reads", ready)]


@mistake("quorum read asks one")
def _asks_one() -> list[tuple[Any, str, Any]]:
    on_answer = QuorumRead.on_answer

    def first(self: QuorumRead, m: Any) -> Any:
        with patched((reads, "majority", lambda _: 1)):
            return on_answer(self, m)

    return [(QuorumRead, "on_answer", first)]


@mistake("quorum read does not wait")
def _no_wait() -> list[tuple[Any, str, Any]]:
    return [(Replica, "may_read", lambda *_: True)]


@mistake("no term in quorum reads")
def _no_term() -> list[tuple[Any, str, Any]]:
    def on_ask(self: Replica, m: Any) -> list[fx.Effect]:
        return [fx.Reply(HasPersisted(self.me, m.term, self.persisted_seq))]

    return [
        (Replica, "_on_ask", on_ask),
        (Replica, "may_read", lambda self, seq, _: self.applied_seq >= seq),
    ]


def _performing(kind: type, how: Any) -> list[tuple[Any, str, Any]]:
    from tests.sim import shard_node

    return [(shard_node, "_PERFORM", {**shard_node._PERFORM, kind: how})]


def caught_after(name: str, seeds_max: int = SEEDS_MAX, wanted: int = 1) -> tuple[int, int]:
    """How often it was caught, in how many seeds, and no more than are needed."""
    caught = 0
    with MISTAKES[name]():
        for seed in range(seeds_max):
            caught += run(seed).failure is not None
            if caught >= wanted:
                return caught, seed + 1
    return caught, seeds_max


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--catches", type=int, default=5)
    options = parser.parse_args()
    missed = 0
    for name in options.names or MISTAKES:
        began = time.perf_counter()
        caught, seeds = caught_after(name, options.seeds, options.catches)
        missed += caught == 0
        print(f"{name:45} {caught:3} / {seeds:5}   {time.perf_counter() - began:6.1f} s", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
