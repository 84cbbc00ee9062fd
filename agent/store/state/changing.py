"""Performs a change of voters (core/consensus/voters.py) on real acceptors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from agent.store.state.rounds import BACKOFF_S_MAX, BACKOFF_S_MIN, Voter, run_round
from core.consensus.register import Again, Ballots, Done, Operation
from core.consensus.voters import Call, Effect, Finished, GaveUp, ListKeys, Settle, VoterChange, Wait
from core.errors import ShoalError

CALL_S = 2.0
SETTLE_S = 5.0

Heard = Callable[[], list[Effect]]
"""What came of an effect, to be told to the runner in its turn."""


class ChangeOfVoters:
    """One runner at work. `voter_of` gives a voter by its name, or raises a ShoalError.

    `ballots` are of a proposer that nobody else uses. A cancelled `run` may be begun anew, by anyone.
    """

    def __init__(
        self,
        change: VoterChange,
        voter_of: Callable[[str], Voter],
        *,
        ballots: Ballots,
        chance: random.Random,
    ) -> None:
        self._change = change
        self._voter_of = voter_of
        self._ballots = ballots
        self._chance = chance
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()

    async def run(self) -> Finished | GaveUp:
        """Until it is over. Each effect has a deadline and the runner a bound on failures, so it ends."""
        effects = self._change.begin()
        tasks: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                end = effects[-1] if effects and isinstance(effects[-1], Finished | GaveUp) else None
                if end is not None:
                    for task in tasks:
                        task.cancel()
                for effect in effects:
                    if effect is not end:
                        tasks.add(task := group.create_task(self._perform(effect)))
                        task.add_done_callback(tasks.discard)
                if end is not None:
                    # The group waits for the last calls: who still asks voters that left must hear of it.
                    return end
                effects = (await self._heard.get())()

    async def _perform(self, effect: Effect) -> None:
        change = self._change
        match effect:
            case Settle():
                self._heard.put_nowait(await self._settle(effect))
            case Call(asked, voter, request):
                with suppress(ShoalError, TimeoutError):
                    async with asyncio.timeout(CALL_S):
                        answer = await self._voter_of(voter).handle(request)
                    self._heard.put_nowait(lambda: change.on_answer(asked, voter, answer))
                    return
                self._heard.put_nowait(lambda: change.on_failed(asked, voter))
            case ListKeys(asked, voter):
                with suppress(ShoalError, TimeoutError):
                    async with asyncio.timeout(CALL_S):
                        keys = await self._voter_of(voter).keys("")
                    self._heard.put_nowait(lambda: change.on_keys(asked, voter, keys))
                    return
                self._heard.put_nowait(lambda: change.on_failed(asked, voter))
            case Wait(asked, delay_s):
                await asyncio.sleep(delay_s)
                self._heard.put_nowait(lambda: change.on_waited(asked))

    async def _settle(self, effect: Settle) -> Heard:
        """By exactly the voters that the runner names: a newer set is news for the runner."""
        change, loop = self._change, asyncio.get_running_loop()
        operation = Operation(effect.key, effect.change, old_alone=effect.old_alone)
        until_s, above, backoff_s = loop.time() + SETTLE_S, 0, BACKOFF_S_MIN
        while loop.time() < until_s:
            begun = operation.begin(self._ballots.next(above), effect.voters)
            result = await run_round(self._voter_of, operation, begun)
            if isinstance(result, Done):
                outcome = result.outcome
                return lambda: change.on_settled(effect.asked, effect.key, outcome)
            if isinstance(result, Again):
                above, newer = result.counter, result.voters
                if newer.number > effect.voters.number:
                    return lambda: change.on_newer(effect.asked, newer)
            # At random, or rivals would outbid each other in step.
            await asyncio.sleep(self._chance.random() * backoff_s)
            backoff_s = min(BACKOFF_S_MAX, 2 * backoff_s)
        return lambda: change.on_failed(effect.asked, effect.key)
