"""When a request must be answered, checked between the steps of its work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` on the clock `now`; None: never."""

    at_s: float | None
    now: Callable[[], float]

    def check(self) -> None:
        if self.at_s is not None and self.now() >= self.at_s:
            raise DeadlineExceeded(
                "the request's deadline passed before its queries were done; "
                "raise `timeout`, narrow the filter, or ask for less"
            )
