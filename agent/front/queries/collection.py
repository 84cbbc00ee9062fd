"""A collection as queries see it: its vectors, and one consistent look at each of its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.front.queries.plan import VectorSpec
from agent.front.queries.source import Source
from core.api.vectors import unknown_vector
from core.filters import TextIndexes


@dataclass(frozen=True, slots=True)
class Collection:
    """`name` is the collection's own, whatever alias the request used."""

    name: str
    vectors: Mapping[str, VectorSpec]
    sources: Sequence[Source]
    text_indexes: TextIndexes = field(default_factory=dict)
    is_here: bool = True
    """All of the sources are shards of this process."""

    def vector(self, name: str | None) -> VectorSpec:
        """The vector that `using` names; the default one is `""`. Raises BadRequest."""
        spec = self.vectors.get(name or "")
        if spec is None:
            raise unknown_vector(name or "")
        return spec
