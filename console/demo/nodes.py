"""Three nodes for the length of the demo: on free ports, in a folder of their own, never left behind."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from console.cli.config_file import load
from console.up.cluster import LocalCluster
from console.up.secret import with_secret
from core.errors import StartRefused

NODES = ("n1", "n2", "n3")
_ZONES = ("a", "b", "c")
_READY_WITHIN_S = 60.0
_PORTS_EACH = 4  # clients, who wants gRPC, stores, fronts
# Below those that Linux draws for outgoing connections: one of these could be taken before a node binds it.
_PORT_FIRST, _PORT_LAST = 10_000, 15_000
_DRAWS = 1_000


@contextmanager
def starting_nodes(*, keep: bool) -> Iterator[LocalCluster]:
    """A cluster whose processes are started, but perhaps not ready; however the block ends, it is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    # What the user has set for nodes of theirs is not meant for these.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    try:
        path = folder / "cluster.toml"
        path.write_text(_cluster_toml(), encoding="utf-8")
        with LocalCluster(with_secret(load(path).config), path, environ) as cluster:
            cluster.start()
            yield cluster
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_all(cluster: LocalCluster) -> float:
    """Until they serve and one coordinator leads; how long that took from now. Raises StartRefused."""
    begun_s = time.monotonic()
    cluster.wait_ready(within_s=_READY_WITHIN_S)
    cluster.wait_led(within_s=_READY_WITHIN_S)
    return time.monotonic() - begun_s


def _cluster_toml() -> str:
    nodes = [
        f'[[nodes]]\nid = "{node}"\naddress = "127.0.0.1:{port}"\nzone = "{zone}"\n'
        for node, zone, port in zip(NODES, _ZONES, _free_ports(len(NODES)), strict=True)
    ]
    return '[cluster]\nname = "demo"\ndata_dir = "data"\n' + "".join(nodes)


def _free_ports(count: int) -> list[int]:
    """Each with those after it that its node takes beside it."""
    with ExitStack() as held:
        found: list[int] = []
        for first in random.sample(range(_PORT_FIRST, _PORT_LAST), _DRAWS):
            if all(_hold(held, port) for port in range(first, first + _PORTS_EACH)):
                found.append(first)
                if len(found) == count:
                    return found
    raise StartRefused(f"no {_PORTS_EACH} free ports in a row on 127.0.0.1 in {_PORT_FIRST} … {_PORT_LAST}")


def _hold(held: ExitStack, port: int) -> bool:
    try:
        held.enter_context(socket.create_server(("127.0.0.1", port)))
    except OSError:
        return False
    return True
