"""Waiting for a condition with a deadline, and saying what was seen when it never came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_until(check: Callable[[], T], within_s: float, what: str = "") -> T:
    """Call `check` until it returns something true, and return that.

    An exception of `check` counts as "not yet". Raises AssertionError that tells the last value or exception.
    """
    deadline_s = time.monotonic() + within_s
    seen: object = "nothing"
    while True:
        try:
            value = check()
        except Exception as error:  # noqa: BLE001  (told below if it stays)
            seen = repr(error)
        else:
            if value:
                return value
            seen = repr(value)
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"waited {within_s} s for {what or check}; last seen: {seen}")
        time.sleep(POLL_S)


def keeps(check: Callable[[], bool], for_s: float, what: str = "") -> None:
    """`check` stays true for so long. What it raises is raised."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        assert check(), f"no longer so after {for_s - (until_s - time.monotonic()):.2f} s: {what or check}"
        time.sleep(POLL_S)
