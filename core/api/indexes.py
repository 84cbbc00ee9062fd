"""Requests about payload indexes and named vectors: what to index, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from core.api.checks import DEFAULT_LIMITS, Limits, at_least, invalid, refuse, show
from core.api.collections import VectorBody, vector_params
from core.api.config import Datatype, Distance, Memory, VectorParams
from core.api.decode import convert
from core.errors import BadRequest, NotSupported
from core.payload import parse_path
from core.tokens import TextOptions, Tokenizer

IndexType = Literal["keyword", "integer", "float", "geo", "text", "bool", "datetime", "uuid"]
INDEX_TYPES: tuple[IndexType, ...] = (
    "keyword",
    "integer",
    "float",
    "geo",
    "text",
    "bool",
    "datetime",
    "uuid",
)


class CreateIndex(Struct, frozen=True):
    field_name: str
    field_schema: str | dict[str, Any] | None = None


class CommonOptions(Struct, frozen=True, omit_defaults=True):
    """Options that every type has. Kept and echoed: columns are mapped files either way."""

    on_disk: bool | None = None
    memory: Memory | None = None
    enable_hnsw: bool | None = None


class KeywordOptions(CommonOptions, frozen=True, omit_defaults=True):
    is_tenant: bool | None = None
    prefix: bool | None = None


class UuidOptions(CommonOptions, frozen=True, omit_defaults=True):
    is_tenant: bool | None = None


class IntegerOptions(CommonOptions, frozen=True, omit_defaults=True):
    lookup: bool | None = None
    range: bool | None = None
    is_principal: bool | None = None


class OrderedOptions(CommonOptions, frozen=True, omit_defaults=True):
    """Float and datetime."""

    is_principal: bool | None = None


class TextIndexOptions(CommonOptions, frozen=True, omit_defaults=True):
    """Stemmers and the stopwords of a language are echoed, not applied; `custom` stopwords are."""

    tokenizer: Tokenizer | None = None
    min_token_len: int | None = None
    max_token_len: int | None = None
    lowercase: bool | None = None
    ascii_folding: bool | None = None
    phrase_matching: bool | None = None
    stopwords: str | Stopwords | None = None
    stemmer: dict[str, Any] | None = None


class Stopwords(Struct, frozen=True, omit_defaults=True):
    languages: list[str] | None = None
    custom: list[str] | None = None


INDEX_OPTIONS: dict[IndexType, type[CommonOptions]] = {
    "keyword": KeywordOptions,
    "integer": IntegerOptions,
    "float": OrderedOptions,
    "geo": CommonOptions,
    "text": TextIndexOptions,
    "bool": CommonOptions,
    "datetime": OrderedOptions,
    "uuid": UuidOptions,
}


@dataclass(frozen=True, slots=True)
class FieldIndex:
    """`field` is a canonical path; `params` are the options as given, with their type, or None."""

    field: str
    type: IndexType
    params: dict[str, Any] | None = None


def parse_index(body: CreateIndex) -> FieldIndex:
    field = str(parse_path(body.field_name))
    schema = body.field_schema
    if schema is None:
        raise BadRequest(f"Wrong input: field_schema: missing, expected one of {', '.join(INDEX_TYPES)}")
    if isinstance(schema, str):
        return FieldIndex(field, _type(schema, "field_schema"))
    kind = _type(schema.get("type"), "field_schema.type")
    options = convert(INDEX_OPTIONS[kind], schema, "field_schema")
    if isinstance(options, TextIndexOptions):
        _check_text(options)
    return FieldIndex(field, kind, {"type": kind, **msgspec.to_builtins(options)})


def _type(given: object, where: str) -> IndexType:
    for kind in INDEX_TYPES:
        if given == kind:
            return kind
    raise BadRequest(f"Wrong input: {where}: {show(given)}, expected one of {', '.join(INDEX_TYPES)}")


def _check_text(options: TextIndexOptions) -> None:
    at_least("field_schema.min_token_len", options.min_token_len, 0)
    at_least("field_schema.max_token_len", options.max_token_len, 1)
    shortest, longest = options.min_token_len or 0, options.max_token_len
    if longest is not None and shortest > longest:
        raise invalid("field_schema", f"min_token_len {shortest} is over max_token_len {longest}")


def text_options(params: Mapping[str, Any] | None) -> TextOptions:
    """How the text index with these params (of a FieldIndex) cuts text."""
    given = msgspec.convert(params or {}, TextIndexOptions)
    lowercase = True if given.lowercase is None else given.lowercase
    custom = given.stopwords.custom or [] if isinstance(given.stopwords, Stopwords) else []
    return TextOptions(
        tokenizer=given.tokenizer or "word",
        min_token_len=given.min_token_len,
        max_token_len=given.max_token_len,
        lowercase=lowercase,
        ascii_folding=bool(given.ascii_folding),
        stopwords=frozenset([word.lower() if lowercase else word for word in custom]),
    )


# -- named vectors ------------------------------------------------------------------------------------------


class DenseBody(Struct, frozen=True):
    size: int
    distance: Distance
    multivector_config: Any = None
    datatype: Datatype | None = None


class CreateVector(Struct, frozen=True):
    dense: DenseBody | None = None
    sparse: Any = None


def parse_vector(name: str, body: CreateVector, limits: Limits = DEFAULT_LIMITS) -> VectorParams:
    """The parameters of a vector that is added to a collection."""
    refuse("sparse", body.sparse, "sparse vectors are")
    if body.dense is None:
        raise BadRequest("Wrong input: expected `dense` with size and distance")
    if not name or len(name) > 255:
        raise invalid("vector_name", "a vector's name has 1 to 255 characters")
    if body.dense.multivector_config is not None:
        raise NotSupported("dense.multivector_config: multivectors are not supported")
    given = VectorBody(body.dense.size, body.dense.distance, datatype=body.dense.datatype)
    return vector_params(given, "dense", limits)
