"""The detector: silence, refusals, cuts between followers, a leader that slept, the pace of acting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from core.cluster import NodeId
from core.detector import Cut, Detector, Pace, Rules, ThrashGuard, Verdict

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
NODES = (N1, N2, N3)


def run(
    detector: Detector,
    *,
    from_s: float,
    to_s: float,
    answers: Callable[[NodeId, float], bool],
    unheard: Callable[[NodeId], Iterable[NodeId]] = lambda _: (),
) -> Verdict:
    """Look every 50 ms; pings of nodes that answer are answered at once."""
    now_s = from_s
    while True:
        for ping in detector.due(now_s):
            if answers(ping.node, now_s):
                detector.on_answer(ping.node, now_s, unheard(ping.node))
        verdict = detector.verdict(now_s)
        now_s += 0.05
        if now_s >= to_s:
            return verdict


def watching(nodes: Iterable[NodeId] = NODES) -> Detector:
    detector = Detector()
    detector.watch(list(nodes), 0.0)
    return detector


def test_nodes_that_answer_are_healthy() -> None:
    verdict = run(watching(), from_s=0, to_s=5, answers=lambda n, t: True)
    assert verdict.health == dict.fromkeys(NODES, "healthy")
    assert not verdict.dead
    assert not verdict.isolated


def test_a_node_that_was_never_heard_is_unknown_before_it_is_dead() -> None:
    detector = watching()
    assert run(detector, from_s=0, to_s=1.5, answers=lambda n, t: n != N2).health[N2] == "unknown"
    assert run(detector, from_s=1.5, to_s=3, answers=lambda n, t: n != N2).health[N2] == "dead"


def test_two_seconds_of_silence_are_death_and_not_less() -> None:
    detector = watching()
    run(detector, from_s=0, to_s=4, answers=lambda n, t: True)
    assert N2 not in run(detector, from_s=4, to_s=5.4, answers=lambda n, t: n != N2).dead
    dead = run(detector, from_s=5.4, to_s=6.2, answers=lambda n, t: n != N2).dead
    assert list(dead) == [N2]
    assert "no answer" in dead[N2].why


def test_one_refusal_makes_suspect_and_a_second_is_proof() -> None:
    detector = watching()
    run(detector, from_s=0, to_s=3, answers=lambda n, t: True)
    detector.on_closed(N2, 3.0)
    assert detector.verdict(3.0).health[N2] == "suspect"
    assert [p for p in detector.due(3.1) if p.node == N2 and p.redial]
    detector.on_closed(N2, 3.1)
    dead = detector.verdict(3.1).dead
    assert dead[N2].since_s == 3.0
    assert "refused" in dead[N2].why


def test_an_answer_at_the_second_look_clears_the_suspicion() -> None:
    detector = watching()
    run(detector, from_s=0, to_s=3, answers=lambda n, t: True)
    detector.on_closed(N2, 3.0)
    detector.on_answer(N2, 3.1)
    assert detector.verdict(3.15).health[N2] == "healthy"


def test_an_answer_from_before_the_end_of_the_connection_proves_nothing() -> None:
    detector = watching()
    run(detector, from_s=0, to_s=3, answers=lambda n, t: True)
    detector.on_closed(N2, 3.2)
    detector.on_answer(N2, 3.19)
    assert detector.verdict(3.2).health[N2] == "suspect"


def test_a_dead_node_returns_only_after_answers_in_a_row() -> None:
    detector = watching()
    run(detector, from_s=0, to_s=3, answers=lambda n, t: n != N3)
    assert N3 in run(detector, from_s=3, to_s=4, answers=lambda n, t: True).dead
    assert N3 not in run(detector, from_s=4, to_s=5, answers=lambda n, t: True).dead


def test_a_leader_that_slept_gives_everybody_the_time_that_it_slept() -> None:
    detector = watching()
    run(detector, from_s=0, to_s=3, answers=lambda n, t: True)
    assert not detector.verdict(13.0).dead
    assert not run(detector, from_s=13.05, to_s=14.5, answers=lambda n, t: n != N2).dead
    assert list(run(detector, from_s=14.5, to_s=16, answers=lambda n, t: n != N2).dead) == [N2]


@pytest.mark.parametrize(("silent", "isolated"), [(1, False), (2, True), (3, True)])
def test_a_leader_that_hears_less_than_half_may_be_the_one_cut_off(silent: int, isolated: bool) -> None:
    gone = NODES[:silent]
    detector = watching()
    run(detector, from_s=0, to_s=1, answers=lambda n, t: True)
    assert run(detector, from_s=1, to_s=5, answers=lambda n, t: n not in gone).isolated is isolated


def test_a_cut_between_two_stores_is_seen_once_and_a_one_way_cut_as_such() -> None:
    both = {N1: (N2,), N2: (N1,), N3: ()}
    verdict = run(watching(), from_s=0, to_s=2, answers=lambda n, t: True, unheard=both.__getitem__)
    assert verdict.cuts == (Cut(N1, N2, mutual=True),)
    one_way = {N1: (), N2: (N1,), N3: ()}
    verdict = run(watching(), from_s=0, to_s=2, answers=lambda n, t: True, unheard=one_way.__getitem__)
    assert verdict.cuts == (Cut(N2, N1, mutual=False),)


def test_a_dead_peer_is_no_cut() -> None:
    verdict = run(
        watching(),
        from_s=0,
        to_s=5,
        answers=lambda n, t: n != N3,
        unheard=lambda n: (N3,),
    )
    assert not verdict.cuts


def test_a_large_cluster_is_asked_less_often_and_never_in_one_burst() -> None:
    nodes = [NodeId(f"n{i}") for i in range(1_000)]
    detector = watching(nodes)
    asked = [len(detector.due(tick * 0.05)) for tick in range(400)]
    assert sum(asked) == pytest.approx(1_000 * 20 / detector.period_s, rel=0.06)
    assert max(asked) <= 100
    assert detector.silent_s == 4 * detector.period_s


def test_a_node_that_left_the_map_is_forgotten() -> None:
    detector = watching()
    detector.watch([N1, N2], 1.0)
    detector.on_answer(N3, 1.0)
    detector.on_closed(N3, 1.0)
    assert set(detector.verdict(1.0).health) == {N1, N2}


def test_failovers_are_bounded_in_a_window_and_by_node() -> None:
    guard = ThrashGuard(Pace(burst=2, window_s=60, again_s=10))
    assert guard.may_act(N1, 0)
    guard.acted(N1, 0)
    assert not guard.may_act(N1, 5)
    guard.acted(N2, 5)
    assert not guard.may_act(N3, 30)
    assert guard.may_act(N3, 61)


def test_the_rules_are_those_of_the_design() -> None:
    assert (Rules().period_s, Rules().silent_s, Rules().second_look_s) == (0.5, 2.0, 0.1)
