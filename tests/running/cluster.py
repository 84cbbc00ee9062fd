"""A cluster of real nodes and coordinators on free ports, and links between them: start, kill, stop, cut."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import tomli_w

from console.peers import Links as Connections
from console.state_client import StateClient
from core.cluster import ClusterMap, Shard, Shards, find, shards_key
from core.config_values import host_port
from core.consensus.lease import LEADER_KEY, Lease, decode_lease
from net.peer_link import Trust
from tests.running import processes
from tests.running.agent import ROOT, RunningAgent
from tests.running.links import Links
from tests.running.ports import PortPair
from tests.running.waiting import wait_until


class RunningNode(RunningAgent):
    """One of several: the cluster's file is not its own."""

    def __init__(self, folder: Path, node_id: str, ports: PortPair, config_path: Path) -> None:
        self._shared_path = config_path
        super().__init__(folder, node_id=node_id, environment={"SHOAL_TEST": "1"}, ports=ports)

    def write_config(self, **tables: Mapping[str, Any] | None) -> None:
        self.config_path = self._shared_path

    @property
    def data_dir(self) -> Path:
        return self.config_path.parent / "data" / self.node_id

    def signal(self, number: signal.Signals) -> float:
        """To all of its processes at once; returns when (time.monotonic) it was sent."""
        victims = self.processes()
        at_s = time.monotonic()
        processes.kill(victims, number)
        return at_s

    def kill(self) -> float:
        at_s = self.signal(signal.SIGKILL)
        self.wait_ended()
        return at_s

    def terminate(self) -> None:
        """SIGTERM to the first process, as systemd does; returns at once."""
        os.kill(self.pid, signal.SIGTERM)


class RunningCoordinator:
    """`shoal coordinator`, one process."""

    def __init__(self, folder: Path, name: str, config_path: Path) -> None:
        self.name, self.folder, self._config_path = name, folder, config_path
        self.log_path = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    def start(self) -> None:
        shoal = [sys.executable, "-m", "shoal", "coordinator", "--config", str(self._config_path)]
        with self.log_path.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                [*shoal, "--name", self.name],
                cwd=ROOT,
                env={**os.environ, "SHOAL_TEST": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> float:
        assert self._process is not None
        self._process.send_signal(number)
        return time.monotonic()

    def wait_ended(self, within_s: float = 15.0) -> int:
        assert self._process is not None
        return self._process.wait(within_s)

    def kill(self) -> float:
        at_s = self.signal(signal.SIGKILL)
        self.wait_ended()
        return at_s

    def said(self, event: str) -> bool:
        """Whether its log has that, since it was started last."""
        return f"event={event} ".encode() in self.log_path.read_bytes()[self._log_from :]

    def log_tail(self, lines: int = 60) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


class Truth:
    """What the cluster's keys hold, asked of its nodes as a coordinator asks. For one thread at a time."""

    def __init__(self, secret: bytes, addresses: Mapping[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="truth", daemon=True)
        self._thread.start()
        trust = Trust((secret,))
        self._links = Connections("test", trust, {n: host_port(a) for n, a in addresses.items()})
        self._state = StateClient(self._links.caller, lambda: self._links.nodes)

    def read(self, key: str, timeout_s: float = 3.0) -> bytes | None:
        asking = self._state.read(key, timeout_s=timeout_s)
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result(timeout_s + 5).value

    def ping(self, node: str, timeout_s: float = 2.0) -> dict[str, Any]:
        asking = self._links.caller(node).call("ping", {}, timeout_s=timeout_s)
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result(timeout_s + 5)[0]

    def lease(self) -> Lease | None:
        value = self.read(LEADER_KEY)
        return None if value is None else decode_lease(value)

    def map(self) -> ClusterMap:
        return msgspec.json.decode(self.read("map") or b"", type=ClusterMap)

    def shards(self, collection: str) -> tuple[Shard, ...]:
        found = find(self.map(), collection)
        assert found is not None, f"no collection {collection} in the map"
        return msgspec.json.decode(self.read(shards_key(found.id)) or b"", type=Shards).shards

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._links.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class RunningCluster:
    """`start` returns when all nodes are ready and one coordinator leads. Use it in `with`.

    `proxied`: all that nodes and coordinators say to each other goes through `links`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        coordinators: int = 1,
        proxied: bool = False,
        agent: Mapping[str, Any] | None = None,
        cluster: Mapping[str, Any] | None = None,
        in_file: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config_path = folder / "cluster.toml"
        self.secret = secrets.token_hex(32).encode()
        secret_path = folder / "secret"
        secret_path.write_bytes(self.secret)
        secret_path.chmod(0o600)
        self._settings, self._agent = dict(cluster or {}), dict(agent or {})
        names = [f"n{number}" for number in range(1, nodes + 1)]
        self.ports = {name: PortPair() for name in names}
        consoles = [f"c{number}" for number in range(1, coordinators + 1)]
        self._links = Links(self.ports, [*names, *consoles]) if proxied else None
        self.write_config(names[:in_file])
        self.nodes = {
            name: RunningNode(folder / name, name, self.ports[name], self.config_path) for name in names
        }
        self.coordinators = {name: RunningCoordinator(folder, name, self.config_path) for name in consoles}
        self.truth = Truth(
            self.secret, {name: f"127.0.0.1:{self.ports[name].peer_port}" for name in names[:in_file]}
        )

    @property
    def links(self) -> Links:
        assert self._links is not None, "made without proxies"
        return self._links

    def write_config(self, names: Iterable[str]) -> None:
        """cluster.toml with these nodes, each in a zone of its own."""
        tables: dict[str, Any] = {
            "cluster": {
                "name": "test",
                "data_dir": str(self.folder / "data"),
                "secret_file": str(self.folder / "secret"),
                **self._settings,
            },
            "nodes": [
                {"id": name, "address": f"127.0.0.1:{self.ports[name].port}", "zone": f"z{name}"}
                for name in names
            ],
            "agent": {"fronts": 1, **self._agent},
        }
        if self._links is not None:
            tables["test"] = {"dial": self._links.dial}
        self.config_path.write_text(tomli_w.dumps(tables))

    def start(self, within_s: float = 30.0) -> RunningCluster:
        if self._links is not None:
            self._links.start()
        for node in self.nodes.values():
            node.spawn()
        for coordinator in self.coordinators.values():
            coordinator.start()
        for node in self.nodes.values():
            node.wait_ready(within_s)
        self.wait_leader(within_s)
        return self

    def wait_leader(self, within_s: float = 10.0, *, but: str = "") -> str:
        """The name of the coordinator that leads, another than `but`, and whose stamp the map bears."""

        def leads() -> str:
            lease = self.truth.lease()
            if lease is None or not lease.holder or self.truth.map().leader_term != lease.term:
                return ""
            name = lease.holder.split("/")[0]
            return "" if name == but else name

        return wait_until(leads, within_s, "a coordinator that leads")

    def primaries(self, collection: str) -> dict[int, str]:
        return {shard.number: str(shard.primary) for shard in self.truth.shards(collection)}

    def wait_in_sync(self, collection: str, replicas: int = 3, within_s: float = 30.0) -> None:
        """Until every shard has so many replicas in sync, and nothing pending."""

        def whole() -> bool:
            shards = self.truth.shards(collection)
            if all(len(s.in_sync) == replicas and s.pending is None for s in shards):
                return True
            raise AssertionError(
                [(s.number, s.term, s.primary, s.in_sync, s.learners, s.pending) for s in shards]
            )

        wait_until(whole, within_s, f"{replicas} replicas in sync of each shard of {collection}")

    def living(self) -> list[RunningNode]:
        return [node for node in self.nodes.values() if node.is_running()]

    def logs(self) -> Iterator[tuple[str, str]]:
        for name, node in self.nodes.items():
            yield f"log of {name}", node.log_tail()
        for name, coordinator in self.coordinators.items():
            yield f"log of {name}", coordinator.log_tail()

    def close(self) -> None:
        closing: list[Callable[[], None]] = [self.truth.close]
        closing += [coordinator.close for coordinator in self.coordinators.values()]
        for node in self.nodes.values():
            node.signal(signal.SIGKILL)  # what ends cleanly has tests of its own
            closing.append(node.close)
        if self._links is not None:
            closing.append(self._links.close)
        for close in closing:
            close()

    def __enter__(self) -> RunningCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
