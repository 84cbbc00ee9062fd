"""Crashes a node's register at each call, in forked processes: `python -m tests.storing.crash_register -h`.

A node begins its cluster and counts in its register, past the size at which the log is written anew. After
each crash it must start, in the cluster that it began, with every step that was acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from pathlib import Path

from agent.store.beginning import begin, decode_map
from agent.store.files import Files
from agent.store.state.port import StateStore
from core.config import NodeConfig
from tests.storing.crash import FINISHED, Acks, in_fork
from tests.storing.disks import CRASHED, Crash, CrashingFiles, PowerCutFiles, cut_power

NODE = NodeConfig("n1", "127.0.0.1:6333", "127.0.0.1:6335", "127.0.0.1:6333")
KEYS = 2
STEPS = 8
VALUE_BYTES = 180_000
"""Of each step: the log, of a megabyte at least, is written anew on the way."""


async def count(state: StateStore, key: str, acks: Acks, client: int) -> None:
    for _ in range(STEPS):
        at = await state.read(key)
        n = int((at.value or b"0").split()[0]) + 1
        answer = await state.compare_and_set(key, at.version, b"%d " % n + bytes(VALUE_BYTES))
        assert isinstance(answer, int)
        acks.add(client)


async def scenario(folder: Path, files: Files, acks: Acks, uuid: Path) -> None:
    """Two keys at once: requests that share an fsync are torn together."""
    begun = await begin(folder, NODE, now_us=1, files=files)
    uuid.write_text(begun.identity.cluster)
    await asyncio.gather(*(count(begun.state, f"k{n}", acks, n) for n in range(KEYS)))
    assert begun.acceptor is not None  # this node votes
    await begun.acceptor.close()


async def verify(folder: Path, acks: Path, uuid: Path, *, kept: bool) -> None:
    """`kept`: nothing that was written is lost, so nothing may need healing but torn ends."""
    acknowledged = acks.read_bytes() if acks.exists() else b""
    begun = await begin(folder, NODE, now_us=2)
    if kept:
        assert all("torn" in healed for healed in begun.healed), begun.healed
    cluster = decode_map(await begun.state.read("map")).cluster
    if uuid.exists():
        assert cluster == uuid.read_text(), "another cluster was begun"
    for n in range(KEYS):
        value = (await begun.state.read(f"k{n}")).value or b"0"
        found, sure = int(value.split()[0]), acknowledged.count(n)
        assert sure <= found <= sure + 1, f"k{n}: {found}, {sure} were acknowledged"
    assert begun.acceptor is not None  # this node votes
    await begun.acceptor.close()


def each_point(folder: Path, kind: str, seeds: int, step: int) -> dict[str, object]:
    """Crash the scenario at its first call, and at each `step`-th after it, until it ends by itself."""
    failures: list[str] = []
    errors, run_folder = folder / "errors", folder / "run"
    point = 1
    while True:
        for seed in range(seeds):
            shutil.rmtree(run_folder, ignore_errors=True)
            node, acks, report = run_folder / "node", run_folder / "acks", run_folder / "report"
            node.mkdir(parents=True)

            def run(at: int = point, node: Path = node, acks: Path = acks, report: Path = report) -> None:
                crash = Crash(at, frozenset({"sync", "rename", "write"}))
                files = PowerCutFiles(crash, node, report) if kind == "cut" else CrashingFiles(crash)
                asyncio.run(scenario(node, files, Acks(acks, crash), run_folder / "uuid"))

            status = in_fork(run, errors)
            if status == FINISHED:
                return {"points": point - 1, "failures": failures}
            if status != CRASHED:
                return {"points": point, "failures": [*failures, f"call {point}: {errors.read_text()}"]}
            if kind == "cut":
                cut_power(node, report, seed)

            def check(node: Path = node, acks: Path = acks) -> None:
                asyncio.run(verify(node, acks, run_folder / "uuid", kept=kind == "kill"))

            if in_fork(check, errors) != FINISHED:
                failures.append(f"call {point}, seed {seed}: {errors.read_text()}")
                shutil.copytree(run_folder, folder / f"failed-{point}-{seed}", dirs_exist_ok=True)
        point += step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--disk", choices=["kill", "cut"], default="kill")
    parser.add_argument("--seeds", type=int, default=1, help="power cuts at each call")
    parser.add_argument("--step", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    json.dump(each_point(options.folder, options.disk, options.seeds, options.step), sys.stdout)


if __name__ == "__main__":
    main()
