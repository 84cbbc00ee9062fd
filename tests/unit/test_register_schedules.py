"""Registers under random schedules: messages lost, doubled, late; voters that crash and forget what they
did not sync; proposers that give up and come back. Three planted mistakes must each be found.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from core.consensus.register import (
    Accept,
    Again,
    Answer,
    Ballots,
    Cell,
    Conflicting,
    Done,
    Effect,
    Found,
    Operation,
    Promise,
    Read,
    Request,
    Send,
    Step,
    Value,
    VoterSet,
    Write,
    Written,
    on_request,
)

VOTERS = VoterSet(1, frozenset("abc"))
STEPS = 400
Rule = Callable[[Cell, int, Request], Step]


class Broken(Exception):
    """The schedule showed a register that is none."""


@dataclass
class Proposer:
    name: str
    ballots: Ballots
    operation: Operation | None = None
    change: Read | Write | None = None
    known: int = 0
    seen_at_start: int = 0
    lost_to: int | None = None  # the counter above which it begins again, some time later


@dataclass
class World:
    """One key, three acceptors, a bag of messages in flight. Everything is drawn from one seed."""

    chance: random.Random
    rule: Rule
    synced: bool = True  # the planted mistake: answers before the fsync
    disk: dict[str, Cell] = field(default_factory=lambda: dict.fromkeys("abc", Cell()))
    memory: dict[str, Cell] = field(default_factory=lambda: dict.fromkeys("abc", Cell()))
    flight: list[tuple[str, str, Request | Answer]] = field(default_factory=list)
    starts: int = 0
    tags: int = 0
    finished_version: int = 0
    chosen: dict[int, bytes | None] = field(default_factory=lambda: {0: None})
    failed: set[bytes] = field(default_factory=set)
    proposers: dict[str, Proposer] = field(default_factory=dict)

    def start_proposer(self, name: str) -> None:
        self.starts += 1
        self.proposers[name] = Proposer(name, Ballots(f"{name}{self.starts}"))

    def begin(self, p: Proposer) -> None:
        self.tags += 1
        tag = f"t{self.tags}"
        p.change = Read() if self.chance.random() < 0.4 else Write(p.known, tag.encode(), tag)
        p.operation, p.seen_at_start, p.lost_to = Operation("k", p.change), self.finished_version, None
        self.perform(p, p.operation.begin(p.ballots.next(), VOTERS))

    def perform(self, p: Proposer, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(voter, request):
                    self.flight.append((p.name, voter, request))
                case Again(counter):
                    p.lost_to = counter
                case Done():
                    self.finish(p, effect)

    def finish(self, p: Proposer, done: Done) -> None:
        change, p.operation = p.change, None
        match done.outcome:
            case Found(value):
                self.saw(p, value.version, value.data)
            case Written(version):
                assert isinstance(change, Write)
                # A write may have been overtaken before its answer came.
                self.check_value(version, change.data)
                self.finished_version = max(self.finished_version, version)
                p.known = version
            case Conflicting(current):
                assert isinstance(change, Write)
                assert change.data is not None
                self.failed.add(change.data)
                self.saw(p, current.version, current.data)
        if self.failed & {d for d in self.chosen.values() if d is not None}:
            raise Broken("a write that was reported failed took effect")

    def saw(self, p: Proposer, version: int, data: bytes | None) -> None:
        if version < p.seen_at_start:
            raise Broken(f"version {version} was seen after {p.seen_at_start}")
        self.check_value(version, data)
        self.finished_version, p.known = max(self.finished_version, version), version

    def check_value(self, version: int, data: bytes | None) -> None:
        if self.chosen.setdefault(version, data) != data:
            raise Broken(f"version {version} has two values")

    def deliver(self, loss: float) -> None:
        at = self.chance.randrange(len(self.flight))
        to, voter, message = self.flight[at]
        if self.chance.random() > 0.1:  # else: a double comes later
            del self.flight[at]
        if self.chance.random() < loss:
            return
        if not isinstance(message, Answer):
            step = self.rule(self.memory[voter], 1, message)
            if step.persist is not None:
                self.memory[voter] = step.persist
                if self.synced:
                    self.disk[voter] = step.persist
            self.flight.append((to, voter, step.answer))
        elif (operation := self.proposers[to].operation) is not None:
            self.perform(self.proposers[to], operation.on_answer(voter, message))

    def step(self, loss: float, crash: float) -> None:
        if self.chance.random() < crash:
            victim = self.chance.choice("abcpqr")
            if victim in self.memory:
                self.memory[victim] = self.disk[victim]
            else:
                self.start_proposer(victim)
        idle = [p for p in self.proposers.values() if p.operation is None]
        if idle and self.chance.random() < 0.3:
            self.begin(self.chance.choice(idle))
        if self.flight:
            self.deliver(loss)
        waiting = [p for p in self.proposers.values() if p.operation is not None]
        if waiting and (not self.flight or self.chance.random() < 0.05):
            p = self.chance.choice(waiting)
            assert p.operation is not None
            if p.lost_to is not None or not self.flight:
                above, p.lost_to = p.lost_to or 0, None
                self.perform(p, p.operation.begin(p.ballots.next(above), VOTERS))


def run(seed: int, rule: Rule = on_request, *, synced: bool = True) -> World:
    chance = random.Random(seed)
    world = World(chance, rule, synced)
    for name in "pqr":
        world.start_proposer(name)
    loss, crash = (chance.choice([0.0, bound]) for bound in (0.2, 0.03))
    for _ in range(STEPS):
        world.step(loss, crash)
    return world


def test_a_register_stays_one_in_every_schedule() -> None:
    versions = [run(seed).finished_version for seed in range(400)]
    # Schedules in which nothing is chosen would prove nothing.
    assert sum(versions) > 2_000


def accepts_lower_ballots(cell: Cell, voters: int, m: Request) -> Step:
    return on_request(Cell() if isinstance(m, Accept) else cell, voters, m)


def forgets_what_it_accepted(cell: Cell, voters: int, m: Request) -> Step:
    step = on_request(cell, voters, m)
    if isinstance(step.answer, Promise):
        return Step(step.persist, None, Promise(m.ballot, Cell().accepted, Value()))
    return step


@pytest.mark.parametrize(
    ("rule", "synced"),
    [(accepts_lower_ballots, True), (forgets_what_it_accepted, True), (on_request, False)],
    ids=["lower ballot accepted", "promise without the value", "accept not fsynced"],
)
def test_planted_mistakes_are_found(rule: Rule, synced: bool) -> None:
    for seed in range(3_000):
        try:
            run(seed, rule, synced=synced)
        except Broken:
            return
    pytest.fail("3,000 schedules did not find it")
