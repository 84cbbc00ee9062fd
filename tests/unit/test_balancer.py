"""The balancer: each strategy's shares, and what slow, degraded, dead and returning nodes get."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import pytest

from core.balancer import HEDGE_S_START, SLOW_START_S, Balancer, Standing, Strategy
from core.cluster import NodeId
from core.errors import InvariantBroken

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
NODES = (N1, N2, N3)


def balancer(strategy: Strategy, standings: Mapping[NodeId, Standing] | None = None) -> Balancer:
    made = Balancer(N1, "a", random.Random(7), strategy=strategy)
    made.observe(standings or dict.fromkeys(NODES, Standing()), 0.0)
    return made


def shares(
    of: Balancer, took_s: Mapping[NodeId, float], *, count: int = 3_000, from_s: float = 0.0
) -> dict[NodeId, float]:
    """Reads one after the other, each as long as its node takes."""
    got: Counter[NodeId] = Counter()
    now_s = from_s
    for _ in range(count):
        node = of.pick(NODES, now_s)
        of.began(node)
        now_s += took_s[node]
        of.finished(node, took_s[node], now_s, ok=True)
        got[node] += 1
    return {node: got[node] / count for node in NODES}


EVEN = dict.fromkeys(NODES, 0.001)


@pytest.mark.parametrize(
    "strategy", [Strategy.ROUND_ROBIN, Strategy.RANDOM, Strategy.LEAST_CONNECTIONS, Strategy.LEAST_LOADED]
)
def test_equal_nodes_get_equal_shares(strategy: Strategy) -> None:
    got = shares(balancer(strategy), EVEN)
    assert all(share == pytest.approx(1 / 3, abs=0.04) for share in got.values())


@pytest.mark.parametrize("strategy", [Strategy.ADAPTIVE, Strategy.LOCALITY_AWARE])
def test_the_own_replica_is_preferred_while_all_are_alike(strategy: Strategy) -> None:
    assert shares(balancer(strategy), EVEN)[N1] > 0.9


def test_the_default_leaves_its_own_replica_when_that_is_slow_and_comes_back_when_it_is_not() -> None:
    of = balancer(Strategy.ADAPTIVE)
    slow = {N1: 0.050, N2: 0.001, N3: 0.001}
    assert shares(of, slow)[N1] < 0.02
    shares(of, EVEN, count=60_000, from_s=200.0)
    assert shares(of, EVEN, from_s=400.0)[N1] > 0.5


def test_the_default_avoids_a_slow_peer() -> None:
    of = Balancer(NodeId("elsewhere"), "a", random.Random(3), strategy=Strategy.ADAPTIVE)
    of.observe(dict.fromkeys(NODES, Standing()), 0.0)
    got = shares(of, {N1: 0.050, N2: 0.001, N3: 0.001})
    assert got[N1] < 0.02
    assert min(got[N2], got[N3]) > 0.2


def test_weights_are_shares_and_may_change_between_two_reads() -> None:
    standings = {N1: Standing(read_weight=3), N2: Standing(read_weight=2), N3: Standing(read_weight=1)}
    of = balancer(Strategy.WEIGHTED_ROUND_ROBIN, standings)
    assert shares(of, EVEN, count=600) == {N1: 0.5, N2: pytest.approx(1 / 3), N3: pytest.approx(1 / 6)}
    of.observe({**standings, N1: Standing(read_weight=0)}, 1.0)
    assert shares(of, EVEN, count=600)[N1] == 0


def test_connections_and_load_are_counted() -> None:
    of = balancer(Strategy.LEAST_CONNECTIONS)
    of.began(N1)
    of.began(N2)
    assert of.pick(NODES, 0.0) == N3
    loaded = {N1: Standing(cpu=0.9), N2: Standing(memory=0.8), N3: Standing(cpu=0.3, memory=0.4)}
    assert balancer(Strategy.LEAST_LOADED, loaded).pick(NODES, 0.0) == N3


def test_the_own_zone_is_nearer_than_another() -> None:
    standings = {N2: Standing(zone="b"), N3: Standing(zone="a")}
    of = balancer(Strategy.LOCALITY_AWARE, standings)
    assert {of.pick((N2, N3), 0.0) for _ in range(50)} == {N3}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_dead_node_gets_nothing_and_a_degraded_one_little(strategy: Strategy) -> None:
    standings = {N1: Standing(health="dead"), N2: Standing(degraded=True), N3: Standing()}
    got = shares(balancer(strategy, standings), EVEN)
    assert got[N1] == 0
    assert got[N2] < 0.08


def test_if_all_are_dead_one_is_asked_all_the_same() -> None:
    of = balancer(Strategy.ADAPTIVE, dict.fromkeys(NODES, Standing(health="dead")))
    assert of.pick(NODES, 0.0) in NODES


def test_a_node_that_returns_starts_slowly() -> None:
    of = balancer(Strategy.ROUND_ROBIN, {**dict.fromkeys(NODES, Standing()), N2: Standing(health="dead")})
    of.observe(dict.fromkeys(NODES, Standing()), 100.0)
    early = Counter(of.pick(NODES, 100.5) for _ in range(2_000))
    late = Counter(of.pick(NODES, 100.0 + SLOW_START_S) for _ in range(2_000))
    assert early[N2] < 0.1 * 2_000
    assert late[N2] > 0.3 * 2_000


def test_sticky_keys_stay_while_their_node_is_well_and_only_they_move() -> None:
    of = balancer(Strategy.RANDOM)
    before = {key: of.pick(NODES, 0.0, sticky=key) for key in range(500)}
    assert before == {key: of.pick(NODES, 1.0, sticky=key) for key in range(500)}
    assert min(Counter(before.values()).values()) > 100
    of.observe({**dict.fromkeys(NODES, Standing()), N2: Standing(health="dead")}, 2.0)
    after = {key: of.pick(NODES, 2.0, sticky=key) for key in range(500)}
    assert all(after[key] == node for key, node in before.items() if node != N2)


def test_failures_make_a_node_dearer_though_they_come_quickly() -> None:
    of = balancer(Strategy.ADAPTIVE)
    for _ in range(10):
        of.began(N1)
        of.finished(N1, 0.0001, 0.0, ok=False)
    assert of.pick(NODES, 0.0) != N1
    assert of.statistics()[N1].failed == 10


def test_a_read_without_replicas_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(InvariantBroken):
        balancer(Strategy.RANDOM).pick((), 0.0)


def test_a_read_is_late_when_it_takes_longer_than_nineteen_of_twenty() -> None:
    of = balancer(Strategy.ADAPTIVE)
    assert of.hedge_after_s(N1) == HEDGE_S_START
    for took_ms in range(60):
        of.began(N1)
        of.finished(N1, 0.010 + took_ms / 1000, 0.0, ok=True)
    assert of.hedge_after_s(N1) == pytest.approx(0.067)
    assert of.hedge_after_s(N2) == HEDGE_S_START


def test_a_read_that_was_withdrawn_is_no_longer_in_flight_and_measures_nothing() -> None:
    of = balancer(Strategy.LEAST_CONNECTIONS)
    of.began(N1)
    of.withdrawn(N1)
    assert (of.statistics()[N1].in_flight, of.statistics()[N1].served) == (0, 0)
