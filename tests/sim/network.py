"""A network that drops, delays, doubles and reorders, cuts links, and stashes copies for much later."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

from tests.sim.schedule import Schedule

STASH_S = 15.0


class Network:
    """Messages between hosts. What arrives at a host that is down is the receiver's to ignore."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        schedule.rate("drop", 0, 0, 0.01, 0.05, 0.2)
        schedule.rate("duplicate", 0, 0, 0.02, 0.1)
        schedule.rate("stash", 0, 0, 0.005, 0.03)
        schedule.rate("late", 0, 0, 0.03, 0.2)
        self.delay_s = schedule.chance.choice((0.001, 0.005, 0.02))
        self._late_s = schedule.chance.choice((0.1, 0.5, 2.0))
        self._cuts: set[tuple[str, str]] = set()

    def send(
        self, source: str, target: str, deliver: Callable[..., None], *args: Any, lateness: float = 1.0
    ) -> None:
        """`lateness`: how many times as long a late one takes; some kinds hurt more when they are late."""
        schedule = self._schedule
        if (source, target) in self._cuts or schedule.strikes("drop"):
            return
        # Exponential: messages overtake each other.
        delay_s = -log(1 - schedule.chance.random()) * self.delay_s
        if schedule.strikes("late"):
            delay_s += schedule.chance.random() * self._late_s * lateness
        schedule.after(delay_s, self._arrive, source, target, deliver, args)
        if schedule.strikes("duplicate"):
            schedule.after(3 * delay_s, self._arrive, source, target, deliver, args)
        if schedule.strikes("stash"):
            schedule.after(schedule.chance.random() * STASH_S, self._arrive, source, target, deliver, args)

    def cut(self, source: str, target: str) -> None:
        self._cuts.add((source, target))

    def heal(self) -> None:
        self._cuts.clear()

    def _arrive(self, source: str, target: str, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        if (source, target) not in self._cuts:
            deliver(*args)
