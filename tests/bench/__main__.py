"""`python -m tests.bench`: measures each line of the table beside its reference, and prints the table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.bench import data, idle, mixed, raw, replacing, searches, table, uploads
from tests.bench.clients import OurClient, compile_client

NAMES = ("search", "upload", "idle", "mixed", "replacing")
BENCHMARKS_MD = data.ROOT / "BENCHMARKS.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FILE.npy", help="vectors (n, d); default: the reference data"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, short runs: a smoke test")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--minutes", type=float, help="of mixed load and of replacing; default 2, quick .2")
    parser.add_argument(
        "--folder", type=Path, help="where the agents keep their data: a real disk, not tmpfs"
    )
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> list[table.Line]:
    names = options.only or list(NAMES)
    minutes = options.minutes or (0.2 if options.quick else 2.0)
    base = data.load(options.data, 5_000 if options.quick else 50_000)
    client = OurClient(compile_client(folder))
    lines: list[table.Line] = []

    def add(found: list[table.Line]) -> None:
        for line in found:
            print(line.row(), flush=True)
        lines.extend(found)

    if "search" in names:
        index = raw.build(base.rows)[0]
        seconds, rounds = (1.0, 1) if options.quick else (4.0, 3)
        add(searches.run(searches.Bench(base, index, client, folder, seconds, rounds)))
    double = data.doubled(base)
    if {"upload", "idle", "mixed"} & set(names):
        found = uploads.run(double, client, folder)  # the others need what it leaves behind
        add(found if "upload" in names else [])
    if "idle" in names:
        add(idle.run(folder / "upload", folder, len(double.rows)))
    if "mixed" in names:
        add(mixed.run(double, client, folder / "upload", folder, minutes))
    if "replacing" in names:
        add(replacing.run(base, client, folder, minutes))
    return lines


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that agents and folders are cleaned up
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as place:
        lines = measure(options, Path(place))
    text = f"{table.machine(data.ROOT)}\n\n{table.table(lines)}"
    print(f"\n{text}")
    if options.write:
        table.write(BENCHMARKS_MD, text)
    return 1 if options.strict and not all(line.is_met for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
