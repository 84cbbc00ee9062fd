"""The circuit breaker: opens after failures in a row, lets one probe through, closes when that succeeds."""

from __future__ import annotations

from core.breaker import FAILURES_MAX, PAUSE_S_MIN, Breaker


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        assert breaker.may_ask(at_s)
        breaker.began()
        breaker.failed(at_s)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        for _ in range(FAILURES_MAX - 1):
            breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.may_ask(0.0)
    assert not opened().may_ask(PAUSE_S_MIN - 0.01)


def test_half_open_it_takes_one_probe_at_a_time() -> None:
    breaker = opened()
    assert breaker.may_ask(PAUSE_S_MIN)
    breaker.began()
    assert not breaker.may_ask(PAUSE_S_MIN)
    assert breaker.is_probed
    breaker.gave_up()
    assert not breaker.is_probed
    assert breaker.may_ask(PAUSE_S_MIN)
    breaker.began()
    breaker.succeeded()
    assert breaker.may_ask(PAUSE_S_MIN)
    assert not breaker.is_open


def test_each_probe_that_fails_doubles_the_pause() -> None:
    breaker = opened()
    breaker.began()
    breaker.failed(1.0)
    assert not breaker.may_ask(1.0 + PAUSE_S_MIN)
    assert breaker.may_ask(1.0 + 2 * PAUSE_S_MIN)
