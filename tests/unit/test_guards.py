"""The guards: what is let in near the marks, when it comes back, and how seldom the disk is asked."""

from __future__ import annotations

import pytest

from agent.store.guards import UNSEEN_MAX_BYTES, Guards, Room
from core.errors import NoRoom, Overloaded

MIB = 1 << 20
MARK = 512 * MIB


class Machine:
    """What is free; each look is counted."""

    def __init__(self) -> None:
        self.disk_free, self.memory_available = 1000 * MIB, 1000 * MIB
        self.looks = 0

    def look(self) -> Room:
        self.looks += 1
        return Room(self.disk_free, 10_000 * MIB, self.memory_available)

    def guards(self) -> Guards:
        guards = Guards(lambda total: MARK, 256 * MIB, self.look)
        self.looks = 0
        return guards


def test_small_writes_look_once_when_they_have_taken_much() -> None:
    machine = Machine()
    guards = machine.guards()
    size = 10_000
    for _ in range(UNSEEN_MAX_BYTES // size):  # four times that on disk
        guards.admit(size)
    assert 3 <= machine.looks <= 4


def test_small_writes_count_against_the_mark_before_the_next_look() -> None:
    machine = Machine()
    machine.disk_free = MARK + MIB
    guards = machine.guards()
    guards.admit(200_000)
    with pytest.raises(NoRoom, match="free"):
        guards.admit(100_000)
    assert machine.looks == 0
    guards.look()  # they took less than they might have
    guards.admit(200_000)


def test_a_large_write_is_measured_against_what_is_free_now() -> None:
    machine = Machine()
    guards = machine.guards()
    machine.disk_free = MARK + 30 * MIB
    with pytest.raises(NoRoom, match="40 MiB are needed, 542 MiB of disk are free, 512 MiB must be left"):
        guards.admit(10 * MIB)


def test_writes_come_back_with_a_tenth_more_than_the_mark() -> None:
    machine = Machine()
    guards = machine.guards()
    for free, low in ((MARK - 1, True), (MARK + MIB, True), (MARK * 11 // 10 + 1, False), (MARK, False)):
        machine.disk_free = free
        guards.look()
        assert guards.disk_low is low, free


def test_low_memory_refuses_writes_but_no_copies() -> None:
    machine = Machine()
    guards = machine.guards()
    machine.memory_available = 200 * MIB
    guards.look()
    with pytest.raises(Overloaded, match="200 MiB are available, writes need 256 MiB left"):
        guards.admit(1)
    guards.admit_copy(10 * MIB)


def test_a_copy_is_measured_whole() -> None:
    guards = Machine().guards()
    guards.admit_copy(400 * MIB)
    with pytest.raises(NoRoom, match="500 MiB are needed"):
        guards.admit_copy(500 * MIB)
