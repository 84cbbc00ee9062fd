"""`shoal coordinator` as a process: what it says, that it leads, that it hands over when told to stop."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.consensus.lease import LEADER_KEY, decode_lease
from tests.unit.coordinator_nodes import TRUST, Cluster, three_nodes, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with three_nodes(tmp_path) as made:
        yield made


def write_config(folder: Path, cluster: Cluster | None, *, secret: bool = True) -> Path:
    path = folder / "cluster.toml"
    lines = ['[cluster]\nname = "lab"\n']
    if secret:
        (folder / "secret").write_bytes(TRUST.secrets[0])
        (folder / "secret").chmod(0o600)
        lines.append('secret_file = "secret"\n')
    addresses = cluster.addresses if cluster is not None else {"n1": ("127.0.0.1", 6335)}
    for number, (name, (host, port)) in enumerate(addresses.items(), 1):
        lines.append(
            f'[[nodes]]\nid = "{name}"\naddress = "{host}:{number}"\npeer_address = "{host}:{port}"\n'
        )
    path.write_text("".join(lines))
    return path


async def start(config: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shoal", "coordinator", "--config", config, *arguments,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_it_says_what_it_does_leads_and_hands_over(cluster: Cluster, tmp_path: Path) -> None:
    process = await start(write_config(tmp_path, cluster), "--name", "ops-1")
    held: list[str] = []

    async def see() -> None:
        while True:
            found = await cluster.nodes["n2"].state.read(LEADER_KEY)
            if found.value is not None:
                held.append(decode_lease(found.value).holder)
            await asyncio.sleep(0.05)

    seeing = asyncio.create_task(see())
    try:
        await until(lambda: held or process.returncode is not None, within_s=20)
        assert held, await process.communicate()
        assert held[-1].startswith("ops-1/")
        process.terminate()
        out, err = await asyncio.wait_for(process.communicate(), 10)
        await until(lambda: held[-1] == "")
    finally:
        seeing.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    at = ", ".join(f"{name} at {host}:{port}" for name, (host, port) in cluster.addresses.items())
    assert out.decode() == f"coordinator ops-1 of cluster lab stands for election with {at}\n"
    events = [line.split("event=")[1].split()[0] for line in err.decode().splitlines()]
    assert [e for e in events if e != "leader.seen"] == [
        "coordinator.started",
        "leader.elected",
        "leader.stopped",
        "coordinator.stopped",
    ]


async def test_without_the_secret_it_is_refused_in_words(tmp_path: Path) -> None:
    process = await start(write_config(tmp_path, None, secret=False))
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (5, b"")
    assert b"it needs the cluster's secret_file" in err
