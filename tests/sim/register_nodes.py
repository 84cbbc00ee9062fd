"""Acceptors with disks that lose what was not synced, and agents that settle operations on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.consensus import register
from core.consensus.register import (
    ADOPTED_KEY,
    Adopt,
    Again,
    Answer,
    Ask,
    Ballot,
    Ballots,
    Cell,
    Change,
    Done,
    Effect,
    Operation,
    Outcome,
    Request,
    Send,
    Told,
    VoterSet,
)

if TYPE_CHECKING:
    from tests.sim.register_world import World

Reply = Callable[[Answer], None]
ASKING = Ballot(0, "any")


class AcceptorNode:
    """One voter. Requests that come while it syncs share the next sync; answers wait for theirs."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.up = True
        self.dead = False  # its disk is lost: it never answers again
        self._world = world
        self._process = 0
        self.disk_voters, self.disk = 0, dict[str, Cell]()
        self._voters, self._cells = 0, dict[str, Cell]()
        self._unsynced: list[tuple[int, str, Cell]] = []
        self._waiting: list[tuple[Request, Reply]] = []
        self._syncing = False

    def receive(self, request: Request, reply: Reply) -> None:
        if not self.up:
            return
        self._waiting.append((request, reply))
        if not self._syncing:
            self._answer_waiting()

    def receive_list(self, reply: Callable[[list[str]], None]) -> None:
        if self.up:
            reply(sorted(self.disk.keys() - {ADOPTED_KEY}))

    def crash(self) -> None:
        """The disk keeps any prefix of what was not synced."""
        self.up = False
        kept = self._world.schedule.chance.randint(0, len(self._unsynced))
        self._to_disk(self._unsynced[:kept])
        self._unsynced, self._waiting, self._syncing = [], [], False
        self._process += 1

    def restart(self) -> None:
        if not self.up and not self.dead:
            self.up = True
            self._voters, self._cells = self.disk_voters, dict(self.disk)

    def lose_disk(self) -> None:
        self.crash()
        self.dead = True

    def keeps_voters(self, voters: int) -> int:
        """What the disk has of the number: a planted mistake forgets it."""
        return voters

    def answers_before_sync(self, request: Request) -> bool:
        """Never; a planted mistake does."""
        return False

    def _answer_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        answers: list[tuple[Reply, Answer]] = []
        for request, reply in batch:
            cell = self._cells.get(request.key) or Cell()
            step = register.on_request(cell, self._voters, request)
            if step.persist is not None or step.adopt_voters is not None:
                self._voters = step.adopt_voters or self._voters
                self._cells[request.key] = step.persist or cell
                self._unsynced.append((self._voters, request.key, self._cells[request.key]))
            if self.answers_before_sync(request):
                reply(step.answer)
            else:
                answers.append((reply, step.answer))
        sync_s = self._world.sync_s
        if self._unsynced and sync_s:
            self._syncing = True
            self._world.schedule.after(
                sync_s * self._world.schedule.chance.random(), self._synced, self._process, answers
            )
        else:
            self._synced(self._process, answers)

    def _synced(self, process: int, answers: list[tuple[Reply, Answer]]) -> None:
        if process != self._process:
            return
        self._to_disk(self._unsynced)
        self._unsynced, self._syncing = [], False
        for reply, answer in answers:
            reply(answer)
        if self._waiting:
            self._answer_waiting()

    def _to_disk(self, writes: list[tuple[int, str, Cell]]) -> None:
        for voters, key, cell in writes:
            self.disk_voters = self.keeps_voters(voters)
            self.disk[key] = cell


class Settling:
    """One operation of an agent, in as many rounds as it takes, until its deadline."""

    def __init__(
        self,
        agent: Agent,
        key: str,
        change: Change,
        then: Callable[[Outcome | None], None],
        *,
        within_s: float,
        voters: VoterSet | None = None,
        old_alone: bool = False,
        newer: Callable[[VoterSet], None] | None = None,
    ) -> None:
        self._then = then
        self._newer = newer
        self._over = False
        self._agent = agent
        self._process = agent.process
        self._operation = Operation(key, change, old_alone=old_alone)
        self._fixed = voters
        self._ballot = ASKING
        self._backoff_s = agent.world.round_s / 4
        self._until_s = agent.world.schedule.now_s + within_s

    def begin(self, above: int = 0) -> None:
        agent, schedule = self._agent, self._agent.world.schedule
        if self._over or self._process != agent.process:
            return
        if schedule.now_s >= self._until_s:
            self.end(None)
            return
        voters = self._fixed or agent.known
        if agent.known.number > voters.number and self._newer is not None:
            self._over = True
            self._newer(agent.known)
            return
        self._ballot = agent.ballots.next(above)
        schedule.after(agent.world.round_s, self._silent, self._ballot)
        self._perform(self._operation.begin(self._ballot, voters))

    def end(self, outcome: Outcome | None) -> None:
        self._over = True
        self._then(outcome)

    def _silent(self, ballot: Ballot) -> None:
        if not self._over and ballot == self._ballot:
            self._agent.ask_anyone()
            self.begin()

    def _on_answer(self, voter: str, process: int, answer: Answer) -> None:
        if not self._over and process == self._agent.process:
            self._perform(self._operation.on_answer(voter, answer))

    def _perform(self, effects: list[Effect]) -> None:
        agent = self._agent
        for effect in effects:
            match effect:
                case Send(voter, request):
                    agent.send(voter, request, self._on_answer)
                case Again(counter, voters):
                    agent.learn(voters)
                    self._ballot = ASKING  # this round is over: its timer means nothing any more
                    # At random, or rivals would outbid each other in step.
                    pause_s = agent.world.schedule.chance.random() * self._backoff_s
                    self._backoff_s = min(2 * self._backoff_s, 4 * agent.world.round_s)
                    agent.world.schedule.after(pause_s, self.begin, counter)
                case Done(outcome):
                    self.end(outcome)


class Agent:
    """A proposer: its ballots are its own at each start; it knows a set of voters and hears of newer ones."""

    def __init__(self, world: World, name: str, voters: VoterSet) -> None:
        self.world = world
        self.name = name
        self.first = self.known = voters
        self.process = 0
        self.ballots = Ballots("")
        self.restart()

    def restart(self) -> None:
        """Whatever it was settling is left open for ever."""
        self.process = self.world.starts = self.world.starts + 1
        self.ballots = Ballots(self.proposer())

    def proposer(self) -> str:
        return f"{self.name}.{self.process}"

    def settle(
        self,
        key: str,
        change: Change,
        then: Callable[[Outcome | None], None],
        *,
        within_s: float,
        voters: VoterSet | None = None,
        old_alone: bool = False,
        newer: Callable[[VoterSet], None] | None = None,
    ) -> None:
        """`then` gets the outcome, None if it is unknown; never, if this process ends before."""
        history = self.world.history(key)
        ended_before, process = history.ended, self.process

        def check(outcome: Outcome | None) -> None:
            if process != self.process:
                return
            if outcome is not None:
                self.world.schedule.note("{} {} {} → {}", self.proposer(), key, change, outcome)
                if not old_alone:  # what the old alone found need not be chosen yet
                    history.end(ended_before, change, outcome)
            then(outcome)

        def check_newer(found: VoterSet) -> None:
            if newer is not None and process == self.process:
                newer(found)

        Settling(
            self,
            key,
            change,
            check,
            within_s=within_s,
            voters=voters,
            old_alone=old_alone,
            newer=check_newer if newer else None,
        ).begin()

    def send(self, voter: str, request: Request, then: Callable[[str, int, Answer], None]) -> None:
        node = self.world.acceptors.get(voter)
        if node is None:  # a new voter that never started
            return
        process, network = self.process, self.world.network
        lateness = 1.0 if isinstance(request, register.Prepare) else 4.0

        def reply(answer: Answer) -> None:
            network.send(voter, self.name, then, voter, process, answer)

        network.send(self.name, voter, node.receive, request, reply, lateness=lateness)

    def learn(self, voters: VoterSet) -> None:
        if voters.number > self.known.number:
            self.known = voters
            self.world.schedule.note("{} learns of {}", self.name, voters)

    def ask_anyone(self) -> None:
        """Any agent tells the newest set that it knows of."""
        voter = self.world.schedule.chance.choice(sorted(self.world.acceptors))
        self.send(voter, Ask(ASKING), self._told)

    def tell(self, voters: VoterSet) -> None:
        for voter in sorted(self.world.acceptors):
            self.send(voter, Adopt(ASKING, voters), lambda *_: None)

    def _told(self, voter: str, process: int, answer: Answer) -> None:
        if isinstance(answer, Told) and answer.voters is not None:
            self.learn(answer.voters)
