"""The durable acceptor: what it answered is there after any end, and damage is healed or named."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from agent.store.acceptor import LOG_BYTES_MIN, Acceptor
from agent.store.acceptor_log import COPIES
from agent.store.files import Files
from core.consensus.register import (
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Ask,
    Ballot,
    Prepare,
    Promise,
    Refused,
    Told,
    Value,
    VoterSet,
)
from core.errors import Damaged, NoRoom, StartRefused, Unavailable


def accept(version: int, data: bytes = b"x", key: str = "k") -> Accept:
    return Accept(key, Ballot(version, "p"), 1, Value(version, data, (f"t{version}",)))


async def filled(folder: Path, versions: int = 3) -> bytes:
    """A closed acceptor's folder that accepted some versions of `k`; the bytes of its first copy."""
    acceptor = await Acceptor.open(folder, fresh=True)
    for version in range(1, versions + 1):
        assert isinstance(await acceptor.handle(accept(version)), Accepted)
    await acceptor.close()
    return (folder / COPIES[0]).read_bytes()


async def reopened(folder: Path) -> tuple[int, tuple[str, ...]]:
    acceptor = await Acceptor.open(folder, fresh=False)
    version = acceptor.cell("k").value.version
    await acceptor.close()
    return version, acceptor.damage


async def test_promises_and_values_survive_a_restart(tmp_path: Path) -> None:
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True)
    await acceptor.handle(accept(1, b"v1"))
    voters = VoterSet(4, frozenset({"n1", "n2"}), joint=frozenset({"n1"}))
    assert isinstance(await acceptor.handle(Adopt(Ballot(8, "q"), voters)), Adopted)
    await acceptor.handle(Prepare("k", Ballot(9, "q"), 4))
    await acceptor.close()

    again = await Acceptor.open(tmp_path / "a", fresh=False)
    assert await again.handle(Ask(Ballot(8, "q"))) == Told(Ballot(8, "q"), voters)
    assert isinstance(await again.handle(Prepare("k", Ballot(8, "z"), 4)), Refused)
    assert (await again.handle(accept(20))) == Refused(Ballot(20, "p"), Ballot(9, "q"), 4), "old voter set"
    promise = await again.handle(Prepare("k", Ballot(10, "q"), 4))
    assert promise == Promise(Ballot(10, "q"), Ballot(1, "p"), Value(1, b"v1", ("t1",)))
    assert again.damage == ()
    await again.close()


async def test_keys_are_listed_also_when_only_promised_and_the_voters_cell_is_not(tmp_path: Path) -> None:
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True)
    await acceptor.handle(accept(1, key="jobs/1"))
    await acceptor.handle(Prepare("jobs/2", Ballot(9, "q"), 1))
    await acceptor.handle(Adopt(Ballot(8, "q"), VoterSet(2, frozenset({"n1"}))))
    assert await acceptor.keys("") == ["jobs/1", "jobs/2"]
    await acceptor.close()


async def test_growth_past_the_bound_is_written_anew_and_loses_nothing(tmp_path: Path) -> None:
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True)
    for version in range(1, 40):
        await acceptor.handle(accept(version, os.urandom(90_000), f"k{version % 2}"))
    size = (tmp_path / "a" / COPIES[0]).stat().st_size
    kept = {key: acceptor.cell(key) for key in await acceptor.keys("k")}
    await acceptor.close()
    assert LOG_BYTES_MIN <= size < 2 * LOG_BYTES_MIN

    again = await Acceptor.open(tmp_path / "a", fresh=False)
    assert {key: again.cell(key) for key in await again.keys("k")} == kept
    await again.close()


async def test_a_record_torn_in_both_copies_was_never_answered_and_is_dropped(tmp_path: Path) -> None:
    content = (await filled(tmp_path / "a")).rstrip(b"\0")
    for name in COPIES:
        (tmp_path / "a" / name).write_bytes(content[:-5])
    assert (await reopened(tmp_path / "a"))[0] == 2


@pytest.mark.parametrize("copy", COPIES)
async def test_every_flipped_or_missing_byte_of_one_copy_is_healed_by_the_other(
    tmp_path: Path, copy: str
) -> None:
    content = (await filled(tmp_path / "a")).rstrip(b"\0")
    whole = {name: (tmp_path / "a" / name).read_bytes() for name in COPIES}
    for at in range(0, len(content), 11):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]):
            for name in COPIES:
                (tmp_path / "a" / name).write_bytes(damaged if name == copy else whole[name])
            version, damage = await reopened(tmp_path / "a")
            assert version == 3
            assert damage == () or copy in damage[0]
    assert (await reopened(tmp_path / "a")) == (3, ()), "healed on disk"


async def test_one_missing_copy_is_made_anew_and_said(tmp_path: Path) -> None:
    await filled(tmp_path / "a")
    (tmp_path / "a" / COPIES[1]).unlink()
    version, damage = await reopened(tmp_path / "a")
    assert version == 3
    assert "b.log is missing" in damage[0]
    assert (await reopened(tmp_path / "a")) == (3, ())


async def test_both_copies_lost_are_damage_unless_the_node_never_belonged_to_a_cluster(
    tmp_path: Path,
) -> None:
    with pytest.raises(Damaged, match=r"a\.log is missing.*b\.log is missing"):
        await Acceptor.open(tmp_path / "a", fresh=False)
    for name in COPIES:
        (tmp_path / "a" / name).write_bytes(b"garbage")
    for fresh in (True, False):
        with pytest.raises(Damaged, match="damaged header"):
            await Acceptor.open(tmp_path / "a", fresh=fresh)


async def test_an_older_record_damaged_in_both_copies_is_refused(tmp_path: Path) -> None:
    content = bytearray(await filled(tmp_path / "a"))
    content[60] ^= 1
    for name in COPIES:
        (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(Damaged, match="damaged record"):
        await Acceptor.open(tmp_path / "a", fresh=False)


async def batch_torn_in_its_first_record(folder: Path, *, then: int) -> None:
    """A batch of two whose first record no copy has, and `then` records that were written after it."""
    await filled(folder, 1)
    acceptor = await Acceptor.open(folder, fresh=False)
    await asyncio.gather(acceptor.handle(accept(2)), acceptor.handle(accept(2, b"y", "other")))
    for version in range(3, 3 + then):
        await acceptor.handle(accept(version))
    await acceptor.close()
    for name in COPIES:
        content = bytearray((folder / name).read_bytes())
        first = [at for at in range(len(content)) if content.startswith(b"\xa5acc", at)][2]
        content[first : first + 20] = bytes(20)
        (folder / name).write_bytes(content)


async def test_of_a_torn_batch_nothing_was_answered_so_all_of_it_is_dropped(tmp_path: Path) -> None:
    await batch_torn_in_its_first_record(tmp_path / "a", then=0)
    acceptor = await Acceptor.open(tmp_path / "a", fresh=False)
    assert (acceptor.cell("k").value.version, acceptor.cell("other").value.version) == (1, 0)
    await acceptor.close()


async def test_a_lost_record_that_a_later_one_knew_to_be_synced_is_damage(tmp_path: Path) -> None:
    await batch_torn_in_its_first_record(tmp_path / "a", then=1)
    with pytest.raises(Damaged, match="damaged record"):
        await Acceptor.open(tmp_path / "a", fresh=False)


async def test_a_crash_between_the_two_renames_leaves_a_whole_state(tmp_path: Path) -> None:
    old = await filled(tmp_path / "a")
    await reopened(tmp_path / "a")
    (tmp_path / "a" / COPIES[1]).write_bytes(old)
    assert (await reopened(tmp_path / "a"))[0] == 3


class FullDisk(Files):
    """Gives no new block once it is full."""

    def __init__(self) -> None:
        self.is_full = False

    def allocate(self, fd: int, offset: int, size: int) -> None:
        if self.is_full and offset + size > os.fstat(fd).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(fd, offset, size)


async def test_on_a_full_disk_there_is_room_for_some_more_changes_and_it_starts(tmp_path: Path) -> None:
    """Or no collection could be deleted, and the disk would stay full."""
    disk = FullDisk()
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True, files=disk)
    disk.is_full = True
    accepted = 0
    while accepted < 1_000:
        try:
            await acceptor.handle(accept(accepted + 1, bytes(50_000)))
        except NoRoom:
            break
        accepted += 1
    assert 15 < accepted < 25, "its file and its spare, of half a megabyte each"
    await acceptor.close()

    again = await Acceptor.open(tmp_path / "a", fresh=False, files=disk)
    assert again.cell("k").value.version == accepted
    disk.is_full = False
    assert isinstance(await again.handle(accept(1_000)), Accepted)
    await again.close()


async def test_after_a_failed_write_it_answers_nothing_until_a_restart(tmp_path: Path) -> None:
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True)
    await acceptor.handle(accept(1))
    readable = os.open(tmp_path / "a" / COPIES[0], os.O_RDONLY)
    os.dup2(readable, acceptor._files[1])
    os.close(readable)
    for _ in range(2):
        with pytest.raises(Unavailable, match="restart the agent"):
            await acceptor.handle(accept(2))
        os.dup2(acceptor._files[0], acceptor._files[1])
    await acceptor.close()
    assert (await reopened(tmp_path / "a"))[0] in (1, 2)


async def test_a_cancelled_caller_leaves_the_request_to_finish(tmp_path: Path) -> None:
    acceptor = await Acceptor.open(tmp_path / "a", fresh=True)
    call = asyncio.create_task(acceptor.handle(accept(1)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await acceptor.close()
    assert (await reopened(tmp_path / "a"))[0] == 1
    with pytest.raises(Unavailable, match="closed"):
        await acceptor.handle(accept(2))


async def test_a_folder_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    await filled(tmp_path / "a")
    (tmp_path / "a" / f"{COPIES[0]}.new").unlink()
    (tmp_path / "a" / f"{COPIES[0]}.new").mkdir()
    with pytest.raises(StartRefused, match="cannot write the register"):
        await Acceptor.open(tmp_path / "a", fresh=False)
