"""The register and its leaders in one simulated world, played from a seed: rush, then a calm at the end.

A seed draws one of four worlds: clients on a few keys; the same while the voters change; consoles on a
register that is right; all of it together. After the calm everything must work again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from core.consensus.lease import LEADER_KEY, Timing
from core.consensus.register import Outcome, Read, VoterSet, Write, encode_voters
from core.consensus.voters import VOTERS_KEY
from tests.sim.network import Network
from tests.sim.register_actors import Client, Console, Door, RightRegister, Runner
from tests.sim.register_checks import KeyHistory, Leaders
from tests.sim.register_nodes import AcceptorNode, Agent
from tests.sim.schedule import Broken, Schedule

WORLDS = ("keys", "voters", "leaders", "all")
NEW_KEY_CHANCE = {"keys": 0.0, "voters": 0.2, "leaders": 0.0, "all": 0.05}
KEYS_IN_USE = 3
KEYS_TOUCHED = 8
RUSH_STEPS_MAX = 1_500
CALM_STEPS_MAX = 20_000
CALM_S = 60.0


class World:
    """All that there is in a run. Planted mistakes replace parts of it, or of the code under test."""

    def __init__(self, schedule: Schedule, kind: str) -> None:
        self.schedule = schedule
        self.kind = kind
        self.network = Network(schedule)
        chance = schedule.chance
        self.starts = 0
        self._tags = 0
        self.sync_s = chance.choice((0.0, 0.002, 0.02))
        self.round_s = 10 * self.network.delay_s + 6 * self.sync_s + chance.choice((0.02, 0.2))
        self.timing = chance.choice((Timing(), Timing(look_s=0.6, renew_s=0.6, answer_s=1.0)))
        self.leaders = Leaders()
        self._histories: dict[str, KeyHistory] = {}
        self._nodes = 0
        self._keys = 1
        self.acceptors: dict[str, AcceptorNode] = {}
        self.agents: list[Agent] = []
        self.clients: list[Client] = []
        self.consoles: list[Console] = []
        self.runners: list[Runner] = []
        self.targets: list[frozenset[str]] = []
        for name, rates in _RATES.items():
            schedule.rate(name, *rates)
        self._fill(kind)

    def history(self, key: str) -> KeyHistory:
        return self._histories.setdefault(key, KeyHistory(key))

    def new_tag(self, writer: str) -> str:
        self._tags += 1
        return f"{writer}/{self._tags}"

    def pick_key(self) -> str:
        """One of a few, sometimes a new one: while voters change, keys that hardly exist are in danger."""
        chance = self.schedule.chance
        if chance.random() < NEW_KEY_CHANCE[self.kind]:
            self._keys += 1
        return f"jobs/{max(0, self._keys - chance.randrange(KEYS_IN_USE))}"

    def _fill(self, kind: str) -> None:
        schedule = self.schedule
        if kind == "leaders":
            self._add_consoles(RightRegister())
            return
        first = frozenset(self.new_acceptor() for _ in range(schedule.chance.choice((1, 3, 3, 3, 5))))
        self.targets = [first]
        for n in range(3):
            self.agents.append(Agent(self, f"agent{n}", VoterSet(1, first)))
        self._begin_cluster(VoterSet(1, first))
        if kind == "all":
            self._add_consoles()
        think_s = {"keys": 0.02, "voters": 0.1, "all": 1.0}[kind]
        for agent in self.agents:
            client = Client(self, agent, think_s)
            self.clients.append(client)
            client.go_on()

    def _begin_cluster(self, first: VoterSet) -> None:
        def begun(outcome: Outcome | None) -> None:
            self.schedule.note("begun: {}", outcome)

        change = Write(0, encode_voters(first), "beginning")
        self.agents[0].settle(VOTERS_KEY, change, begun, within_s=100.0)

    def _add_consoles(self, register: RightRegister | None = None) -> None:
        chance = self.schedule.chance
        for n in range(chance.choice((2, 3))):
            door = register or Door(self, self.agents[n % len(self.agents)])
            self.consoles.append(Console(self, f"console{n}", door, chance.choice((0.9, 1.0, 1.1))))

    def new_acceptor(self) -> str:
        self._nodes += 1
        name = f"n{self._nodes}"
        self.acceptors[name] = AcceptorNode(self, name)
        return name

    # Faults.

    def strike(self) -> None:
        """Asks for each kind of fault whether it happens now; then again, some time later."""
        schedule, chance = self.schedule, self.schedule.chance
        if schedule.is_calm:
            return
        if self.acceptors:
            self._strike_acceptors()
            self._strike_agents()
        if self.consoles:
            self._strike_consoles()
        if schedule.strikes("cut"):
            self._cut()
        if schedule.strikes("heal"):
            self.network.heal()
        if self.kind in ("voters", "all") and schedule.strikes("change of voters"):
            self._change_voters()
        pace_s = {"keys": 0.05, "voters": 0.1, "leaders": 0.3, "all": 0.3}[self.kind]
        schedule.after(chance.random() * pace_s, self.strike)

    def _strike_acceptors(self) -> None:
        schedule, chance = self.schedule, self.schedule.chance
        if schedule.strikes("crash"):
            node = chance.choice([*self.acceptors.values()])
            if node.up:
                schedule.note("{} crashes", node.name)
                node.crash()
                schedule.after(chance.random() * 0.3, self.restart_acceptor, node)
        if schedule.strikes("lose disk"):
            node = chance.choice([*self.acceptors.values()])
            if node.up and self._is_expendable(node.name):
                schedule.note("{} loses its disk", node.name)
                self.lose_disk(node)

    def restart_acceptor(self, node: AcceptorNode) -> None:
        node.restart()

    def lose_disk(self, node: AcceptorNode) -> None:
        """It comes back, if at all, as another, by a change of voters."""
        node.lose_disk()
        if self.kind != "keys":
            self.new_acceptor()

    def _is_expendable(self, name: str) -> bool:
        """All sets that may be in force must keep a majority that lives."""
        dead = {node.name for node in self.acceptors.values() if node.dead} | {name}
        return all(len(target - dead) > len(target) // 2 for target in self.targets)

    def _strike_agents(self) -> None:
        schedule, chance = self.schedule, self.schedule.chance
        if schedule.strikes("agent crash"):
            n = chance.randrange(len(self.agents))
            agent = self.agents[n]
            agent.restart()
            if chance.random() < 0.3:
                agent.known = agent.first  # only its configuration file is left
            schedule.note("{} starts again as {}", agent.name, agent.proposer())
            self.clients[n].go_on()

    def _strike_consoles(self) -> None:
        schedule, chance = self.schedule, self.schedule.chance
        if schedule.strikes("console crash"):
            console = chance.choice(self.consoles)
            console.stop()
            schedule.note("{} crashes", console.name)
            schedule.after(chance.random() * 4, console.start)
        if schedule.strikes("console pause"):
            chance.choice(self.consoles).pause(chance.random() * 4)
        if schedule.strikes("step down"):
            console = chance.choice(self.consoles)
            schedule.note("{} steps down", console.holder)
            console.step_down()

    def _cut(self) -> None:
        """A link, one way or both, or all links of a host."""
        chance = self.schedule.chance
        hosts = [
            *self.acceptors,
            *(a.name for a in self.agents),
            *(c.name for c in self.consoles),
            "register",
        ]
        source, target = chance.sample(hosts, 2)
        targets = hosts if chance.random() < 0.3 else [target]
        both_ways = chance.random() < 0.5
        for target in targets:
            self.network.cut(source, target)
            if both_ways:
                self.network.cut(target, source)

    def _change_voters(self) -> None:
        """To any few of those that live, once in a while to some that never answer."""
        chance = self.schedule.chance
        if sum(runner.runs for runner in self.runners) > 1 or len(self.runners) > 8:
            return
        if chance.random() < 0.3 and len(self.acceptors) < 8:
            self.new_acceptor()
        agent = chance.choice(self.agents)
        target: frozenset[str] | None = None
        if chance.random() < 0.85:
            living = sorted(name for name, node in self.acceptors.items() if not node.dead)
            size = min(chance.choice((1, 3, 3, 5)), len(living))
            target = frozenset(chance.sample(living, size))
            if chance.random() < 0.15:
                target = frozenset({*sorted(target)[: len(target) // 2], *(f"ghost{n}" for n in range(size))})
            else:
                self.targets.append(target)
        self._run_change(agent, target)

    def _run_change(self, agent: Agent, target: frozenset[str] | None) -> None:
        runner = Runner(self, agent, target)
        self.runners.append(runner)
        runner.begin()

    # The calm at the end.

    def calm(self) -> None:
        """All faults heal but those for good; then everything must work."""
        schedule = self.schedule
        schedule.note("calm")
        schedule.calm()
        self.network.heal()
        for node in self.acceptors.values():
            node.restart()
        for console in self.consoles:
            console.start()
        for agent in self.agents:
            self._await("set of voters that stands alone", partial(self._is_settled, agent))
        if self.consoles:
            self._await("leader", lambda: bool(self.leaders.until_s))
        if self.acceptors:
            used = sorted(self._histories)
            for key in schedule.chance.sample(used, min(KEYS_TOUCHED, len(used))):
                self._touch(key)

    def _is_settled(self, agent: Agent) -> bool:
        """Some runner of it found, in this calm, that no change is under way."""
        if self._has_runner(agent):
            return False
        mine = [runner for runner in self.runners if runner.agent is agent and runner.began_in_calm]
        if mine and agent.known.joint is None:
            return True
        self._run_change(agent, None)
        return False

    def _has_runner(self, agent: Agent) -> bool:
        return any(runner.agent is agent and runner.runs for runner in self.runners)

    def _finish_what_is_found(self) -> None:
        """Whoever knows of a joint set finishes it, whatever it waits for."""
        for agent in self.agents:
            if agent.known.joint is not None and not self._has_runner(agent):
                self._run_change(agent, None)

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        def met() -> bool:
            self._finish_what_is_found()
            return condition()

        self.schedule.run(self.schedule.now_s + CALM_S, steps_max=CALM_STEPS_MAX, enough=met)
        if not condition():
            raise Broken(f"stuck: no {what} after {CALM_S:.0f} s of calm")

    def _touch(self, key: str) -> None:
        """Each key is read twice, and written but for those that have a meaning."""
        seen: list[Outcome] = []

        def ended(outcome: Outcome | None) -> None:
            if outcome is None:
                raise Broken(f"stuck: {key} was not settled in {CALM_S:.0f} s of calm")
            seen.append(outcome)

        for agent in self.agents[:2]:
            agent.settle(key, Read(), ended, within_s=CALM_S)
        self._await(f"read of {key}", lambda: len(seen) == 2)
        if key not in (LEADER_KEY, VOTERS_KEY):
            tag = self.new_tag("calm")
            version = self.history(key).ended
            self.agents[2].settle(key, Write(version, tag.encode(), tag), ended, within_s=CALM_S)
            self._await(f"write of {key}", lambda: len(seen) == 3)


# How often each kind of fault strikes, each time that it is asked for.
_RATES: dict[str, tuple[float, ...]] = {
    "crash": (0, 0, 0.05, 0.3),
    "lose disk": (0, 0, 0, 0.05),
    "agent crash": (0, 0, 0.05, 0.3),
    "console crash": (0, 0, 0.03, 0.15),
    "console pause": (0, 0.03, 0.15),
    "step down": (0, 0, 0.03, 0.15),
    "cut": (0, 0, 0.05, 0.3),
    "heal": (0.05, 0.3),
    "change of voters": (0.1, 0.4),
}


def play(schedule: Schedule, world_of: type[World] = World) -> None:
    """One seed, one run. Raises Broken."""
    kind = schedule.chance.choices(WORLDS, (30, 35, 25, 10))[0]
    schedule.note("a world of {}", kind)
    world = world_of(schedule, kind)
    world.strike()
    schedule.run(float("inf"), steps_max=RUSH_STEPS_MAX)
    world.calm()
