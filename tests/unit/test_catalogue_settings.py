"""Settings: bounds, texts of mistakes, versions, history."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.store.acceptor import Acceptor
from agent.store.settings import SettingsStore
from agent.store.state.port import StateStore
from agent.store.state.quorum import QuorumState
from core.api.checks import Limits
from core.consensus.register import VoterSet
from core.errors import BadRequest, Conflict
from core.settings import Settings, difference, settings_of


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateStore]:
    acceptor = await Acceptor.open(tmp_path / "acceptor", fresh=True)
    voters = VoterSet(1, frozenset({"n1"}))
    yield QuorumState(voters, {"n1": acceptor}, proposer="p", chance=random.Random(1))
    await acceptor.close()


async def opened(state: StateStore) -> SettingsStore:
    clock = itertools.count(1)
    return await SettingsStore.open(state, now_us=lambda: next(clock))


def test_defaults_are_the_limits_of_the_api() -> None:
    assert Settings().limits() == Limits()
    assert settings_of({}) == Settings()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"tail_row_max": 1}, "tail_row_max: no such setting, did you mean tail_rows_max"),
        ({"nonsense": 1}, "nonsense: no such setting"),
        ({"timeout_s": "5"}, "timeout_s: '5': Expected float, got str"),
        ({"batch_max": 0}, "batch_max: 0: Expected int >= 1"),
        ({"build_start_rows": 9_000}, "build_start_rows: 9000 is not below tail_rows_max, 8000"),
    ],
)
def test_a_mistake_names_the_setting_and_what_is_expected(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        settings_of(values)
    assert text in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BadRequest, match=r"batch_max.*timeout_s"):
        settings_of({"batch_max": 0, "timeout_s": 0})


def test_a_difference_fills_in_the_defaults() -> None:
    assert difference({}, {"batch_max": 7}) == {"batch_max": (4_096, 7)}
    assert difference({"batch_max": 4_096}, {}) == {}


async def test_a_change_is_kept_with_who_when_and_why(state: StateStore) -> None:
    store = await opened(state)
    assert store.version == 0
    assert await store.change({"batch_max": 7}, who="admin", why="smaller") == 1
    assert await store.change({"timeout_s": 3.0}, who="admin", why="faster") == 2
    again = await opened(state)
    assert (again.current.batch_max, again.current.timeout_s, again.version) == (7, 3.0, 2)
    newest, oldest = await again.history()
    assert (newest.version, newest.why, newest.diff) == (2, "faster", {"timeout_s": (60.0, 3.0)})
    assert (oldest.who, oldest.diff) == ("admin", {"batch_max": (4_096, 7)})


async def test_null_takes_a_setting_back_to_its_default(state: StateStore) -> None:
    store = await opened(state)
    await store.change({"batch_max": 7, "timeout_s": 3.0}, who="", why="")
    await store.change({"batch_max": None}, who="", why="")
    assert store.values == {"timeout_s": 3.0}
    with pytest.raises(BadRequest, match="no such setting"):
        await store.change({"nonsense": None}, who="", why="")


async def test_a_refused_or_empty_change_makes_no_version(state: StateStore) -> None:
    store = await opened(state)
    with pytest.raises(BadRequest):
        await store.change({"batch_max": 0}, who="", why="")
    assert await store.change({}, who="", why="") == 0
    assert await store.change({"batch_max": None}, who="", why="") == 0


async def test_changes_of_two_agents_are_both_kept_unless_one_names_its_version(state: StateStore) -> None:
    one, two = await opened(state), await opened(state)
    await one.change({"batch_max": 7}, who="one", why="")
    assert await two.change({"timeout_s": 3.0}, who="two", why="") == 2
    assert two.values == {"batch_max": 7, "timeout_s": 3.0}
    with pytest.raises(Conflict, match="at version 2"):
        await one.change({"batch_max": 8}, who="one", why="", version=1)


async def test_a_history_entry_that_a_crash_prevented_is_made_at_the_next_start(state: StateStore) -> None:
    store = await opened(state)
    await store.change({"batch_max": 7}, who="", why="lost")
    entry = await state.read("settings/1")
    await state.delete("settings/1", entry.version)
    again = await opened(state)
    assert [change.why for change in await again.history()] == ["lost"]
