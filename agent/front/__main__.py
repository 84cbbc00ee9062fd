"""A front's process: binds the shared port, serves until told to stop, finishes what runs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys

import uvloop

from agent.child import SOCKET, Spec, die_with_parent, enter
from agent.front import grpc
from agent.front.access import Keys
from agent.front.app import App, AppLimits
from agent.front.connections import Server
from agent.front.handlers import Handlers
from agent.front.others import Others
from agent.front.routes import Router
from agent.front.serving import Serving
from agent.front.tls import Certificates
from agent.link import Client
from agent.machine import front_count
from agent.metrics import Metrics
from agent.page import Page, Reads
from core.config_values import host_port
from core.errors import ShoalError
from net.logs import Log, log_to
from net.trust import is_networked

TICK_S = 0.2
RELOAD_S = 1.0
DRAIN_S = 10.0
BACKLOG = 1024
GARBAGE_OBJECTS = 20_000
"""New objects between two collections of the young ones: some hundred requests' worth."""
BODIES_BYTES_MAX = 256 << 20
"""Of all request bodies in the node's memory."""


async def serve(spec: Spec, log: Log) -> None:
    """Serve until SIGTERM; then stop accepting, and give what runs DRAIN_S to finish."""
    loop = asyncio.get_running_loop()
    die_with_parent(spec, loop)
    page = Page(spec.page_fd)
    metrics = Metrics(page.metrics(spec.place))
    keys = Keys(spec.config)
    link = Client(SOCKET)
    serving = Serving(spec.node.id, page, link, metrics, log, Reads(page, spec.place))
    if is_networked(spec.config):
        serving.others = Others(
            spec.config,
            spec.node,
            current=serving.current,
            look_at=serving.look_at,
            state_of=serving.state_of,
            applied_at=serving.applied_at,
            page=page,
            link=link,
            metrics=metrics,
            log=log,
        )
        await serving.others.start()
    handlers = Handlers(spec, page, link, serving, metrics)
    app = App(Router(handlers.routes()), keys, metrics, log, _limits(spec), lambda: serving.settings)
    server = Server(app.handle, app.at_once, metrics, lambda: serving.settings)
    certificates = Certificates(spec.config.tls) if spec.config.tls is not None else None
    tls = certificates.context if certificates is not None else None
    listener = await loop.create_server(
        server,
        sock=_bind(spec.node.listen),
        ssl=tls,
        backlog=BACKLOG,
    )
    grpc_refusals = await grpc.listen(spec.node.listen, tls, log)
    stop = asyncio.Event()
    look = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, look.set)
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_tick(page, spec.place), name="tick"),
            tasks.create_task(server.sweep(), name="sweep"),
            tasks.create_task(_reload(keys, certificates, look, log), name="reload"),
            tasks.create_task(serving.follow(), name="follow"),
        ]
        await stop.wait()
        app.stopping = True
        server.pass_on_held()
        listener.close()
        if grpc_refusals is not None:
            grpc_refusals.close()
        if not await app.drained(DRAIN_S):
            log.warning("front.stopped_with_requests", under_way=app.under_way)
        await server.shutdown(1.0)
        for task in running:
            task.cancel()
    handlers.close()
    await link.close()
    if serving.others is not None:
        await serving.others.close()
    serving.close()


def _limits(spec: Spec) -> AppLimits:
    agent = spec.config.agent
    return AppLimits(
        bodies_bytes_max=BODIES_BYTES_MAX // front_count(agent.fronts),
        slow_request_ms=agent.slow_request_ms,
        cors_origins=agent.cors_origins,
        gzip=agent.gzip,
    )


def _bind(listen: str) -> socket.socket:
    host, port = host_port(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # all fronts share the port
    sock.bind((host, port))
    sock.setblocking(False)
    return sock


async def _tick(page: Page, place: int) -> None:
    while True:
        page.tick(place)
        await asyncio.sleep(TICK_S)


async def _reload(keys: Keys, certificates: Certificates | None, look: asyncio.Event, log: Log) -> None:
    """Take up changed key files and certificates; what can't be read is logged, and the old ones stay."""
    while True:
        try:
            async with asyncio.timeout(RELOAD_S):
                await look.wait()
        except TimeoutError:
            pass  # looked at every second, at once after SIGHUP
        look.clear()
        try:
            if keys.reload():
                log.info("front.keys_reloaded")
            if certificates is not None and certificates.reload():
                log.info("front.certificates_reloaded")
        except (ShoalError, OSError, ssl.SSLError) as problem:
            log.error("front.reload_failed", text=str(problem))


def main() -> None:
    spec = enter(sys.argv[1])
    agent = spec.config.agent
    log = log_to(sys.stderr, agent.log_format, agent.log_level)
    log = log.bind(node=spec.node.id, process=f"front-{os.getpid()}")
    # What is loaded by now stays: a full collection that walks it stops all searches for milliseconds.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, 20, 50)
    try:
        uvloop.run(serve(spec, log))
    except* (ShoalError, OSError, ssl.SSLError) as problems:
        for problem in problems.exceptions:
            log.error("front.failed", text=str(problem))
        sys.exit(1)


if __name__ == "__main__":
    main()
