"""The builder's process: asks the store for work, makes graphs at the lowest priority, ends when idle."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from agent.build_jobs import Built, Job, job_of, to_body
from agent.child import SOCKET, Spec, die_with_parent, enter
from agent.link import Client
from agent.page import Page, Reads
from agent.workshop import Abandoned, Workshop
from core.errors import Damaged, ShoalError
from net.logs import Log, log_to

POLL_S = 0.1
TICK_S = 0.2
IDLE_S = 10.0
"""Without work for this long the process ends, and its memory with it."""
RETRY_S = 1.0
CALL_TIMEOUT_S = 30.0
STUCK_S = 300.0
"""A job that has come no further for this long hangs: the process stops to show that it lives, and `main`
kills it. The longest steps are writing and fsyncing a graph, and a search for the nearest of all rows."""
NICE = 19


async def serve(spec: Spec, log: Log) -> None:
    """Work until there has been none for IDLE_S."""
    loop = asyncio.get_running_loop()
    die_with_parent(spec, loop)
    page = Page(spec.page_fd)
    workshop = Workshop(log, Reads(page, spec.place), threads=os.cpu_count() or 1)
    link = Client(SOCKET)

    def stop() -> None:
        workshop.stopping = True

    loop.add_signal_handler(signal.SIGTERM, stop)
    async with asyncio.TaskGroup() as tasks:
        ticking = tasks.create_task(_tick(page, spec.place, workshop), name="tick")
        await _work(link, workshop, log)
        ticking.cancel()
    await link.close()


async def _work(link: Client, workshop: Workshop, log: Log) -> None:
    loop = asyncio.get_running_loop()
    idle_since = loop.time()
    while not workshop.stopping and loop.time() - idle_since < IDLE_S:
        try:
            _, body = await link.call("build.next", {"pid": os.getpid()}, timeout_s=CALL_TIMEOUT_S)
            job = job_of(body)
            if job is None:
                await asyncio.sleep(POLL_S)
                continue
            built = await asyncio.to_thread(attempt, workshop, job, log)
            if built is None:
                await link.call("build.failed", {"number": job.number}, timeout_s=CALL_TIMEOUT_S)
                await asyncio.sleep(RETRY_S)
            else:
                await link.call("build.done", {}, to_body(built), timeout_s=CALL_TIMEOUT_S)
            idle_since = loop.time()
        except ShoalError as problem:
            workshop.forget()  # what is in memory may not be what the store names
            log.warning("builder.store_refused", text=str(problem))
            await asyncio.sleep(RETRY_S)


def attempt(workshop: Workshop, job: Job, log: Log) -> Built | None:
    """The job's result; None if it could not be done, which the log explains."""
    try:
        built = workshop.build(job)
    except Abandoned:
        return None
    except (Damaged, OSError, EOFError, MemoryError, RuntimeError) as problem:
        # EOFError: the shard's folder was replaced meanwhile. RuntimeError: how usearch says everything.
        workshop.forget()
        log.error("builder.failed", text=str(problem), kind=job.kind, shard=f"{job.collection}/{job.shard}")
        return None
    log.info(
        "builder.built", kind=job.kind, shard=f"{job.collection}/{job.shard}", v=job.v, added=built.added,
        rows=sum(s.count for s in built.segments), recall=built.segments[0].recall, ef=built.segments[0].ef,
        add_ms=round(built.add_s * 1000), save_ms=round(built.save_s * 1000),
    )  # fmt: skip
    return built


async def _tick(page: Page, place: int, workshop: Workshop) -> None:
    while True:
        if workshop.still_s() < STUCK_S:
            page.tick(place)
        await asyncio.sleep(TICK_S)


def main() -> None:
    spec = enter(sys.argv[1])
    os.nice(NICE - os.nice(0))
    log = log_to(sys.stderr, spec.config.agent.log_format, spec.config.agent.log_level)
    log = log.bind(node=spec.node.id, process="builder")
    asyncio.run(serve(spec, log))


if __name__ == "__main__":
    main()
