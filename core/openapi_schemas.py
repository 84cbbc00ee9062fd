"""JSON schemas of the requests, refined: bounds, alternatives, and the parts that are read in two steps."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from core.api.indexes import INDEX_OPTIONS, INDEX_TYPES

Json = dict[str, Any]

REF = "#/components/schemas/{name}"
# What the checks ask of a number, and a type can't say.
# fmt: off
_FROM_ONE = frozenset((
    "limit", "top", "group_size", "shard_number", "replication_factor", "write_consistency_factor", "total",
    "min_count", "k", "max_segment_size", "wal_capacity_mb", "read_rate_limit", "write_rate_limit",
    "max_query_limit", "max_timeout", "max_points_count", "max_token_len",
))
_FROM_ZERO = frozenset((
    "offset", "index", "m", "max_indexing_threads", "payload_m", "shard_id", "peer_id", "from_peer_id",
    "to_peer_id", "memmap_threshold", "indexing_threshold", "flush_interval_sec", "default_segment_number",
    "read_fan_out_factor", "read_fan_out_delay_ms", "wal_segments_ahead", "wal_retain_closed", "hnsw_ef",
    "max_optimization_threads", "min_token_len", "b", "search_max_hnsw_ef", "upsert_max_batchsize",
    "search_max_batchsize", "filter_max_conditions", "condition_max_size", "max_payload_index_count",
    "max_collection_vector_size_bytes", "max_collection_payload_size_bytes", "max_vectors", "max_length",
))
_IDS = frozenset((
    "id", "ids", "points", "has_id", "offset", "next_page_offset", "query", "nearest", "positive", "negative",
    "target", "example", "a", "b",
))
_REFUSED = frozenset((
    "shard_key", "multivector_config", "init_from", "sparse_vectors", "sparse", "idf", "indices", "values",
    "image", "object", "model", "create_sharding_key", "drop_sharding_key", "replicate_points",
))
_PATHS = frozenset((
    "key", "keys", "group_by", "field_name", "include", "exclude", "order_by", "with_payload",
))
# fmt: on
_STEP = r'([A-Za-z0-9_-]+|"[^"]*")(\[[0-9]{0,9}\])*'
PATH_PATTERN = rf"^{_STEP}(\.{_STEP})*$"
_BETWEEN: dict[str, tuple[float, float]] = {
    "size": (1, 65_536),
    "sample": (2, 10_000),
    "ef_construct": (4, 10_000),
    "full_scan_threshold": (10, 1 << 40),
    "vacuum_min_vector_number": (100, 1 << 40),
    "deleted_threshold": (0, 1),
    "quantile": (0.5, 1),
    "diversity": (0, 1),
    "candidates_limit": (0, 16_384),
    "max_resident_memory_percent": (1, 100),
    "lat": (-90, 90),
    "lon": (-180, 180),
}


# Component → of which fields it holds exactly one.
_ONE_OF: dict[str, tuple[str, ...]] = {
    "Upsert": ("points", "batch"),
    "Selector": ("points", "filter"),
    "SetPayload": ("points", "filter"),
    "DeletePayload": ("points", "filter"),
    "DeleteVectors": ("points", "filter"),
    "SelectBody": ("include", "exclude"),
    "CreateVector": ("dense",),
}
_ANY_FIELD = ("OperationBody", "AliasAction", "ClusterOperation", "MatchBody", "Quantization")
_QUERIES = (
    "nearest", "recommend", "discover", "context", "order_by", "fusion", "rrf", "formula", "sample",
    "relevance_feedback",
)  # fmt: skip
_TESTS = (
    "match", "range", "geo_bounding_box", "geo_radius", "geo_polygon", "values_count", "is_empty", "is_null"
)  # fmt: skip
_ABOUT_THE_POINT = ("has_id", "has_vector", "slice", "nested")
_CLAUSES = ("must", "should", "must_not", "min_should")


def refine(components: Json) -> None:
    """Say what the types of core/api can't: bounds, alternatives, and what is read in two steps."""
    for title, component in components.items():
        properties: Json = component.get("properties", {})
        required = component.get("required", ())
        for name in [name for name in properties if name in _REFUSED and name not in required]:
            del properties[name]
        for name, schema in properties.items():
            if title != "SnapshotInfo":  # its size is in bytes
                _bound(schema, _bounds_of(name))
            if name in _PATHS:
                _as_path(schema)
            if name in _IDS and title != "Group":  # a group's id is a payload's value
                _as_id(schema)
    _by_hand(components)
    _alternatives(components)


def _bounds_of(name: str) -> Json:
    if name in _BETWEEN:
        low, high = _BETWEEN[name]
        return {"minimum": low, "maximum": high}
    return {"minimum": 1} if name in _FROM_ONE else {"minimum": 0} if name in _FROM_ZERO else {}


def _bound(schema: Json, bounds: Json) -> None:
    """The bounds go to the numbers in the schema, which may be one of several alternatives."""
    if schema.get("type") in ("integer", "number"):
        schema.update(bounds)
    for alternative in schema.get("anyOf", ()):
        _bound(alternative, bounds)


def _as_id(schema: Json) -> None:
    """Numbers are unsigned, strings are UUIDs."""
    if schema.get("type") == "integer":
        schema["minimum"] = 0
    elif schema.get("type") == "string":
        schema["format"] = "uuid"
    for inner in schema.get("anyOf", ()):
        _as_id(inner)
    if "items" in schema:
        _as_id(schema["items"])


def _as_path(schema: Json) -> None:
    if schema.get("type") == "string":
        schema["pattern"] = PATH_PATTERN
    for inner in schema.get("anyOf", ()):
        _as_path(inner)
    if "items" in schema:
        _as_path(schema["items"])


def _by_hand(components: Json) -> None:
    """What is read in two steps, and so has no type of its own."""
    vector = {"$ref": REF.format(name="VectorBody")}
    components["CreateCollection"]["properties"]["vectors"] = {
        "anyOf": [vector, {"type": "object", "additionalProperties": vector}, {"type": "null"}]
    }
    shown = {"$ref": REF.format(name="VectorParams")}
    components["ParamsAnswer"]["properties"]["vectors"] = {
        "anyOf": [shown, {"type": "object", "additionalProperties": shown}]
    }
    payload: Json = {"type": "object"}
    components["SetPayload"]["properties"]["payload"] = payload
    components["PointBody"]["properties"]["payload"] = _nullable(payload)
    batch = components["BatchBody"]["properties"]["payloads"]
    batch["anyOf"] = [{"type": "array", "items": _nullable(payload)}, {"type": "null"}]
    schemas = [{"enum": list(INDEX_TYPES)}, *_indexes(components)]
    components["CreateIndex"]["properties"]["field_schema"] = {"anyOf": schemas}
    components["Expression"] = _expression()
    formula = {"anyOf": [{"$ref": REF.format(name="Expression")}, {"type": "null"}]}
    components["QueryObject"]["properties"]["formula"] = formula
    del components["QueryObject"]["properties"]["text"]  # inference, refused


_TYPES: Json = {"enum": list(INDEX_TYPES)}


def _indexes(components: Json) -> list[Json]:
    """A payload index's options, with the type that they belong to."""
    return [
        _object({"type": {"const": kind}, **components[options.__name__]["properties"]}, ("type",))
        for kind, options in INDEX_OPTIONS.items()
    ]


def _expression() -> Json:
    """Formulas are read by core/api/formulas.py, step by step."""
    one = {"$ref": REF.format(name="Expression")}
    several = {"type": "array", "items": one}
    point = {"$ref": REF.format(name="GeoPointBody")}
    path: Json = {"type": "string", "pattern": PATH_PATTERN}
    decay = _object({"x": one, "target": one, "scale": _POSITIVE, "midpoint": _INNER}, ("x",))
    operations = {
        **dict.fromkeys(("neg", "abs", "sqrt", "exp", "log10", "ln"), one),
        **dict.fromkeys(("sum", "mult"), several),
        **dict.fromkeys(("lin_decay", "exp_decay", "gauss_decay"), decay),
        "div": _object({"left": one, "right": one, "by_zero_default": {"type": "number"}}, ("left", "right")),
        "pow": _object({"base": one, "exponent": one}, ("base", "exponent")),
        "geo_distance": _object({"origin": point, "to": path}, ("origin", "to")),
        "datetime": {"type": "string", "format": "date-time"},
        "datetime_key": path,
    }
    objects = [_object({name: schema}, (name,)) for name, schema in operations.items()]
    condition = {"$ref": REF.format(name="ConditionBody")}
    return {"anyOf": [{"type": "number"}, path, {"const": "$score"}, condition, *objects]}


_POSITIVE: Json = {"type": "number", "exclusiveMinimum": 0}
_INNER: Json = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}


def _object(properties: Json, required: tuple[str, ...]) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


# -- alternatives -------------------------------------------------------------------------------------------


def _alternatives(components: Json) -> None:
    """ "Exactly one of these fields" as one schema for each, which generators of requests can follow."""
    one_of = {**_ONE_OF, "QueryObject": _QUERIES}
    one_of.update({name: tuple(components[name]["properties"]) for name in _ANY_FIELD})
    for name, fields in one_of.items():
        component = components[name]
        rest = [field for field in component["properties"] if field not in fields]
        _replace(component, [_only(component, (field,), rest) for field in fields])
    condition = components["ConditionBody"]
    _replace(
        condition,
        [
            *(_only(condition, ("key", test), ()) for test in _TESTS),
            *(_only(condition, (field,), ()) for field in _ABOUT_THE_POINT),
            _only(condition, (), _CLAUSES),
        ],
    )
    bounds = components["RangeBody"]["properties"]
    number, moment = {"type": "number"}, {"type": "string", "format": "date-time"}
    alternatives = [_object(dict.fromkeys(bounds, kind), ()) for kind in (number, moment)]
    _replace(components["RangeBody"], alternatives)


def _only(component: Json, needed: tuple[str, ...], rest: Any) -> Json:
    """The component with these fields, not null, and perhaps some of the rest."""
    properties = component["properties"]
    required = [field for field in component.get("required", ()) if field in rest]
    return _object(
        {
            **{field: _not_null(properties[field]) for field in needed},
            **{field: properties[field] for field in rest},
        },
        (*needed, *required),
    )


def _not_null(schema: Json) -> Json:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if not kinds:
        return schema
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _replace(component: Json, alternatives: list[Json]) -> None:
    kept: Json = {name: component[name] for name in ("title", "description") if name in component}
    component.clear()
    component.update(kept, anyOf=alternatives)


def close(components: Json, requests: list[Json]) -> None:
    """Allow no other fields in what requests hold: they are ignored, so nothing is gained by sending them."""
    waiting, seen = [*requests], set[str]()
    while waiting:
        for name in re.findall(r'"#/components/schemas/(\w+)"', msgspec.json.encode(waiting.pop()).decode()):
            if name not in seen:
                seen.add(name)
                waiting.append(components[name])
    for name in seen:
        if "properties" in components[name]:
            components[name]["additionalProperties"] = False
