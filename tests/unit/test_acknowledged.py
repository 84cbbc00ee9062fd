"""What the store notes of acknowledged writes is what every front of the node sees."""

from __future__ import annotations

from agent.acknowledged import Acknowledged, AcknowledgedHere
from agent.page import ACKNOWLEDGED_MAX, Page


def test_each_front_sees_the_highest_seq_of_each_shard() -> None:
    page = Page.make()
    store, fronts = Acknowledged(page), [AcknowledgedHere(page), AcknowledgedHere(Page(page.fd))]
    assert [front.seq(7, 0) for front in fronts] == [0, 0]
    store.note(7, 0, 41)
    store.note(7, 1, 5)
    store.note(7, 0, 40)  # two writes may be answered in either order
    for front in fronts:
        assert (front.seq(7, 0), front.seq(7, 1), front.seq(8, 0)) == (41, 5, 0)
    store.note(7, 1, 6)
    assert [front.seq(7, 1) for front in fronts] == [6, 6]


def test_shards_beyond_the_last_place_are_not_remembered_and_the_others_are() -> None:
    page = Page.make()
    store, front = Acknowledged(page), AcknowledgedHere(page)
    for shard in range(ACKNOWLEDGED_MAX + 1):
        store.note(1, shard, 9)
    store.note(1, 0, 10)
    assert (front.seq(1, 0), front.seq(1, ACKNOWLEDGED_MAX - 1), front.seq(1, ACKNOWLEDGED_MAX)) == (10, 9, 0)
