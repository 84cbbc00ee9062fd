"""Whether anybody searches: by the counters that the fronts keep in the page."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.metrics import total
from agent.page import FIRST_FRONT, PROCESSES_MAX, Page

LATELY_S = 10.0
LOOK_S = 0.1
_COUNTER = "shoal_search_seconds_count"


class Searched:
    """Called, it says whether a search has ended lately at any front, in any collection."""

    def __init__(self, page: Page, now_s: Callable[[], float] = time.monotonic) -> None:
        # A front's part begins with how much of it is used; one that never ran costs next to nothing.
        self._parts = [page.metrics(place) for place in range(FIRST_FRONT, PROCESSES_MAX)]
        self._now_s = now_s
        self._count = total(self._parts, _COUNTER)
        self._searched_s = self._look_at_s = float("-inf")

    def __call__(self) -> bool:
        now_s = self._now_s()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_S
            count = total(self._parts, _COUNTER)
            if count != self._count:
                self._count, self._searched_s = count, now_s
        return now_s - self._searched_s < LATELY_S
