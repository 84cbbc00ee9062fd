"""The checker of histories: it accepts what some order explains, and finds each mistake that was planted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.cluster.linear import NEVER, Operation, mistakes


def w(value: object, begin: float, end: float = NEVER) -> Operation:
    return Operation("write", value, begin, end)


def r(value: object, begin: float, end: float) -> Operation:
    return Operation("read", value, begin, end)


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ([], "nothing happened"),
        ([r(None, 0, 1), w(1, 2, 3), r(1, 4, 5)], "one after the other"),
        ([w(1, 0, 10), r(None, 1, 2), r(1, 3, 4)], "a write takes effect while it runs"),
        ([w(1, 0, 10), w(2, 0, 10), r(2, 11, 12)], "writes at once, in either order"),
        ([w(1, 0, 10), w(2, 0, 10), r(2, 3, 4), r(1, 5, 6)], "both seen, in the order that was chosen"),
        ([w(1, 0, 1), w(2, 2), r(1, 3, 4), r(2, 5, 6)], "an unknown write takes effect late"),
        ([w(1, 0, 1), w(2, 2), r(1, 9, 10)], "an unknown write never takes effect"),
        ([w(1, 0, 1), r(9, 2, NEVER)], "a read without an answer says nothing"),
    ],
)
def test_histories_that_an_order_explains(history: list[Operation], why: str) -> None:
    assert mistakes(history) == [], why


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ([w(1, 0, 1), r(None, 2, 3)], "an acknowledged write is lost"),
        ([w(1, 0, 1), w(2, 2, 3), r(1, 4, 5)], "a read is stale"),
        ([w(1, 0, 10), r(1, 1, 2), r(None, 3, 4)], "seen, then no more"),
        ([w(1, 0, 10), w(2, 0, 10), r(1, 1, 2), r(2, 3, 4), r(1, 5, 6)], "back and forth"),
        ([w(1, 0, 1), w(2, 2), r(2, 3, 4), r(1, 5, 6)], "an unknown write is undone"),
        ([r(1, 0, 1), w(1, 2, 3)], "read before it was written"),
        ([w(1, 0, 1), r(7, 2, 3)], "nobody wrote it"),
        ([w(2, 5), r(2, 1, 2)], "an unknown write takes effect before it began"),
    ],
)
def test_histories_that_no_order_explains(history: list[Operation], why: str) -> None:
    assert mistakes(history), why


def _history(seed: int, calls: int, clients: int, unknown: float = 0.0) -> list[Operation]:
    """What clients of a true register saw: each call takes effect at one instant between its ends."""
    rng = random.Random(seed)
    plans: list[tuple[float, float, float, str]] = []
    for client in range(clients):
        at = rng.random()
        for _ in range(calls // clients):
            begin, effect, end = at, at + rng.random(), at + 1 + rng.random()
            plans.append((effect, begin, end, f"c{client}"))
            at = end + rng.random()
    value: object = None
    history = []
    for number, (effect, begin, end, who) in enumerate(sorted(plans)):
        if rng.random() < 0.5:
            history.append(Operation("read", value, begin, end, who))
            continue
        is_unknown = rng.random() < unknown
        if not (is_unknown and rng.random() < 0.5):
            value = number
        history.append(Operation("write", number, begin, NEVER if is_unknown else end, who))
        assert effect <= end
    return history


@pytest.mark.parametrize("seed", range(30))
def test_what_a_true_register_did_is_accepted(seed: int) -> None:
    assert mistakes(_history(seed, 300, 1 + seed % 6, unknown=seed % 3 * 0.02)) == []


def _lose(history: list[Operation], at: int) -> list[Operation]:
    """From an acknowledged write on, all see what was there before it."""
    before = _value_before(history, at)
    lost = history[at].value
    return [
        replace(one, value=before) if one.kind == "read" and one.value == lost else one for one in history
    ]


def _stale(history: list[Operation], at: int) -> list[Operation]:
    """The first read after a later write still sees the value that the write replaced."""
    before = _value_before(history, at)
    for place in range(at, len(history)):
        if history[place].kind == "read" and history[place].begin_s > history[at].end_s:
            return [*history[:place], replace(history[place], value=before), *history[place + 1 :]]
    return history


def _value_before(history: list[Operation], at: int) -> object:
    return next((one.value for one in reversed(history[:at]) if one.kind == "write"), None)


@pytest.mark.parametrize("spoil", [_lose, _stale])
def test_a_mistake_anywhere_in_a_history_is_found(
    spoil: Callable[[list[Operation], int], list[Operation]],
) -> None:
    found = spoiled = 0
    for seed in range(40):
        history = _history(seed, 200, 1)  # one client: what is spoiled has no other explanation
        writes = [place for place, one in enumerate(history) if one.kind == "write"]
        changed = spoil(history, random.Random(seed).choice(writes))
        spoiled += changed != history
        found += bool(mistakes(changed))
    assert found == spoiled > 15


def test_ten_thousand_calls_of_five_clients_are_checked_at_once() -> None:
    history = _history(1, 10_000, 5)
    began_s = time.process_time()
    assert mistakes(history) == []
    assert time.process_time() - began_s < 5
