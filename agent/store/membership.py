"""Who a shard's replica is and with whom it begins: what the map says of it, against what it has promised."""

from __future__ import annotations

from typing import NamedTuple

from core.cluster import NodeId, Shard
from core.replication.messages import ReplicaId
from core.replication.replica import ALONE, Identity


class Group(NamedTuple):
    """`members`: with them it begins as their active primary; without, it waits to be told."""

    me: ReplicaId
    members: tuple[ReplicaId, ...]


class Membership(NamedTuple):
    """Without a node the shard is a set of one that nobody else knows."""

    node: str
    configuration: Shard | None

    def group_of(self, identity: Identity) -> Group:
        if not self.node:
            return Group(ALONE, (ALONE,))
        me = ReplicaId(self.node, identity.incarnation)
        found = self.configuration
        # Nobody else can have become the primary of a set of one without a promise from it. In a larger set
        # the log may hold what is not committed: what is, the others tell, or the map by `activate`.
        if found is not None and is_primary(found, me, identity) and found.in_sync == (self.node,):
            return Group(me, (me,))
        return Group(me, ())

    def is_in_sync(self, identity: Identity) -> bool:
        """Whether what is applied here may answer an eventual read."""
        if not self.node:
            return True
        found, node = self.configuration, NodeId(self.node)
        return (
            found is not None and node in found.in_sync and found.replicas.get(node) == identity.incarnation
        )


NO_GROUP = Membership("", None)


def is_primary(configuration: Shard, me: ReplicaId, identity: Identity) -> bool:
    """Whether the map makes this replica the primary of the term that it has promised."""
    return (
        configuration.primary == me.node
        and configuration.replicas.get(NodeId(me.node)) == me.incarnation
        and configuration.term == identity.promised
    )
