"""`shoal coordinator`: a headless console that stands for election until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from functools import partial

from console.coordinator.leadership import Leadership
from console.coordinator.reconciler import Reconciler
from console.peers import Links
from console.state_client import StateClient
from core.config import ClusterConfig
from core.config_values import host_port
from core.errors import ExitCode, StartRefused
from net.logs import Log, log_to
from net.trust import is_networked, trust_of


def run_coordinator(config: ClusterConfig, name: str, say: Callable[[str], None]) -> int:
    """In the foreground; the exit status. `say` tells people what it is about to do.

    Raises StartRefused if this machine does not hold what makes a peer of the nodes.
    """
    if not is_networked(config):
        raise StartRefused(
            "a coordinator dials the stores of all nodes: it needs the cluster's secret_file, "
            "or [tls] with a ca, as they have it"
        )
    trust = trust_of(config)
    addresses = {node.id: host_port(node.peer_address) for node in config.nodes}
    links = Links(name, trust, addresses, dialled=partial(config.dialled, name))
    log = log_to(sys.stderr, config.agent.log_format, config.agent.log_level)
    nodes = ", ".join(f"{node.id} at {node.peer_address}" for node in config.nodes)
    say(f"coordinator {name} of cluster {config.name} stands for election with {nodes}")
    asyncio.run(_stand(name, links, log.bind(process="coordinator", console=name)))
    return ExitCode.OK


async def _stand(name: str, links: Links, log: Log) -> None:
    state = StateClient(links.caller, lambda: links.nodes)
    leadership = Leadership(name, state, Reconciler(name, state, links, log).govern, log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leadership.stop)
    log.info("coordinator.started", nodes=links.nodes)
    try:
        await leadership.run()
    finally:
        await links.close()
        log.info("coordinator.stopped")
