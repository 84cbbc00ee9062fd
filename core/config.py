"""cluster.toml: read it, say every mistake at once, write it. Text and environment in, a frozen config out.

It holds only what a node needs to find and open its cluster, and what belongs to one machine (`[agent]`); all
else is a setting of the cluster. Environment (`SHOAL_…`) over file over defaults. Nothing here opens a file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import msgspec
import tomli_w

from core.config_reading import Reading
from core.config_values import Watermark, host_port
from core.errors import ConfigInvalid, NotFound
from core.toml_lines import key_lines


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Absolute paths of PEM files. With `ca`, nodes prove themselves to each other by certificate."""

    cert: str
    key: str
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Where one node is. Addresses are host:port, IPv6 hosts in brackets; `host_port` takes them apart."""

    id: str
    address: str
    """What clients and consoles use."""
    peer_address: str
    """What other nodes use; the store listens there itself. The address's port + 2 unless given."""
    listen: str
    """What the fronts bind: the address unless given."""
    zone: str = ""
    weight: float = 1.0
    voter: bool = True


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What belongs to a machine. Each key has a variable: SHOAL_FRONTS, SHOAL_NICE, …"""

    fronts: int | None = None
    """Serving processes; None: one on two cores, else cores − 1."""
    nice: int = 0
    """Of the store. Unless given: 10 for one node alone, which makes way for searches; 0 in a cluster, where
    it must answer its peers in time."""
    insecure: bool = False
    """Serve beyond loopback without a key and TLS."""
    log_format: Literal["json", "logfmt"] = "logfmt"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    slow_request_ms: int = 1000
    """Requests that take longer are logged; 0: none."""
    disk_low_water: Watermark = Watermark(amount_bytes=512 << 20)
    """With less free space than this, writes are refused."""
    memory_low_water: Watermark = Watermark(amount_bytes=256 << 20)
    """With less available memory than this, writes and large requests are refused."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API; "*": all."""
    gzip: bool = False
    """Compress large answers for clients that ask for it."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A whole cluster.toml, checked. Paths are absolute if the folder given to `read_config` was."""

    name: str
    data_dir: str
    nodes: tuple[NodeConfig, ...]
    agent: AgentConfig
    state: str = "voters"
    """Where the truth is kept: on the nodes that vote, or etcd://host:port,…"""
    etcd_user: str | None = None
    etcd_password_file: str | None = None
    api_key_file: str | None = None
    read_only_api_key_file: str | None = None
    admin_key_file: str | None = None
    secret_file: str | None = None
    auto_join: bool = False
    """A node that knocks with the secret is taken in at once; else it waits until somebody says so."""
    tls: TlsConfig | None = None
    test_dial: dict[str, str] | None = None
    """Whom to dial in place of a peer_address: tests put proxies between nodes. Keys "from->to", or "to"."""

    def dialled(self, sender: str, receiver: str, address: tuple[str, int]) -> tuple[str, int]:
        """Where `sender` reaches the store of `receiver`, which listens at `address`."""
        dial = self.test_dial or {}
        through = dial.get(f"{sender}->{receiver}") or dial.get(receiver)
        return address if through is None else host_port(through)

    def node(self, node_id: str) -> NodeConfig:
        """The node of that id. Raises NotFound, naming those there are."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        known = ", ".join(node.id for node in self.nodes)
        raise NotFound(f"node {node_id!r} is not in cluster.toml, which has {known}")

    def data_folder(self, node_id: str) -> str:
        """Where that node keeps everything."""
        return f"{self.data_dir}/{self.node(node_id).id}"


def read_config(
    text: str, *, folder: str, environ: Mapping[str, str], source: str = "cluster.toml"
) -> ClusterConfig:
    """What a cluster.toml in `folder` and the environment say. Raises ConfigInvalid with all mistakes."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # tomllib stops at the first one and keeps nothing: there is nothing else to report.
        found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        place, reason = (f"{source}:{found[2]}", found[1]) if found else (source, str(error))
        raise ConfigInvalid(f"{place}: this is not TOML: {reason}") from None
    except RecursionError:
        raise ConfigInvalid(f"{source}: its arrays or tables are nested too deeply to be read") from None
    reading = Reading(source=source, folder=folder, environ=environ, lines=key_lines(text))
    plain = reading.document(document)
    if reading.mistakes:
        raise ConfigInvalid("\n".join(reading.report()))
    return msgspec.convert(plain, ClusterConfig)


def to_toml(config: ClusterConfig) -> str:
    """A cluster.toml that reads back as the same config, with every value spelled out."""
    cluster = {key: value for key, value in asdict(config).items() if value is not None}
    agent = {key: value for key, value in cluster.pop("agent").items() if value is not None}
    for mark in ("disk_low_water", "memory_low_water"):
        agent[mark] = str(getattr(config.agent, mark))
    nodes, tls, dial = cluster.pop("nodes"), cluster.pop("tls", None), cluster.pop("test_dial", None)
    document = {"cluster": cluster}
    if dial:
        document["test"] = {"dial": dial}
    if tls:
        document["tls"] = {key: value for key, value in tls.items() if value is not None}
    return tomli_w.dumps(document | {"nodes": nodes, "agent": agent})


def config_to_json(config: ClusterConfig) -> bytes:
    """What the first process hands to the others."""
    return msgspec.json.encode(config)


def config_from_json(data: bytes | str) -> ClusterConfig:
    """The config that `config_to_json` wrote."""
    return msgspec.json.decode(data, type=ClusterConfig)
