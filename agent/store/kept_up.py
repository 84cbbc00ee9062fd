"""A shard's work beside its writes: what ends by a bug is logged, counted, and begun again later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from core.errors import ShoalError, Unavailable
from net.logs import Log

AGAIN_S, AGAIN_S_MAX = 1.0, 60.0


class KeptUp:
    """`give_up` is told of the death of work that cannot be begun again."""

    def __init__(self, log: Log, give_up: Callable[[ShoalError], None]) -> None:
        self._log = log
        self._give_up = give_up
        self.deaths = 0
        """Since the start."""

    def again(
        self, what: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> tuple[asyncio.Task[None], asyncio.Event]:
        """Do the work in a task, until it ends as it should. The event: it was tried once."""
        tried = asyncio.Event()
        return asyncio.create_task(self._repeat(what, work, tried), name=what), tried

    async def _repeat(
        self, what: str, work: Callable[[], Coroutine[Any, Any, None]], tried: asyncio.Event
    ) -> None:
        wait_s = AGAIN_S
        while True:
            try:
                await work()
                return
            except Exception as bug:  # noqa: BLE001 - whatever it is: nobody else waits for this task
                self._died(what, bug, again_s=wait_s)
            finally:
                tried.set()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, AGAIN_S_MAX)

    def watch(self, what: str, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """A task whose state nobody can take up when it dies: then the shard takes no more writes."""
        task.add_done_callback(lambda ended: self._ended(what, ended))
        return task

    def _ended(self, what: str, task: asyncio.Task[None]) -> None:
        bug = None if task.cancelled() else task.exception()
        if bug is not None:
            self._died(what, bug, again_s=None)
            self._give_up(
                Unavailable(
                    f"the {what} of this shard ended by a bug ({bug!r}); "
                    "writes are refused until the agent is restarted, reads go on"
                )
            )

    def _died(self, what: str, bug: BaseException, again_s: float | None) -> None:
        self.deaths += 1
        self._log.error("shard.work_died", what=what, again_s=again_s, exc=bug)
