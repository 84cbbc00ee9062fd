"""One seed, one schedule: events in simulated time, faults drawn from the seed, a trace, and shrinking.

A world schedules its events here and asks `strikes(kind)` wherever a fault may happen. How often each kind
strikes is drawn per seed, often never: where everything fails all the time, nothing deep happens. Struck
faults are numbered, so a failing schedule can be played again without some of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from core.errors import InvariantBroken

TRACE_LINES_SHOWN = 80
REPLAYS_MAX = 150

Without = frozenset[int | str]
"""Faults that are left out of a schedule: by number, or a whole kind."""


class Broken(Exception):
    """The schedule showed something that must never be."""


class Schedule:
    """The clock, the queue, the chance and the trace of one run."""

    def __init__(self, seed: int, *, without: Without = frozenset(), traced: bool = False) -> None:
        self.seed = seed
        self.now_s = 0.0
        self.steps = 0
        self.chance = random.Random(seed)
        self.trace: list[str] | None = [] if traced else None
        self.struck: list[str] = []  # the kinds of the faults, by number
        self._without = without
        self._rates: dict[str, float] = {}
        self._calm = False
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0

    def rate(self, kind: str, *choices: float) -> float:
        """Draws how often this kind of fault strikes in this schedule."""
        self._rates[kind] = self.chance.choice(choices)
        return self._rates[kind]

    def strikes(self, kind: str) -> bool:
        if self._calm or self.chance.random() >= self._rates[kind]:
            return False
        self.struck.append(kind)
        return kind not in self._without and len(self.struck) - 1 not in self._without

    def calm(self) -> None:
        """No faults from now on."""
        self._calm = True

    @property
    def is_calm(self) -> bool:
        return self._calm

    def after(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        self._scheduled += 1
        heappush(self._queue, (self.now_s + delay_s, self._scheduled, do, args))

    def run(self, until_s: float, *, steps_max: int, enough: Callable[[], bool] | None = None) -> None:
        """Events in order, until the time, the number of steps, or `enough`."""
        queue, last = self._queue, self.steps + steps_max
        while queue and self.steps < last and queue[0][0] <= until_s:
            self.now_s, _, do, args = heappop(queue)
            self.steps += 1
            do(*args)
            if enough is not None and enough():
                return
        if not queue or queue[0][0] > until_s:
            self.now_s = until_s

    def note(self, text: str, *facts: object) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now_s:9.4f}  {text.format(*facts)}")


Play = Callable[[Schedule], None]
"""Plays a world on a schedule. Raises Broken (or an assertion of the code under test) if it went wrong."""


@dataclass(frozen=True)
class Failure:
    """What went wrong in a schedule, and how to see it again."""

    seed: int
    without: Without
    what: str
    faults: int
    trace: tuple[str, ...]

    def __str__(self) -> str:
        left_out = ",".join(sorted(map(str, self.without)))
        again = f"--seed {self.seed}" + (f" --without {left_out}" if left_out else "")
        shown = self.trace[-TRACE_LINES_SHOWN:]
        hidden = f"… {len(self.trace) - len(shown)} lines before\n" if len(shown) < len(self.trace) else ""
        lines = "\n".join(shown)
        return f"seed {self.seed}: {self.what}\n{hidden}{lines}\n({self.faults} faults left; again: {again})"


def failure_of(play: Play, schedule: Schedule) -> str | None:
    """What went wrong, or None."""
    try:
        play(schedule)
    except (Broken, InvariantBroken, AssertionError) as e:
        return f"{type(e).__name__}: {e}"
    return None


def find_failure(play: Play, seed: int) -> Failure | None:
    """Plays a seed; if it fails, a shrunk schedule that fails, too, with its trace."""
    schedule = Schedule(seed)
    if failure_of(play, schedule) is None:
        return None
    return replay(play, seed, shrink(play, schedule))


def replay(play: Play, seed: int, without: Without) -> Failure:
    schedule = Schedule(seed, without=without, traced=True)
    what = failure_of(play, schedule) or "nothing went wrong"
    kept = [n for n, kind in enumerate(schedule.struck) if n not in without and kind not in without]
    return Failure(seed, without, what, len(kept), tuple(schedule.trace or ()))


def shrink(play: Play, failed: Schedule) -> Without:
    """Leaves out whole kinds of faults, then halves, quarters, … of those left, while it still fails."""
    without: Without = frozenset()
    replays = 0
    struck = failed.struck

    def still_fails(fewer: Without) -> bool:
        nonlocal replays, struck
        replays += 1
        schedule = Schedule(failed.seed, without=fewer)
        if failure_of(play, schedule) is None:
            return False
        struck = schedule.struck
        return True

    for kind in sorted(set(struck)):
        if still_fails(without | {kind}):
            without |= {kind}
    size = len(struck)
    while size > 0 and replays < REPLAYS_MAX:
        numbers = [n for n, kind in enumerate(struck) if n not in without and kind not in without]
        size = min(size, len(numbers))
        for start in range(0, len(numbers), max(1, size)):
            fewer = without | frozenset(numbers[start : start + size])
            if replays < REPLAYS_MAX and still_fails(fewer):
                without = fewer
        size //= 2
    return without
