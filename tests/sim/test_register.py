"""The register, changes of its voters, and elections, in many simulated schedules; planted mistakes, too."""

from __future__ import annotations

import pytest

from tests.sim.register_mistakes import MISTAKES, Mistake
from tests.sim.register_world import WORLDS, play
from tests.sim.schedule import Schedule, failure_of, find_failure, replay

SEEDS_FOR_A_MISTAKE = 3_000


def clean(seeds: range) -> None:
    for seed in seeds:
        schedule = Schedule(seed)
        if failure_of(play, schedule) is not None:
            pytest.fail(str(find_failure(play, seed)), pytrace=False)


def test_nothing_breaks_in_250_schedules() -> None:
    clean(range(250))


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("first", range(250, 3_000, 550))
def test_nothing_breaks_in_3000_schedules(first: int) -> None:
    clean(range(first, first + 550))


def test_every_world_is_played_and_does_something() -> None:
    steps = dict.fromkeys(WORLDS, 0)
    for seed in range(40):
        schedule = Schedule(seed, traced=True)
        play(schedule)
        assert schedule.trace
        kind = schedule.trace[0].split()[-1]
        steps[kind] += len([line for line in schedule.trace if "Written" in line or "leads" in line])
    assert all(done > 50 for done in steps.values()), steps


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if not m.rare], ids=lambda m: m.name)
def test_a_planted_mistake_is_caught(mistake: Mistake) -> None:
    with mistake.plant():
        caught = any(failure_of(play, Schedule(seed)) for seed in range(SEEDS_FOR_A_MISTAKE))
    assert caught


def test_a_failing_schedule_is_shrunk_to_one_that_fails_again() -> None:
    (mistake,) = (m for m in MISTAKES if m.name == "a lower ballot is accepted")
    with mistake.plant():
        seed = next(seed for seed in range(100) if failure_of(play, Schedule(seed)))
        failure = find_failure(play, seed)
        assert failure is not None
        assert failure.faults < len(_struck(seed))
        assert f"--seed {seed}" in str(failure)
        assert replay(play, seed, failure.without) == failure


def _struck(seed: int) -> list[str]:
    schedule = Schedule(seed)
    failure_of(play, schedule)
    return schedule.struck


def test_a_seed_is_played_the_same_each_time() -> None:
    traces = []
    for _ in range(2):
        schedule = Schedule(7, traced=True)
        play(schedule)
        traces.append(schedule.trace)
    assert traces[0] == traces[1]
