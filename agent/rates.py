"""Strict mode's rate limits: so many operations a minute, in a bucket that fills continuously."""

from __future__ import annotations

import math

from core.errors import RateLimited


class Bucket:
    """At most `per_minute` units in any minute, roughly; a full bucket may be spent at once."""

    __slots__ = ("_at_s", "_left", "per_minute")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._left, self._at_s = float(per_minute), now_s

    def take(self, units: int, now_s: float, what: str) -> None:
        """Raises RateLimited, with the seconds to wait, or without if waiting cannot help."""
        if units > self.per_minute:
            raise RateLimited(
                f"{what} rate limit exceeded: this request costs {units} of {self.per_minute} a minute"
            )
        self._left = min(self.per_minute, self._left + (now_s - self._at_s) * self.per_minute / 60)
        self._at_s = now_s
        if units > self._left:
            wait_s = math.ceil((units - self._left) * 60 / self.per_minute)
            raise RateLimited(
                f"{what} rate limit exceeded: retry in {wait_s} s ({self.per_minute} a minute)",
                retry_after_s=wait_s,
            )
        self._left -= units
