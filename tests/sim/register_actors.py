"""Those who use the register: clients, consoles that stand for election, runners of a change of voters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from core.consensus import lease
from core.consensus.lease import LEADER_KEY, Election, Lead, StopLeading, decode_lease, encode_lease
from core.consensus.register import (
    Answer,
    Change,
    Conflicting,
    Found,
    Outcome,
    Read,
    Unsettled,
    Value,
    Write,
    Written,
)
from core.consensus.voters import (
    Call,
    Effect,
    Finished,
    GaveUp,
    ListKeys,
    Settle,
    VoterChange,
    Wait,
)

if TYPE_CHECKING:
    from tests.sim.register_nodes import Agent
    from tests.sim.register_world import World

RUNNER_HURRY = 0.1  # its pauses are this much shorter, or a schedule would see no second change


class Client:
    """Reads, writes and deletes keys through one agent, one after another, at the version it last saw."""

    def __init__(self, world: World, agent: Agent, think_s: float) -> None:
        self.agent = agent
        self._world = world
        self._think_s = think_s
        self._seen: dict[str, int] = {}
        self._turn = 0

    def go_on(self) -> None:
        """Also after the agent's crash, when whatever was asked is lost."""
        self._turn += 1
        self._world.schedule.after(
            self._world.schedule.chance.random() * self._think_s, self._ask, self._turn
        )

    def _ask(self, turn: int) -> None:
        if turn != self._turn or self._world.schedule.is_calm:
            return
        chance = self._world.schedule.chance
        key = self._world.pick_key()
        change: Change = Read()
        if chance.random() < 0.6:
            tag = self._world.new_tag(self.agent.name)
            change = Write(self._seen.get(key, 0), None if chance.random() < 0.1 else tag.encode(), tag)

        def ended(outcome: Outcome | None) -> None:
            if turn == self._turn:
                self._saw(key, outcome)
                self.go_on()

        self.agent.settle(key, change, ended, within_s=chance.choice((0.2, 1.0, 5.0)))

    def _saw(self, key: str, outcome: Outcome | None) -> None:
        match outcome:
            case Found(value) | Conflicting(value) | Unsettled(value):
                self._seen[key] = value.version
            case Written(version):
                self._seen[key] = version


class Register(Protocol):
    """Who settles a console's questions: an agent, or a register that is simply right."""

    name: str

    def serve(self, change: Change, reply: Callable[[Outcome | None], None]) -> None: ...


class Door:
    """The key of the leader, at an agent. It goes on with a question that the console gave up."""

    def __init__(self, world: World, agent: Agent) -> None:
        self.name = agent.name
        self._world = world
        self._agent = agent

    def serve(self, change: Change, reply: Callable[[Outcome | None], None]) -> None:
        if isinstance(change, Write):  # a question that came twice is two writes
            change = replace(change, tag=self._world.new_tag(self.name))
        self._agent.settle(LEADER_KEY, change, reply, within_s=1.0)


class RightRegister:
    """One key that is linearizable by itself, so that schedules of elections get deep."""

    name = "register"

    def __init__(self) -> None:
        self._value = Value()

    def serve(self, change: Change, reply: Callable[[Outcome | None], None]) -> None:
        if isinstance(change, Read):
            reply(Found(self._value))
        elif change.expected == self._value.version:
            self._value = Value(change.expected + 1, change.data, (change.tag,))
            reply(Written(self._value.version))
        else:
            reply(Conflicting(self._value))


class Console:
    """Stands for election with a clock of its own. While it is paused all that comes waits."""

    def __init__(self, world: World, name: str, register: Register, clock_rate: float) -> None:
        self.name = name
        self._world = world
        self._register = register
        self._rate = clock_rate
        self._epoch_s = world.schedule.chance.random() * 1000
        self._process = 0
        self._paused = False
        self._backlog: list[Callable[[], None]] = []
        self._armed_s = float("inf")
        self.start()

    def start(self) -> None:
        """Also after a crash: nothing of the last process is left."""
        self.stop()
        self.holder = f"{self.name}.{self._process}"
        timing = self._world.timing
        self.election = Election(self.holder, self._now_s(), self._world.schedule.chance, timing)
        self._tick()

    def stop(self) -> None:
        if self._process:
            self._world.leaders.stops(self.holder)
        self._process += 1
        self._paused, self._backlog, self._armed_s = False, [], float("inf")

    def pause(self, for_s: float) -> None:
        self._paused = True
        self._world.schedule.after(for_s, self._resume, self._process)

    def step_down(self) -> None:
        self._do(lambda: self._perform(self.election.step_down(self._now_s())))
        self._world.schedule.after(3.0, self._stand_again, self._process)

    def _stand_again(self, process: int) -> None:
        if process == self._process:
            self.start()

    def _resume(self, process: int) -> None:
        if process != self._process:
            return
        self._paused, backlog = False, self._backlog
        self._backlog = []
        if self._world.schedule.chance.random() < 0.5:
            self._tick()
        for do in backlog:
            do()
        self._tick()

    def _now_s(self) -> float:
        return self._epoch_s + self._world.schedule.now_s * self._rate

    def _do(self, do: Callable[[], None]) -> None:
        if self._paused:
            self._backlog.append(do)
        else:
            do()

    def _tick(self) -> None:
        self._perform(self.election.tick(self._now_s()))

    def _on_timer(self, process: int, armed_s: float) -> None:
        if process == self._process and armed_s == self._armed_s:
            self._armed_s = float("inf")
            self._do(self._tick)

    def _perform(self, effects: list[lease.Effect]) -> None:
        for effect in effects:
            match effect:
                case Lead(term, until_s):
                    self._world.schedule.note("{} leads term {}", self.holder, term)
                    until_s = (until_s - self._epoch_s) / self._rate
                    self._world.leaders.leads(self.holder, term, self._world.schedule.now_s, until_s)
                case StopLeading():
                    self._world.schedule.note("{} stops", self.holder)
                    self._world.leaders.stops(self.holder)
                case lease.Read(asked):
                    self._ask(asked, Read())
                case lease.CompareAndSet(asked, version, wanted):
                    self._ask(asked, Write(version, encode_lease(wanted), tag=""))
        self._arm()

    def _arm(self) -> None:
        if self.election.finished:
            return
        wake_s = max((self.election.wake_s - self._epoch_s) / self._rate, self._world.schedule.now_s)
        if wake_s < self._armed_s:
            # A hair later than asked for, or rounding would wake it a hair too early, for ever.
            self._armed_s = wake_s
            delay_s = wake_s - self._world.schedule.now_s + 1e-6
            self._world.schedule.after(delay_s, self._on_timer, self._process, wake_s)

    def _ask(self, asked: int, change: Change) -> None:
        process, network = self._process, self._world.network

        def reply(outcome: Outcome | None) -> None:
            network.send(self._register.name, self.name, self._heard, process, asked, outcome)

        network.send(self.name, self._register.name, self._register.serve, change, reply)

    def _heard(self, process: int, asked: int, outcome: Outcome | None) -> None:
        if process == self._process:
            self._do(lambda: self._answer(process, asked, outcome))

    def _answer(self, process: int, asked: int, outcome: Outcome | None) -> None:
        if process != self._process:
            return
        now_s = self._now_s()
        match outcome:
            case Written(version):
                self._perform(self.election.on_written(asked, version, now_s))
            case Found(value) | Conflicting(value):
                found = decode_lease(value.data) if value.data is not None else None
                self._perform(self.election.on_read(asked, found, value.version, now_s))
            case _:
                self.election.on_failed(asked, now_s)
                self._arm()


class Runner:
    """Performs a change of voters on one agent, until it is over or the agent crashes."""

    def __init__(self, world: World, agent: Agent, target: frozenset[str] | None) -> None:
        self.agent = agent
        self.over = False
        self.began_in_calm = world.schedule.is_calm
        self._world = world
        self._process = agent.process
        self._change = VoterChange(agent.known, target, tag=world.new_tag(f"runner of {agent.name}"))
        world.schedule.note("{} changes {} to {}", agent.name, agent.known, target and sorted(target))

    def begin(self) -> None:
        self._perform(self._change.begin())

    def _perform(self, effects: list[Effect]) -> None:
        schedule = self._world.schedule
        for effect in effects:
            match effect:
                case Settle():
                    self._settle(effect)
                case Call(asked, voter, request):
                    self.agent.send(voter, request, self._on_answer(asked))
                    schedule.after(self._world.round_s, self._fail, asked, voter)
                case ListKeys(asked, voter):
                    self._list(asked, voter)
                    schedule.after(self._world.round_s, self._fail, asked, voter)
                case Wait(asked, delay_s):
                    schedule.after(delay_s * RUNNER_HURRY, self._waited, asked)
                case Finished(voters) | GaveUp(_, voters):
                    schedule.note("{}: {}", self.agent.name, effect)
                    self.agent.learn(voters)
                    self.over = True

    def _settle(self, effect: Settle) -> None:
        def ended(outcome: Outcome | None) -> None:
            if outcome is None:
                self._perform(self._change.on_failed(effect.asked, effect.key))
            else:
                self._perform(self._change.on_settled(effect.asked, effect.key, outcome))

        self.agent.settle(
            effect.key,
            effect.change,
            ended,
            within_s=8 * self._world.round_s,
            voters=effect.voters,
            old_alone=effect.old_alone,
            newer=lambda voters: self._perform(self._change.on_newer(effect.asked, voters)),
        )

    def _on_answer(self, asked: int) -> Callable[[str, int, Answer], None]:
        def answered(voter: str, process: int, answer: Answer) -> None:
            if process == self.agent.process:
                self._perform(self._change.on_answer(asked, voter, answer))

        return answered

    def _list(self, asked: int, voter: str) -> None:
        node, network, agent = self._world.acceptors.get(voter), self._world.network, self.agent
        if node is None:
            return

        def reply(keys: list[str]) -> None:
            network.send(voter, agent.name, self._listed, asked, voter, keys)

        network.send(agent.name, voter, node.receive_list, reply)

    def _listed(self, asked: int, voter: str, keys: list[str]) -> None:
        if self._process == self.agent.process:
            self._perform(self._change.on_keys(asked, voter, keys))

    def _fail(self, asked: int, voter: str) -> None:
        if self._process == self.agent.process:
            self._perform(self._change.on_failed(asked, voter))

    def _waited(self, asked: int) -> None:
        if self._process == self.agent.process:
            self._perform(self._change.on_waited(asked))

    @property
    def runs(self) -> bool:
        return not self.over and self._process == self.agent.process
