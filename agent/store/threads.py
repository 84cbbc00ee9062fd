"""Blocking work in a thread, waited for to its end even by who is cancelled: its files are still in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_to_end(executor: Executor, work: Callable[..., T], *args: object) -> T:
    """`work(*args)` in the executor. A cancelled caller is cancelled when the thread is done, not before."""
    future = asyncio.get_running_loop().run_in_executor(executor, work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
