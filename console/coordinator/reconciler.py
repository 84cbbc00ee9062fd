"""What a leader does: looks at nodes and shards, and takes one safe step at a time for each shard in need.

core/recovery.py says which step; an attempt carries it out. Many shards at once, never two steps for one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from console.coordinator.attempt import Attempt, Ports, Succeeded, activation
from console.coordinator.failovers import PACE, Failovers
from console.coordinator.leadership import Reign
from console.coordinator.map_key import MapKey
from console.coordinator.news import News
from console.coordinator.shards_key import ShardsKey, event
from console.coordinator.stores import ShardId, Stores
from console.peers import Links
from console.state_client import StateClient
from core.cluster import ClusterMap, CollectionId, NodeId, Shard
from core.config_values import host_port
from core.detector import Pace, Rules, Verdict
from core.errors import ShoalError
from core.recovery import Nodes, Reconfigure, Renew, Replicas, Stuck, next_step, smallest_set
from core.replication.reconfigure import Failed, Patience, with_learner
from net.logs import Log

AT_ONCE = 64
"""Attempts under way."""
LOOK_S, LOOK_S_MIN = 0.1, 0.01
"""Between two looks: when nothing has happened, and when much has."""
AGAIN_S, AGAIN_S_MAX = 0.1, 3.0
SILENT_S = 5.0
"""For so long who did not answer an attempt is left out of the next ones, if they can do without."""
RENEWED_S = 3.0
"""What a store says of a lost replica counts only so long after it was given another."""
SETTLE_PERIODS = 1.2
"""Of the pings, without another cut, before a cut is acted upon: by then each store was asked."""
MAKE_S = 30.0
REFRESH_S, KEYS_PER_REFRESH = 2.0, 50
"""How often the keys are read again, unasked; seldom if there are many."""
LAST_NEWS_S = 0.2
"""When the reign ends, for telling what has just been done."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """What tests want quicker."""

    rules: Rules = field(default_factory=Rules)
    pace: Pace = PACE
    patience: Patience = field(default_factory=Patience)


class Reconciler:
    """`govern` is what a leader does, for one reign after another."""

    def __init__(
        self, name: str, state: StateClient, links: Links, log: Log, rhythm: Rhythm | None = None
    ) -> None:
        self._name, self._state, self._links, self._log = name, state, links, log
        self._rhythm = rhythm or Rhythm()

    async def govern(self, reign: Reign) -> None:
        log = self._log.bind(term=reign.term)
        await _Government(self._name, self._state, self._links, reign, self._rhythm, log).run()


@dataclass(slots=True)
class _Case:
    """A shard that has failed attempts behind it, or is stuck."""

    failures: int = 0
    again_s: float = 0.0
    told: str = ""


class _Government:
    def __init__(
        self, name: str, state: StateClient, links: Links, reign: Reign, rhythm: Rhythm, log: Log
    ) -> None:
        self._name, self._state, self._links, self._reign = name, state, links, reign
        self._log = log
        self._stores = Stores(links, reign.term, log, rhythm.rules)
        self._ports = Ports(links, self._may_act, self._dead, rhythm.patience, log)
        self._news = News(self._ports, self._stores, reign.term, self._begin)
        self._failovers = Failovers(rhythm.pace, log)
        self._map: ClusterMap | None = None
        self._keys: dict[CollectionId, ShardsKey] = {}
        self._keeping: dict[CollectionId, asyncio.Task[None]] = {}
        self._attention: set[ShardId] = set()
        """Shards to be looked at: something has happened to them, or they wait for something."""
        self._busy: set[ShardId] = set()
        self._cases: dict[ShardId, _Case] = {}
        self._silent: dict[ShardId, tuple[frozenset[NodeId], float]] = {}
        """Who did not answer the last attempt that failed, and until when that counts."""
        self._renewed_s: dict[tuple[ShardId, NodeId], float] = {}
        self._scene: object = None
        self._versions: dict[CollectionId, int] = {}
        self._cuts_s: dict[frozenset[NodeId], float] = {}
        self._settle_s = SETTLE_PERIODS * rhythm.rules.period_s
        self._refreshed_s = time.monotonic()
        self._isolated = False
        self._room = asyncio.Semaphore(AT_ONCE)
        self._group: asyncio.TaskGroup | None = None
        self._works: set[asyncio.Task[None]] = set()

    # -- the reign ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; or, when the reign is ending, until what was begun is finished."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            follow = MapKey(self._state, self._reign, self._name, self._on_map, self._log)
            for_ever = [
                group.create_task(follow.run(), name="coordinator.map"),
                group.create_task(self._stores.run(), name="coordinator.stores"),
                group.create_task(self._wake_at_the_end(), name="coordinator.ending"),
            ]
            while not self._reign.ending.is_set():
                self._look()
                await self._wait()
            while self._busy:
                await self._wait()
            if self._works:
                await asyncio.wait(self._works, timeout=LAST_NEWS_S)
            for task in (*for_ever, *self._keeping.values(), *self._works):
                task.cancel()

    async def _wait(self) -> None:
        await asyncio.sleep(LOOK_S_MIN)
        with suppress(TimeoutError):  # then it is time to look again
            async with asyncio.timeout(LOOK_S):
                await self._stores.changed.wait()
        self._stores.changed.clear()

    async def _wake_at_the_end(self) -> None:
        await self._reign.ending.wait()
        self._stores.changed.set()

    def _may_act(self) -> bool:
        return self._reign.may_act() and not self._stores.verdict().isolated

    def _dead(self) -> set[NodeId]:
        return set(self._stores.verdict().dead)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        assert self._group is not None
        task = self._group.create_task(work, name=name)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        task.add_done_callback(lambda _: self._stores.changed.set())

    def _on_map(self, cluster: ClusterMap) -> None:
        assert self._group is not None
        self._map = self._news.map = cluster
        self._links.cluster = cluster.cluster
        self._links.learn({str(n.id): host_port(n.peer_address) for n in cluster.nodes.values()})
        self._stores.watch([n.id for n in cluster.nodes.values() if n.membership != "left"])
        for id_ in self._keys.keys() - cluster.collections.keys():
            self._keeping.pop(id_).cancel()
            del self._keys[id_]
        for id_ in cluster.collections.keys() - self._keys.keys():
            key = self._keys[id_] = ShardsKey(id_, self._state, self._reign, self._log)
            self._keeping[id_] = self._group.create_task(key.run(), name=f"coordinator.{key.key}")
        for key in self._keys.values():
            key.refresh()
        self._scene = None
        self._stores.changed.set()

    # -- looking ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        verdict = self._stores.verdict()
        if verdict.isolated != self._isolated:
            self._isolated = verdict.isolated
            self._log.warning(f"leader.{'' if self._isolated else 'not_'}isolated", dead=sorted(verdict.dead))
        if self._map is None or not self._may_act():
            return
        read = {id_: key.value.shards for id_, key in self._keys.items() if key.value is not None}
        nodes = self._nodes(verdict, self._map)
        lost = self._lost(self._map)
        self._note_changes((nodes, frozenset(lost)), read)
        self._refresh()
        self._news.remind(self._keys.values(), self._busy)
        due = sorted(self._attention - self._busy)
        led = Counter(s.primary for shards in read.values() for s in shards) if due else Counter()
        for shard_id in due:
            self._look_at(shard_id, nodes, led, lost)

    def _note_changes(self, scene: object, read: Mapping[CollectionId, Sequence[Shard]]) -> None:
        """All shards are looked at when nodes have changed, those of a key when it has."""
        for id_, shards in read.items():
            version = self._keys[id_].version
            if scene != self._scene or self._versions.get(id_) != version:
                self._versions[id_] = version
                self._attention |= {(id_, shard.number) for shard in shards}
        self._scene = scene

    def _refresh(self) -> None:
        now_s = time.monotonic()
        if now_s - self._refreshed_s > REFRESH_S * max(1.0, len(self._keys) / KEYS_PER_REFRESH):
            self._refreshed_s = now_s
            for key in self._keys.values():
                key.refresh()

    def _nodes(self, verdict: Verdict, cluster: ClusterMap) -> Nodes:
        ill = frozenset(n for n, h in verdict.health.items() if h in ("suspect", "unknown"))
        cuts = self._settled_cuts(verdict, ill)
        well = {n for n, h in verdict.health.items() if h == "healthy" and not any(n in c for c in cuts)}
        self._failovers.well(well)
        return Nodes(
            dead=frozenset(verdict.dead),
            doubtful=ill | self._failovers.restless(well),
            leaving=frozenset(n.id for n in cluster.nodes.values() if n.membership in ("draining", "left")),
            cuts=cuts,
        )

    def _settled_cuts(self, verdict: Verdict, ill: Collection[NodeId]) -> frozenset[frozenset[NodeId]]:
        """None before all that a fault has cut has been told, or the wrong side would be given up."""
        now_s = time.monotonic()
        pairs = {frozenset((c.hears_not, c.unheard)) for c in verdict.cuts}
        # Who does not answer the leader either is about to be found dead, or well.
        self._cuts_s = {pair: self._cuts_s.get(pair, now_s) for pair in pairs if not pair.intersection(ill)}
        is_settled = now_s - max(self._cuts_s.values(), default=now_s) >= self._settle_s
        return frozenset(self._cuts_s) if is_settled else frozenset()

    def _lost(self, cluster: ClusterMap) -> dict[ShardId, dict[NodeId, int]]:
        """Shard → node → the incarnation that it has in the place of the one that the map names."""
        found: dict[ShardId, dict[NodeId, int]] = {}
        for node in cluster.nodes:
            told = self._stores.told(node)
            for shard_id, incarnation in told.lost.items() if told is not None else ():
                if told is not None and told.at_s > self._renewed_s.get((shard_id, node), 0.0) + RENEWED_S:
                    found.setdefault(shard_id, {})[node] = incarnation
        return found

    def _look_at(
        self, shard_id: ShardId, nodes: Nodes, led: Counter[NodeId], lost: dict[ShardId, dict[NodeId, int]]
    ) -> None:
        key = self._keys.get(shard_id[0])
        shard = key.shard(shard_id[1]) if key is not None else None
        if key is None or shard is None or self._map is None:
            self._forget(shard_id)
            return
        case = self._cases.get(shard_id) or _Case()
        if time.monotonic() < case.again_s:
            return
        params = self._map.collections[shard_id[0]].params
        placed = max(1, min(len(shard.replicas), params.replication_factor))
        smallest = smallest_set(placed, params.write_consistency_factor)
        replicas = self._replicas(shard_id, shard, lost.get(shard_id, {}))
        step = next_step(shard, smallest, replace(nodes, led=led), replicas)
        if case.told and not isinstance(step, Stuck):
            case.told = ""
            self._log.info("shard.no_longer_stuck", shard=self._say(shard_id))
        match step:
            case None:
                if not shard.learners:
                    self._forget(shard_id)
            case Stuck():
                self._say_stuck(shard_id, step, case)
            case Renew(node=node):
                self._take(shard_id, self._renew(key, shard, node), "renew")
            case Reconfigure():
                if self._failovers.may_begin(step.away_from, must=shard.pending is not None):
                    led[step.plan.primary] += shard.primary != step.plan.primary
                    self._note_begun(shard_id, step)
                    self._take(shard_id, self._attempt(key, shard, step), "reconfigure")

    def _replicas(self, shard_id: ShardId, shard: Shard, lost: dict[NodeId, int]) -> Replicas:
        silent, until_s = self._silent.get(shard_id, (frozenset(), 0.0))
        return Replicas(
            lags=self._lags(shard_id, shard),
            lost=frozenset(n for n, has in lost.items() if shard.replicas.get(n) not in (None, has)),
            silent=silent if time.monotonic() < until_s else (),
        )

    def _lags(self, shard_id: ShardId, shard: Shard) -> dict[NodeId, int] | None:
        told = self._stores.told(shard.primary)
        leads = told.leads.get(shard_id) if told is not None and told.leads is not None else None
        if leads is None or leads.term != shard.term:
            return None
        # Who has nothing of a log may not even be there, however short the log is.
        return {n: lag for n, lag in leads.lags.items() if lag < leads.last_seq or leads.last_seq == 0}

    def _forget(self, shard_id: ShardId) -> None:
        self._attention.discard(shard_id)
        self._cases.pop(shard_id, None)
        self._silent.pop(shard_id, None)

    def _say_stuck(self, shard_id: ShardId, step: Stuck, case: _Case) -> None:
        self._cases[shard_id] = case
        text = f"{step.why}: {', '.join(step.missing)} must return"
        if text != case.told:
            case.told = text
            self._log.error("shard.stuck", shard=self._say(shard_id), missing=list(step.missing), text=text)

    def _say(self, shard_id: ShardId) -> str:
        collection = self._map.collections.get(shard_id[0]) if self._map is not None else None
        return f"{collection.name if collection is not None else shard_id[0]}/{shard_id[1]}"

    # -- steps --------------------------------------------------------------------------------------------

    def _take(self, shard_id: ShardId, work: Coroutine[Any, Any, None], name: str) -> None:
        self._busy.add(shard_id)
        self._begin(work, f"{name}.{self._say(shard_id)}")

    def _done(self, shard_id: ShardId, problem: str, silent: tuple[NodeId, ...] = ()) -> None:
        self._busy.discard(shard_id)
        self._attention.add(shard_id)
        if not problem:
            self._cases.pop(shard_id, None)
            return
        case = self._cases.setdefault(shard_id, _Case())
        case.failures += 1
        now_s = time.monotonic()
        pause_s = min(AGAIN_S_MAX, AGAIN_S * 2 ** min(case.failures - 1, 10))
        case.again_s = now_s + pause_s * random.uniform(0.5, 1.0)
        self._silent[shard_id] = (frozenset(silent), now_s + SILENT_S)
        self._log.warning("shard.step_failed", shard=self._say(shard_id), text=problem, silent=list(silent))

    def _note_begun(self, shard_id: ShardId, step: Reconfigure) -> None:
        dead = self._stores.verdict().dead
        for node in step.away_from:
            since_s = dead[node].since_s if node in dead else time.monotonic()
            self._failovers.begun(node, since_s, shard_id)

    async def _attempt(self, key: ShardsKey, shard: Shard, step: Reconfigure) -> None:
        shard_id = (key.collection, shard.number)
        problem, silent = "it was given up", tuple[NodeId, ...]()
        try:
            async with self._room:
                outcome = await self._reconfigure(key, shard, step)
            if isinstance(outcome, Failed):
                problem, silent = outcome.reason, outcome.silent
            else:
                problem = ""
                self._news.announce(key, shard.number, outcome.activate)
        except ShoalError as error:
            problem = str(error)
        finally:
            self._done(shard_id, problem, silent)
            for node in step.away_from:
                self._failovers.ended(node, shard_id, failed=bool(problem))

    async def _reconfigure(self, key: ShardsKey, shard: Shard, step: Reconfigure) -> Succeeded | Failed:
        name, began_s = self._say((key.collection, shard.number)), time.monotonic()
        said = event("shard.reconfigured", self._name, f"{name} on {step.plan.primary}: {step.why}")
        attempt = Attempt(key, shard, step.plan, self._reign.term, self._ports, said)
        outcome = await attempt.run()
        if isinstance(outcome, Succeeded):
            self._log.info(
                "shard.reconfigured",
                shard=name,
                shard_term=outcome.shard.term,
                primary=outcome.shard.primary,
                in_sync=list(outcome.shard.in_sync),
                why=step.why,
                took_ms=round(1000 * (time.monotonic() - began_s)),
                **attempt.took_ms,
            )
        return outcome

    async def _renew(self, key: ShardsKey, shard: Shard, node: NodeId) -> None:
        shard_id = (key.collection, shard.number)
        problem = "it was given up"
        try:
            async with self._room:
                new = with_learner(shard, node, await self._make(key.collection, shard, node))
                said = event("replica.renewed", self._name, f"{self._say(shard_id)} on {node}")
                current = await key.change(shard, new, said)
            problem = "" if current == new else "the shard's record has changed"
            if not problem:
                self._renewed_s[shard_id, node] = time.monotonic()
                self._log.info("replica.renewed", shard=self._say(shard_id), peer=node)
                self._news.announce(key, shard.number, activation(new, self._reign.term))
        except ShoalError as error:
            problem = str(error)
        finally:
            self._done(shard_id, problem)

    async def _make(self, collection: CollectionId, shard: Shard, node: NodeId) -> int:
        """An empty log on that node: its incarnation."""
        assert self._map is not None
        body = msgspec.json.encode(self._map.collections[collection])
        asked = {"histories": {shard.number: shard.history}}
        header, _ = await self._links.caller(node).call("shards.make", asked, body, timeout_s=MAKE_S)
        return msgspec.convert(header["incarnations"], dict[int, int])[shard.number]
