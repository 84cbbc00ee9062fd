"""What every adapter of the StateStore must do. A test class inherits this and gives the fixture `state`."""

from __future__ import annotations

import asyncio

import pytest

from agent.store.state.port import StateStore, VersionConflict, Versioned


async def write(state: StateStore, key: str, version: int, value: bytes) -> int:
    answer = await state.compare_and_set(key, version, value)
    assert isinstance(answer, int)
    return answer


class StateStoreConformance:
    async def test_a_key_that_never_was_reads_as_nothing_at_version_0(self, state: StateStore) -> None:
        assert await state.read("map") == Versioned(None, 0)

    async def test_what_was_written_is_read_at_its_version(self, state: StateStore) -> None:
        version = await write(state, "map", 0, b"one")
        assert await state.read("map") == Versioned(b"one", version)
        assert await write(state, "map", version, b"two") > version
        assert (await state.read("map")).value == b"two"

    async def test_an_empty_value_is_a_value(self, state: StateStore) -> None:
        version = await write(state, "map", 0, b"")
        assert await state.read("map") == Versioned(b"", version)

    @pytest.mark.parametrize("wrong", [0, 1_000_000])
    async def test_a_cas_at_another_version_conflicts_and_changes_nothing(
        self, state: StateStore, wrong: int
    ) -> None:
        version = await write(state, "map", 0, b"one")
        there = VersionConflict(Versioned(b"one", version))
        assert await state.compare_and_set("map", wrong, b"two") == there
        assert await state.delete("map", wrong) == there
        assert await state.read("map") == there.current

    async def test_a_cas_of_nothing_conflicts_if_a_version_was_expected(self, state: StateStore) -> None:
        assert await state.compare_and_set("map", 7, b"x") == VersionConflict(Versioned(None, 0))

    async def test_a_deleted_key_is_gone_and_can_be_written_anew(self, state: StateStore) -> None:
        version = await write(state, "jobs/1", 0, b"one")
        assert isinstance(await state.delete("jobs/1", version), int)
        gone = await state.read("jobs/1")
        assert gone.value is None
        # Who still holds the deleted version must not overwrite what came after it.
        assert isinstance(await state.compare_and_set("jobs/1", version, b"late"), VersionConflict)
        assert await write(state, "jobs/1", gone.version, b"anew") > version

    async def test_list_gives_the_keys_under_a_prefix_that_have_a_value(self, state: StateStore) -> None:
        for key in ("shards/1", "shards/2", "shards/3", "settings"):
            await write(state, key, 0, key.encode())
        await state.delete("shards/2", (await state.read("shards/2")).version)
        listed = await state.list("shards/")
        assert {key: found.value for key, found in listed.items()} == {
            "shards/1": b"shards/1",
            "shards/3": b"shards/3",
        }
        assert listed["shards/1"] == await state.read("shards/1")

    async def test_watch_answers_at_once_if_the_key_is_newer_and_else_waits(self, state: StateStore) -> None:
        version = await write(state, "map", 0, b"one")
        assert await state.watch("map", 0) == Versioned(b"one", version)
        watching = asyncio.create_task(state.watch("map", version))
        await write(state, "leader", 0, b"other key")
        assert not watching.done()
        newer = await write(state, "map", version, b"two")
        async with asyncio.timeout(5):
            assert await watching == Versioned(b"two", newer)

    async def test_of_many_writers_at_one_version_exactly_one_wins(self, state: StateStore) -> None:
        answers = await asyncio.gather(*(state.compare_and_set("map", 0, b"%d" % n) for n in range(20)))
        winners = [n for n, answer in enumerate(answers) if isinstance(answer, int)]
        assert len(winners) == 1
        assert (await state.read("map")).value == b"%d" % winners[0]

    async def test_counting_by_cas_loses_no_step(self, state: StateStore) -> None:
        async def count() -> None:
            at = await state.read("n")
            while isinstance(
                answer := await state.compare_and_set("n", at.version, b"%d" % (int(at.value or 0) + 1)),
                VersionConflict,
            ):
                at = answer.current

        await asyncio.gather(*(count() for _ in range(10)))
        assert (await state.read("n")).value == b"10"
