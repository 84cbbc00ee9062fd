"""The cluster map: what each change does and refuses, invariants, placement, answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from core import cluster_answers as answers
from core import cluster_changes as changes
from core.api.collections import AliasChange, CreateAlias, DeleteAlias, RenameAlias, UpdateCollection
from core.api.config import CollectionParams, Distance, StrictMode, VectorParams
from core.api.indexes import FieldIndex
from core.cluster import (
    EVENTS_KEPT,
    ClusterMap,
    ClusterView,
    CollectionId,
    Event,
    IndexSchema,
    Node,
    NodeId,
    PayloadIndex,
    Pending,
    check,
    check_step,
    directory,
    find,
    named,
    to_json,
)
from core.errors import (
    BadRequest,
    Conflict,
    InvariantBroken,
    NotFound,
    ShoalError,
    Unavailable,
    Unprocessable,
)
from core.hashing import hash64, id_key, shard_of
from core.placement import place

N1, N2 = NodeId("n1"), NodeId("n2")
DENSE, OTHER = VectorParams(4, Distance.COSINE), VectorParams(9, Distance.DOT)
PARAMS = CollectionParams(vectors={"": DENSE}, unnamed=True)
NAMED = CollectionParams(vectors={"a": DENSE, "b": DENSE})
EVENT = Event(5, "test", "who", "subject")


def node(id_: NodeId, **fields: Any) -> Node:
    return Node(id_, 0, f"{id_}:6333", f"{id_}:6335", **fields)


def begun(*nodes: Node) -> ClusterMap:
    cluster = ClusterMap(cluster="uuid")
    for one in nodes or (node(N1),):
        cluster = changes.add_node(cluster, one)
    return cluster


def with_collection(cluster: ClusterMap, name: str, params: CollectionParams = PARAMS) -> ClusterMap:
    cluster, id_ = changes.reserve_collection(cluster)
    return changes.add_collection(cluster, changes.new_collection(id_, name, params, created_us=1))


def view_of(cluster: ClusterMap, **options: Any) -> ClusterView:
    shards = {
        id_: changes.first_shards(
            id_, [[N1]] * c.params.shard_number, {(n, N1): 100 + n for n in range(9)}, [7] * 9
        )
        for id_, c in cluster.collections.items()
    }
    return ClusterView(cluster, shards)


DOCS = with_collection(begun(), "docs")
NAMED_MAP = with_collection(begun(), "docs", NAMED)


# -- collections


def test_ids_of_collections_are_never_drawn_twice() -> None:
    cluster, first = changes.reserve_collection(begun())
    cluster, second = changes.reserve_collection(cluster)
    cluster = changes.delete_collection(with_collection(cluster, "docs"), "docs")
    assert (first, second, changes.reserve_collection(cluster)[1]) == (1, 2, 4)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("docs", Conflict, "Collection `docs` already exists!"),
        ("alias", BadRequest, "Alias with the same name already exists"),
        ("a/b", Unprocessable, "is not valid"),
        ("..", Unprocessable, "is not valid"),
        ("", Unprocessable, "is not valid"),
        ("x" * 256, Unprocessable, "is not valid"),
        ("nul\0", Unprocessable, "is not valid"),
    ],
)
def test_a_name_that_is_taken_or_no_name_is_refused(name: str, error: type[ShoalError], text: str) -> None:
    cluster = changes.set_aliases(DOCS, [CreateAlias("alias", "docs")])
    with pytest.raises(error, match=text):
        changes.check_new_name(cluster, name)


def test_a_deleted_collection_takes_its_aliases_along_and_no_others() -> None:
    cluster = with_collection(DOCS, "other")
    cluster = changes.set_aliases(cluster, [CreateAlias("a", "docs"), CreateAlias("b", "other")])
    cluster = changes.delete_collection(cluster, "docs")
    assert find(cluster, "docs") is None
    assert cluster.aliases == {"b": named(cluster, "other").id}


@pytest.mark.parametrize("name", ["none", "alias"])
def test_deleting_what_is_not_there_or_an_alias_changes_nothing(name: str) -> None:
    cluster = changes.set_aliases(DOCS, [CreateAlias("alias", "docs")])
    assert changes.delete_collection(cluster, name) is cluster


def test_a_patch_through_an_alias_merges_and_raises_the_schema_version() -> None:
    cluster = changes.set_aliases(DOCS, [CreateAlias("alias", "docs")])
    changed = changes.update_collection(cluster, "alias", UpdateCollection(metadata={"k": 1}))
    assert named(changed, "docs").params.metadata == {"k": 1}
    assert named(changed, "docs").schema_version == 2
    assert changes.update_collection(changed, "docs", UpdateCollection(metadata={"k": 1})) is changed


def test_a_recovered_collection_takes_the_place_of_its_namesake_and_its_aliases() -> None:
    cluster = changes.set_aliases(DOCS, [CreateAlias("alias", "docs")])
    cluster, id_ = changes.reserve_collection(cluster)
    cluster = changes.replace_collection(cluster, changes.new_collection(id_, "docs", NAMED, created_us=2))
    assert list(cluster.collections) == [id_]
    assert cluster.aliases == {"alias": id_}


# -- aliases


@pytest.mark.parametrize(
    ("actions", "left"),
    [
        ([CreateAlias("b", "docs")], {"a": 1, "b": 1}),
        ([CreateAlias("a", "other")], {"a": 2}),
        ([CreateAlias("b", "a")], {"a": 1, "b": 1}),
        ([DeleteAlias("a")], {}),
        ([DeleteAlias("none")], {"a": 1}),
        ([RenameAlias("a", "b")], {"b": 1}),
        ([RenameAlias("a", "a")], {"a": 1}),
        ([CreateAlias("b", "other"), RenameAlias("a", "b")], {"b": 1}),
        ([DeleteAlias("a"), CreateAlias("a", "other")], {"a": 2}),
    ],
)
def test_alias_actions_are_applied_in_order(actions: list[AliasChange], left: dict[str, int]) -> None:
    cluster = changes.set_aliases(with_collection(DOCS, "other"), [CreateAlias("a", "docs")])
    assert changes.set_aliases(cluster, actions).aliases == left


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (CreateAlias("b", "none"), NotFound, "Not found: Collection `none`"),
        (CreateAlias("docs", "docs"), Conflict, "already exists"),
        (RenameAlias("none", "b"), NotFound, "Alias none does not exist"),
        (RenameAlias("a", "docs"), Conflict, "already exists"),
        (CreateAlias("a/b", "docs"), Unprocessable, "is not valid"),
    ],
)
def test_one_refused_action_refuses_all(action: AliasChange, error: type[ShoalError], text: str) -> None:
    cluster = changes.set_aliases(DOCS, [CreateAlias("a", "docs")])
    with pytest.raises(error, match=text):
        changes.set_aliases(cluster, [CreateAlias("first", "docs"), action])


# -- payload indexes and vectors


def test_another_schema_for_a_field_makes_a_new_index_with_a_new_number() -> None:
    one = changes.put_index(DOCS, "docs", FieldIndex("a", "keyword"))
    assert changes.put_index(one, "docs", FieldIndex("a", "keyword")) is one
    two = changes.put_index(one, "docs", FieldIndex("a", "integer", {"type": "integer", "range": True}))
    assert named(two, "docs").indexes == {
        "a": PayloadIndex(2, IndexSchema("integer", {"type": "integer", "range": True}))
    }
    three = changes.put_index(changes.delete_index(two, "docs", "a"), "docs", FieldIndex("a", "keyword"))
    assert named(three, "docs").indexes["a"].number == 3
    assert [named(m, "docs").schema_version for m in (DOCS, one, two, three)] == [1, 2, 3, 5]


def test_strict_mode_bounds_the_number_of_indexes() -> None:
    params = replace(PARAMS, strict_mode_config=StrictMode(enabled=True, max_payload_index_count=1))
    cluster = changes.put_index(with_collection(begun(), "docs", params), "docs", FieldIndex("a", "keyword"))
    changes.put_index(cluster, "docs", FieldIndex("a", "integer"))
    with pytest.raises(BadRequest, match="payload indexes"):
        changes.put_index(cluster, "docs", FieldIndex("b", "keyword"))


def test_a_vector_is_added_under_a_number_that_was_never_used() -> None:
    cluster = changes.delete_vector(NAMED_MAP, "docs", "b")
    cluster = changes.put_vector(cluster, "docs", "b", VectorParams(9, Distance.DOT))
    collection = named(cluster, "docs")
    assert collection.vectors == {"a": 1, "b": 3}
    assert collection.params.vectors["b"].size == 9
    check(view_of(cluster))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda: changes.put_vector(NAMED_MAP, "docs", "a", VectorParams(9, Distance.DOT)),
            "already exists with",
        ),
        (lambda: changes.put_vector(DOCS, "docs", "a", DENSE), "has one unnamed vector"),
        (lambda: changes.delete_vector(NAMED_MAP, "docs", "c"), "Not existing vector name error"),
    ],
)
def test_a_vector_that_cannot_be_added_or_removed_is_refused(change: Callable[[], object], text: str) -> None:
    with pytest.raises(ShoalError, match=text):
        change()


def test_the_same_vector_again_changes_nothing() -> None:
    assert changes.put_vector(NAMED_MAP, "docs", "a", DENSE) is NAMED_MAP


@pytest.mark.parametrize(
    "change",
    [
        lambda m: changes.update_collection(m, "none", UpdateCollection()),
        lambda m: changes.put_index(m, "none", FieldIndex("a", "keyword")),
        lambda m: changes.delete_index(m, "none", "a"),
        lambda m: changes.put_vector(m, "none", "a", DENSE),
        lambda m: changes.delete_vector(m, "none", "a"),
        lambda m: changes.set_aliases(m, [CreateAlias("a", "none")]),
    ],
)
def test_every_change_of_an_unknown_collection_says_so(change: Callable[[ClusterMap], ClusterMap]) -> None:
    with pytest.raises(NotFound, match="Not found: Collection `none` doesn't exist!"):
        change(DOCS)


# -- epochs, encoding, invariants


def test_an_epoch_carries_its_event_and_the_last_ones_stay() -> None:
    cluster = DOCS
    for n in range(EVENTS_KEPT + 10):
        cluster = changes.stamped(cluster, cluster, replace(EVENT, subject=str(n)))
    assert cluster.epoch == EVENTS_KEPT + 10
    assert len(cluster.events) == EVENTS_KEPT
    assert (cluster.events[-1].epoch, cluster.events[-1].subject) == (cluster.epoch, str(EVENTS_KEPT + 9))


def test_map_and_shards_come_back_from_json_as_they_were() -> None:
    cluster = changes.put_index(NAMED_MAP, "docs", FieldIndex("a.b[]", "text", {"type": "text"}))
    cluster = changes.set_aliases(cluster, [CreateAlias("é", "docs")])
    view = view_of(changes.stamped(cluster, cluster, EVENT))
    assert msgspec.json.decode(to_json(view), type=ClusterView) == view
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(view), type=ClusterView) == view


def _collection(**fields: Any) -> Callable[[ClusterView], ClusterView]:
    def change(view: ClusterView) -> ClusterView:
        (id_, c), *_ = view.map.collections.items()
        return replace(view, map=replace(view.map, collections={id_: replace(c, **fields)}))

    return change


def _map(**fields: Any) -> Callable[[ClusterView], ClusterView]:
    return lambda view: replace(view, map=replace(view.map, **fields))


def _shard(**fields: Any) -> Callable[[ClusterView], ClusterView]:
    def change(view: ClusterView) -> ClusterView:
        (id_, shards), *_ = view.shards.items()
        first, *rest = shards.shards
        return replace(view, shards={id_: replace(shards, shards=(replace(first, **fields), *rest))})

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_collection(id=9), "under another id"),
        (_collection(vectors={}), "have numbers for"),
        (_collection(vectors={"a": 1, "b": 1}), "must differ"),
        (_collection(next_vector=2), "must differ and be in 1..1"),
        (_collection(indexes={"a": PayloadIndex(1, IndexSchema("keyword"))}), "index numbers"),
        (_map(aliases={"x": 99}), "points to collection 99"),
        (_map(aliases={"docs": 1}), "is a collection's name"),
        (_map(next_collection=1), "not below the next id"),
        (_map(next_node=1), "node n1 has"),
        (_shard(first_hash=1), "begins at hash 1"),
        (_shard(last_hash=5), "expected 6|begins at hash"),
        (_shard(term=0), "term 0"),
        (_shard(primary=N2), "primary n2"),
        (_shard(learners=(N1,)), "both in sync and a learner"),
        (_shard(replicas={}), "incarnations of"),
        (_shard(in_sync=(N1, N2), replicas={N1: 1, N2: 2}), "unknown nodes"),
        (_shard(pending=Pending(1, N1, (N1,))), "pending term 1"),
        (_shard(number=1), "two shards have one number"),
    ],
)
def test_a_broken_invariant_is_named(change: Callable[[ClusterView], ClusterView], text: str) -> None:
    view = view_of(with_collection(begun(), "docs", replace(NAMED, shard_number=2)))
    check(view)
    with pytest.raises(InvariantBroken, match=text):
        check(change(view))


def test_a_step_that_goes_back_is_refused() -> None:
    old = changes.stamped(DOCS, DOCS, None)
    good = changes.stamped(old, changes.put_index(old, "docs", FieldIndex("a", "keyword")), None)
    check_step(old, good)
    collection = named(good, "docs")
    unnoticed = replace(collection, schema_version=1)
    for bad, text in (
        (replace(good, epoch=9), "epoch went"),
        (replace(good, next_collection=1), "next_collection went"),
        (replace(good, leader_term=-1), "leader_term went"),
        (replace(good, cluster="other"), "cluster went"),
        (replace(good, collections={collection.id: unnoticed}), "without a new schema version"),
        (replace(good, collections={collection.id: replace(collection, next_vector=1)}), "next_vector fell"),
    ):
        with pytest.raises(InvariantBroken, match=text):
            check_step(old, bad)


def a_change(cluster: ClusterMap, chance: random.Random) -> ClusterMap:
    name, other = chance.choice("abc"), chance.choice("abcxyz")
    match chance.randrange(8):
        case 0:
            return with_collection(cluster, name, chance.choice([PARAMS, NAMED]))
        case 1:
            return changes.delete_collection(cluster, name)
        case 2:
            return changes.set_aliases(cluster, [CreateAlias(other, name)])
        case 3:
            return changes.set_aliases(cluster, [RenameAlias(other, name), DeleteAlias(name)])
        case 4:
            return changes.put_index(cluster, name, FieldIndex(other, "keyword"))
        case 5:
            return changes.delete_index(cluster, name, other)
        case 6:
            return changes.put_vector(cluster, name, other, DENSE)
        case _:
            return changes.delete_vector(cluster, name, other)


def test_random_changes_keep_every_invariant() -> None:
    epochs = 0
    for seed in range(30):
        chance, cluster = random.Random(seed), begun()
        for _ in range(80):
            try:
                wanted = a_change(cluster, chance)
            except ShoalError:
                continue
            if wanted is not cluster:
                new = changes.stamped(cluster, wanted, EVENT)
                check_step(cluster, new)
                check(view_of(new))
                cluster = new
        epochs += cluster.epoch
    assert epochs > 500


# -- shards and placement


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1_000])
def test_the_shards_of_a_collection_own_each_hash_once_as_points_are_routed(count: int) -> None:
    shards = changes.first_shards(
        CollectionId(1), [[N1]] * count, {(n, N1): n for n in range(count)}, list(range(count))
    )
    check(ClusterView(begun(), {CollectionId(1): shards}))
    for n in range(300):
        key = id_key(n)
        owner = shards.shards[shard_of(key, count)]
        assert owner.first_hash <= hash64(key) <= owner.last_hash


def test_one_node_takes_every_shard_whatever_the_replication_factor() -> None:
    assert place(begun(), [], shard_count=3, replication_factor=2) == [[N1]] * 3


def test_replicas_go_to_different_zones_and_the_load_by_weight() -> None:
    nodes = [NodeId(f"n{i}") for i in range(6)]
    cluster = begun(
        *(node(id_, zone="abc"[i // 2], weight=2.0 if i == 0 else 1.0) for i, id_ in enumerate(nodes))
    )
    places = place(cluster, [], shard_count=60, replication_factor=3)
    zone = {id_: n.zone for id_, n in cluster.nodes.items()}
    assert all(len({zone[id_] for id_ in replicas}) == 3 for replicas in places)
    load = {id_: sum(id_ in replicas for replicas in places) for id_ in nodes}
    assert load == {"n0": 40, "n1": 20, "n2": 30, "n3": 30, "n4": 30, "n5": 30}
    primaries = [sum(replicas[0] == id_ for replicas in places) for id_ in nodes]
    assert min(primaries) >= 7


def test_what_is_there_counts_and_only_members_are_chosen() -> None:
    cluster = begun(
        node(N1), node(N2), node(NodeId("n3"), membership="joining"), node(NodeId("n4"), weight=0.0)
    )
    first = changes.first_shards(CollectionId(1), [[N1]] * 4, {(n, N1): n for n in range(4)}, [0] * 4)
    assert place(cluster, [first], shard_count=4, replication_factor=1) == [[N2]] * 4
    with pytest.raises(Unavailable, match="no member"):
        place(begun(node(N1, membership="draining")), [], shard_count=1, replication_factor=1)


# -- answers


def test_names_and_aliases_are_listed() -> None:
    cluster = with_collection(DOCS, "b")
    cluster = changes.set_aliases(cluster, [CreateAlias("z", "docs"), CreateAlias("y", "b")])
    view = view_of(cluster)
    assert answers.collections_answer(view) == {"collections": [{"name": "b"}, {"name": "docs"}]}
    assert answers.aliases_answer(view, "docs") == {
        "aliases": [{"alias_name": "z", "collection_name": "docs"}]
    }
    assert len(answers.aliases_answer(view)["aliases"]) == 2
    assert sorted(directory(cluster)) == ["b", "docs", "y", "z"]


@pytest.mark.parametrize(
    ("building", "damaged", "status"),
    [(False, False, "green"), (True, False, "yellow"), (True, True, "red"), (False, True, "red")],
)
def test_a_collections_status_tells_what_its_shards_do(building: bool, damaged: bool, status: str) -> None:
    index = FieldIndex("a", "integer", {"type": "integer", "range": True})
    collection = named(changes.put_index(DOCS, "docs", index), "docs")
    answer = answers.collection_answer(
        collection,
        points=5,
        indexed=4,
        segments=1,
        index_points={"a": 3},
        building=building,
        damaged=damaged,
        progress=[{"shard": 0}],
        placed=1,
    )
    assert answer["status"] == status
    assert "warnings" not in answer
    assert answer["payload_schema"] == {
        "a": {"data_type": "integer", "params": {"type": "integer", "range": True}, "points": 3}
    }
    assert ("progress" in answer) is building
    assert answer["config"]["params"]["vectors"] == DENSE


def test_a_collection_with_fewer_replicas_than_it_asked_for_says_so() -> None:
    collection = named(
        with_collection(begun(node(N1)), "docs", replace(PARAMS, replication_factor=3)), "docs"
    )
    answer = answers.collection_answer(
        collection,
        points=0,
        indexed=0,
        segments=0,
        index_points={},
        building=False,
        damaged=False,
        progress=[],
        placed=1,
    )
    assert "placed 1 of 3" in answer["warnings"][0]["message"]


def test_the_one_voter_leads_and_peers_are_numbered() -> None:
    answer = answers.cluster_answer(view_of(DOCS), N1, scheme="http", now="2026-01-01T00:00:00Z")
    assert answer["peer_id"] == 1
    assert answer["peers"] == {"1": {"uri": "http://n1:6335/"}}
    assert (answer["raft_info"]["leader"], answer["raft_info"]["role"]) == (1, "Leader")


def test_shards_here_are_local_and_others_remote() -> None:
    cluster = with_collection(begun(node(N1), node(N2)), "docs", replace(PARAMS, shard_number=2))
    replicas = {(0, N1): 1, (0, N2): 2, (1, N2): 3}
    shards = changes.first_shards(CollectionId(1), [[N1, N2], [N2]], replicas, [0, 0])
    view = ClusterView(cluster, {CollectionId(1): shards})
    answer = answers.collection_cluster_answer(view, "docs", N1, {0: 12})
    assert answer["local_shards"] == [{"shard_id": 0, "points_count": 12, "state": "Active"}]
    assert answer["remote_shards"] == [
        {"shard_id": 0, "peer_id": 2, "state": "Active"},
        {"shard_id": 1, "peer_id": 2, "state": "Active"},
    ]
