"""Runs simulations: python -m tests.sim register [--first N --seeds N | --seed N | --mistakes]."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.register_mistakes import MISTAKES, Mistake
from tests.sim.register_world import play
from tests.sim.schedule import Schedule, failure_of, find_failure, replay

CATCHES_WANTED = 5


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("mechanism", choices=["register"])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=None, help="how many")
    parser.add_argument("--seed", type=int, help="play this one and print its trace")
    parser.add_argument("--without", default="", help="faults left out: numbers and kinds, with commas")
    parser.add_argument("--mistakes", action="store_true", help="how soon is each planted mistake caught?")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        left_out = [part for part in options.without.split(",") if part]
        without = frozenset(int(part) if part.isdigit() else part for part in left_out)
        print(replay(play, options.seed, without))
        return 0
    if options.mistakes:
        return _table_of_mistakes(options.seeds or 3_000)
    return _run(options.first, options.seeds or 500)


def _run(first: int, seeds: int) -> int:
    """Until the first failure, which is printed, shrunk."""
    began_s, simulated_s, steps = time.monotonic(), 0.0, 0
    for seed in range(first, first + seeds):
        schedule = Schedule(seed)
        if failure_of(play, schedule) is not None:
            print(find_failure(play, seed))
            return 1
        simulated_s += schedule.now_s
        steps += schedule.steps
    took_s = time.monotonic() - began_s
    print(
        f"{seeds} seeds from {first} are clean: {took_s:.1f} s, {seeds / took_s:.0f} seeds, "
        f"{steps / took_s:,.0f} steps and {simulated_s / took_s:.0f} simulated seconds a second"
    )
    return 0


def _table_of_mistakes(seeds_max: int) -> int:
    missed = 0
    print("| planted mistake | first caught at seed | catches / seeds | as |\n|---|---|---|---|")
    for mistake in MISTAKES:
        caught, seeds, first, what = catches(mistake, seeds_max)
        print(
            f"| {mistake.name} | {'never' if first is None else first} | {caught} / {seeds:,} | {what} |",
            flush=True,
        )
        missed += not caught and not mistake.rare
    return 1 if missed else 0


def catches(mistake: Mistake, seeds_max: int) -> tuple[int, int, int | None, str]:
    """Catches, seeds played until there were enough, the first that caught it, and as what."""
    caught, first, what = 0, None, ""
    with mistake.plant():
        for seed in range(seeds_max):
            if (problem := failure_of(play, Schedule(seed))) is not None:
                caught += 1
                if first is None:
                    first, what = seed, problem
                if caught == CATCHES_WANTED:
                    return caught, seed + 1, first, what
    return caught, seeds_max, first, what


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
