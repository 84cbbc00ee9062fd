"""Begins a cluster whose truth is in etcd, or finds it there: who writes the first map has drawn its uuid."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import uuid
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent.store.beginning import Begun, decode_map
from agent.store.files import Files
from agent.store.founding import as_node, first_map
from agent.store.network import Network
from agent.store.node_identity import NodeIdentity, read_identity, write_identity
from agent.store.state.etcd import EtcdState
from agent.store.state.port import VersionConflict
from core.cluster import ClusterMap, Event, NodeId, to_json
from core.cluster_changes import add_node, stamped
from core.config import ClusterConfig, NodeConfig
from core.errors import ShoalError, StartRefused
from net.logs import Log

PAUSE_S = 0.5


def etcd_of(config: ClusterConfig) -> EtcdState:
    """As `state` says, not yet connected. Raises StartRefused if a file that it needs can't be read."""
    scheme, _, hosts = config.state.partition("://")
    password = None
    try:
        if config.etcd_password_file is not None:
            password = Path(config.etcd_password_file).read_text().strip()
        tls = None
        if scheme == "etcds":
            tls = ssl.create_default_context(cafile=config.tls.ca if config.tls is not None else None)
            if config.tls is not None:
                tls.load_cert_chain(config.tls.cert, config.tls.key)
    except (OSError, ssl.SSLError, UnicodeDecodeError) as problem:
        raise StartRefused(f"state {config.state}: {problem}") from None
    return EtcdState(
        [f"{'https' if tls else 'http'}://{host}" for host in hosts.split(",")],
        cluster=config.name,
        writer=secrets.token_hex(8),
        user=config.etcd_user,
        password=password,
        tls=tls,
    )


async def begin_in_etcd(
    folder: Path,
    config: ClusterConfig,
    node: NodeConfig,
    network: Network,
    *,
    now_us: Callable[[], int],
    log: Log,
    files: Files | None = None,
) -> Begun:
    """Waits for etcd, and to be taken in. Raises Damaged, StartRefused."""
    disk = files or Files()
    identity = await asyncio.to_thread(read_identity, folder, node.id)
    state = etcd_of(config)
    await state.__aenter__()
    try:
        cluster = await _map(state, config, node, now_us, log)
        if identity is not None and identity.cluster != cluster.cluster:
            raise StartRefused(
                f"{folder}: node.json is of cluster {identity.cluster}, "
                f"etcd holds the map of {cluster.cluster}"
            )
        known = identity or NodeIdentity(node=node.id, cluster=cluster.cluster, voters=())
        await asyncio.to_thread(write_identity, folder, replace(known, begun=True), disk)
    except BaseException:
        await state.__aexit__()
        raise
    network.cluster = cluster.cluster
    return Begun(replace(known, begun=True), state, None, (), state)


async def _map(
    state: EtcdState, config: ClusterConfig, node: NodeConfig, now_us: Callable[[], int], log: Log
) -> ClusterMap:
    """The map with this node in it."""
    said = ""
    while True:
        try:
            found = await state.read("map")
            if found.value is None:
                new = first_map(str(uuid.uuid4()), config, node.id, now_us())
                answer = await state.compare_and_set("map", found.version, to_json(new))
                if not isinstance(answer, VersionConflict):
                    return new
                continue
            cluster = decode_map(found)
            if NodeId(node.id) in cluster.nodes:
                return cluster
            waits_for = f"to be taken in: shoal node add {node.id}"
            if config.auto_join:
                joined = add_node(cluster, as_node(node))
                event = Event(now_us(), "node.added", f"node {node.id}", node.id)
                await state.compare_and_set("map", found.version, to_json(stamped(cluster, joined, event)))
                continue
        except ShoalError as problem:
            waits_for = f"for etcd: {problem}"
        if waits_for != said:
            said = waits_for
            log.info("store.waits", text=waits_for)
        await asyncio.sleep(PAUSE_S)
