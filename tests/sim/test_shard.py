"""The shard log by simulation: no seed may fail, and planted mistakes must."""

from __future__ import annotations

import pytest

from tests.sim.shard_mistakes import MISTAKES, RARE, caught_after
from tests.sim.shard_run import explain, run

SEEDS, SEEDS_LONG, BLOCK = 250, 3000, 50
SOON = (
    "no truncation",
    "lower term accepted",
    "id table not rebuilt",
    "quorum read does not wait",
    "no fence",
)
"""Mistakes that a few dozen seeds find: the quick look whether the simulation still sees anything."""


def check(first: int, seeds: int) -> None:
    for seed in range(first, first + seeds):
        result = run(seed)
        assert result.failure is None, explain(result)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_a_shard_keeps_its_promises_under_every_schedule(first: int) -> None:
    check(first, BLOCK)


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_LONG, 550))
def test_a_shard_keeps_its_promises_under_many_schedules(first: int) -> None:
    check(first, 550)


def test_one_seed_is_one_run() -> None:
    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("name", SOON)
def test_a_planted_mistake_is_found_soon(name: str) -> None:
    caught, seeds = caught_after(name, seeds_max=200)
    assert caught == 1, f"{name} was not found in {seeds} seeds"


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name in MISTAKES if name not in SOON and name not in RARE])
def test_a_planted_mistake_is_found(name: str) -> None:
    caught, seeds = caught_after(name)
    assert caught == 1, f"{name} was not found in {seeds} seeds"


def test_a_failing_seed_explains_itself() -> None:
    with MISTAKES["no truncation"]():
        seed = next(seed for seed in range(200) if run(seed).failure is not None)
        text = explain(run(seed))
    assert f"--seed {seed}" in text
    assert "shrunk" in text
