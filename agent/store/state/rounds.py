"""What is asked of voters, and one round of an operation: side by side, until it knows what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from core.consensus.register import Again, Answer, Cell, Done, Effect, Operation, Request, Send
from core.errors import ShoalError

ROUND_TIMEOUT_S = 2.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.005, 0.2


class Voter(Protocol):
    """An acceptor, wherever it lives. Raises a ShoalError if it cannot answer."""

    async def handle(self, request: Request) -> Answer: ...

    async def wait_accepted(self, key: str, after_version: int) -> Cell: ...

    async def keys(self, prefix: str) -> list[str]: ...


async def run_round(
    voter_of: Callable[[str], Voter], operation: Operation, effects: Sequence[Effect]
) -> Done | Again | str:
    """`effects`: of `begin`. A voter that fails is only silent; if too many are: why the last one failed."""
    heard: asyncio.Queue[tuple[str, Answer | ShoalError]] = asyncio.Queue()
    asked: list[asyncio.Task[None]] = []

    async def ask(send: Send) -> None:
        try:
            answer: Answer | ShoalError = await voter_of(send.voter).handle(send.request)
        except ShoalError as e:
            answer = e
        heard.put_nowait((send.voter, answer))

    problem, answers = f"no quorum within {ROUND_TIMEOUT_S} s", 0
    with suppress(TimeoutError):  # the problem is returned below
        async with asyncio.timeout(ROUND_TIMEOUT_S), asyncio.TaskGroup() as group:
            while True:
                for effect in effects:
                    if not isinstance(effect, Send):
                        for task in asked:
                            task.cancel()
                        return effect
                    asked.append(group.create_task(ask(effect)))
                if answers == len(asked):
                    return problem
                voter, answer = await heard.get()
                answers += 1
                effects = []
                if isinstance(answer, ShoalError):
                    problem = str(answer)
                else:
                    effects = operation.on_answer(voter, answer)
    return problem
