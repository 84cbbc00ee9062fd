"""A circuit breaker for one peer: who failed several times in a row is left alone, and probed now and then.

Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

FAILURES_MAX = 5
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 5.0


class Breaker:
    """`may_ask` before a question, then `began`, then `succeeded` or `failed`."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = PAUSE_S_MIN
        self._shut_until_s = 0.0
        self._is_probed = False

    @property
    def is_open(self) -> bool:
        """Whether it takes nothing but a probe."""
        return self._failures >= FAILURES_MAX

    @property
    def is_probed(self) -> bool:
        """A probe is under way: who has nobody else to ask may join it."""
        return self._is_probed

    def may_ask(self, now_s: float) -> bool:
        return not self.is_open or (now_s >= self._shut_until_s and not self._is_probed)

    def began(self) -> None:
        self._is_probed = self.is_open

    def succeeded(self) -> None:
        self._failures, self._pause_s, self._is_probed = 0, PAUSE_S_MIN, False

    def failed(self, now_s: float) -> None:
        """One more in a row; a probe that fails makes the next pause longer."""
        if self._is_probed:
            self._pause_s = min(PAUSE_S_MAX, 2 * self._pause_s)
        self._failures += 1
        self._is_probed = False
        if self.is_open:
            self._shut_until_s = now_s + self._pause_s

    def gave_up(self) -> None:
        """The question was withdrawn: nothing was learned."""
        self._is_probed = False
