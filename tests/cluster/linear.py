"""Is a history of one register linearizable? The search of Wing & Gong with a memo, after Lowe (2017).

An operation of unknown outcome takes effect at some time after its beginning, or never. A read that fits the
state is taken at once: it changes nothing, so no order in which it comes later could be needed instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a client. `end_s` NEVER: nobody knows whether it took effect. Value None: there is none."""

    kind: Literal["read", "write"]
    value: object
    begin_s: float
    end_s: float
    client: str = ""

    def __str__(self) -> str:
        end = "?" if self.end_s == NEVER else f"{self.end_s:.4f}"
        return f"{self.begin_s:.4f} … {end} {self.client} {self.kind} {self.value!r}"


def mistakes(history: Iterable[Operation], initial: object = None) -> list[str]:
    """Empty if some order explains all that was seen; else the operations around where none goes on."""
    operations = _relevant(history, initial)
    done, furthest = _search(operations, initial)
    if done:
        return []
    nearby = operations[max(0, furthest - 4) : furthest + 5]
    return [f"{'→' if operations.index(one) == furthest else ' '} {one}" for one in nearby]


def _relevant(history: Iterable[Operation], initial: object) -> list[Operation]:
    """By their beginnings, without what can't matter: unknown reads, and unknown writes that nobody read."""
    history = list(history)
    read = {one.value for one in history if one.kind == "read" and one.end_s != NEVER}
    kept = [one for one in history if one.end_s != NEVER or (one.kind == "write" and one.value in read)]
    return sorted(kept, key=lambda one: one.begin_s)


def _search(operations: list[Operation], initial: object) -> tuple[bool, int]:
    """Whether an order was found, and the first operation that could never be placed.

    A state: all before `first` are done, `mask` says which of those from it on, and what the register holds.
    """
    start = _settle(operations, 0, 0, initial)
    waiting = [(*start, initial)]
    seen = set(waiting)
    furthest = start[0]
    while waiting:
        first, mask, _ = waiting.pop()
        furthest = max(furthest, first)
        candidates, left = _next(operations, first, mask)
        if not left:
            return True, furthest
        for index in reversed(candidates):
            one = operations[index]
            if one.kind == "read":
                continue  # it did not fit, or it would have been taken already
            following = (*_settle(operations, first, mask | 1 << (index - first), one.value), one.value)
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return False, furthest


def _next(operations: list[Operation], first: int, mask: int) -> tuple[list[int], bool]:
    """Those that may come next: begun before any that is left has ended. And whether any must still come."""
    candidates = []
    earliest_end_s, is_left = NEVER, False
    for index in range(first, len(operations)):
        one = operations[index]
        if one.begin_s > earliest_end_s:
            break
        if not mask >> (index - first) & 1:
            candidates.append(index)
            earliest_end_s = min(earliest_end_s, one.end_s)
            is_left = is_left or one.end_s != NEVER
    return candidates, is_left


def _settle(operations: list[Operation], first: int, mask: int, value: object) -> tuple[int, int]:
    """Take every read that fits, and move past what is done."""
    while True:
        while mask & 1:
            first, mask = first + 1, mask >> 1
        candidates, _ = _next(operations, first, mask)
        fitting = [i for i in candidates if operations[i].kind == "read" and operations[i].value == value]
        if not fitting:
            return first, mask
        for index in fitting:
            mask |= 1 << (index - first)
