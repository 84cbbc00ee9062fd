"""The OpenAPI 3.1 document of the REST API, made from the types that requests are read into."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from core.api import collections
from core.api.calls import CALLS, Call
from core.api.config import VectorParams
from core.api.indexes import INDEX_OPTIONS, INDEX_TYPES
from core.api.points import PointBody, SetPayload
from core.version import QDRANT_VERSION

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_STRING: Json = {"type": "string"}
_UPLOAD: Json = {"type": "object", "properties": {"snapshot": {"type": "string", "format": "binary"}}}

PARAMETERS: dict[str, Json] = {
    "wait": {"type": "boolean", "default": False},
    "ordering": {"enum": ["weak", "medium", "strong"]},
    "timeout": {"type": "integer", "minimum": 1, "maximum": 3600},
    "consistency": {"anyOf": [{"enum": ["majority", "quorum", "all"]}, {"type": "integer", "minimum": 1}]},
    "priority": {"enum": ["no_sync", "snapshot", "replica"]},
    "checksum": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "force": {"type": "boolean", "default": False},
}
_PATH_PARAMETERS: dict[str, Json] = {
    "collection_name": {"type": "string", "pattern": '^[^<>:"/\\\\|?*\\x00-\\x1f\\x7f.]{1,255}$'},
    "vector_name": {"type": "string", "minLength": 1, "maxLength": 255},
    "field_name": {"type": "string", "minLength": 1},
    "snapshot_name": {"type": "string", "minLength": 1},
    "id": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "uuid"}]},
    "peer_id": {"type": "integer", "minimum": 0},
    "shard_id": {"type": "integer", "minimum": 0},
}
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
# fmt: on
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


def document() -> Json:
    """The document as JSON values. It lists what the API takes; what it refuses is left out."""
    kinds = [kind for call in CALLS for kind in (call.body, call.answer) if kind is not None]
    extra = [collections.VectorBody, VectorParams, *INDEX_OPTIONS.values()]
    schemas, components = msgspec.json.schema_components([*kinds, *extra], ref_template=_REF)
    schema_of = dict(zip(map(repr, [*kinds, *extra]), schemas, strict=True))
    _refine(components)
    paths: Json = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal",
            "version": QDRANT_VERSION,
            "description": "Vector search that speaks Qdrant's REST API. Unknown fields are ignored.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"api-key": []}, {"bearer": []}, {}],
    }


_ERROR: Json = {
    "type": "object",
    "properties": {
        "status": {"type": "object", "properties": {"error": _STRING}, "required": ["error"]},
        "time": {"type": "number"},
        "result": {},
    },
    "required": ["status", "time"],
}


def _operation(call: Call, schema_of: Json) -> Json:
    names = re.findall(r"{(\w+)}", call.path)
    operation: Json = {
        "summary": call.summary,
        "tags": [call.tag],
        "operationId": _operation_id(call),
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": _PATH_PARAMETERS[n]} for n in names),
            *({"name": n, "in": "query", "schema": PARAMETERS[n]} for n in call.query),
        ],
        "responses": _responses(call, schema_of),
    }
    if call.body is not None:
        content = {"application/json": {"schema": schema_of[repr(call.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    if call.upload:
        content = {"multipart/form-data": {"schema": _UPLOAD}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _operation_id(call: Call) -> str:
    parts = [part for part in re.split(r"[/{}.]", call.path) if part]
    return "_".join([call.method.lower(), *parts]) if parts else call.method.lower()


def _responses(call: Call, schema_of: Json) -> Json:
    result = schema_of[repr(call.answer)] if call.answer is not None else {"type": "object"}
    if call.media is None:
        content = {"application/json": {"schema": _envelope(result)}}
    elif call.media == "application/json":
        content = {call.media: {"schema": result}}
    else:
        content = {call.media: {"schema": {}}}
    responses: Json = {"200": {"description": "done", "content": content}}
    if call.tag == "snapshots" and "wait" in call.query:
        responses["202"] = {"description": "accepted: wait was false", "content": content}
    failed = {
        "application/json": {"schema": {"$ref": _REF.format(name="Error")}},
        "text/plain": {"schema": {}},
    }
    responses["default"] = {"description": "what went wrong", "content": failed}
    return responses


def _envelope(result: Json) -> Json:
    return {
        "type": "object",
        "properties": {"result": result, "status": {"const": "ok"}, "time": {"type": "number"}},
        "required": ["result", "status", "time"],
    }


# -- from types to what is really asked for ---------------------------------------------------------------


def _refine(components: Json) -> None:
    for title, component in components.items():
        properties: Json = component.get("properties", {})
        required = component.get("required", ())
        for name in [name for name in properties if name in _REFUSED and name not in required]:
            del properties[name]
        for name, schema in properties.items():
            _bound(schema, _bounds_of(name))
            if name in _IDS and title != "Group":  # a group's id is a payload's value
                _as_id(schema)
    _by_hand(components)


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


def _by_hand(components: Json) -> None:
    """What is read in two steps, and so has no type of its own."""
    vector = {"$ref": _REF.format(name="VectorBody")}
    components["CreateCollection"]["properties"]["vectors"] = {
        "anyOf": [vector, {"type": "object", "additionalProperties": vector}, {"type": "null"}]
    }
    shown = {"$ref": _REF.format(name="VectorParams")}
    components["ParamsAnswer"]["properties"]["vectors"] = {
        "anyOf": [shown, {"type": "object", "additionalProperties": shown}]
    }
    payload: Json = {"type": "object"}
    components[SetPayload.__name__]["properties"]["payload"] = payload
    components[PointBody.__name__]["properties"]["payload"] = _nullable(payload)
    batch = components["BatchBody"]["properties"]["payloads"]
    batch["anyOf"] = [{"type": "array", "items": _nullable(payload)}, {"type": "null"}]
    schemas = [{"enum": list(INDEX_TYPES)}, *_indexes()]
    components["CreateIndex"]["properties"]["field_schema"] = {"anyOf": schemas}
    components["Expression"] = _expression()
    formula = {"anyOf": [{"$ref": _REF.format(name="Expression")}, {"type": "null"}]}
    components["QueryObject"]["properties"]["formula"] = formula


_TYPES: Json = {"enum": list(INDEX_TYPES)}


def _indexes() -> list[Json]:
    """A payload index's options, with the type that they belong to."""
    return [
        {
            "allOf": [{"$ref": _REF.format(name=options.__name__)}],
            "properties": {"type": {"const": kind}},
            "required": ["type"],
        }
        for kind, options in INDEX_OPTIONS.items()
    ]


def _expression() -> Json:
    """Formulas are read by core/api/formulas.py, step by step."""
    one = {"$ref": _REF.format(name="Expression")}
    several = {"type": "array", "items": one}
    point = {"$ref": _REF.format(name="GeoPointBody")}
    decay = _object({"x": one, "target": one, "scale": _POSITIVE, "midpoint": _INNER}, ("x",))
    operations = {
        **dict.fromkeys(("neg", "abs", "sqrt", "exp", "log10", "ln"), one),
        **dict.fromkeys(("sum", "mult"), several),
        **dict.fromkeys(("lin_decay", "exp_decay", "gauss_decay"), decay),
        "div": _object({"left": one, "right": one, "by_zero_default": {"type": "number"}}, ("left", "right")),
        "pow": _object({"base": one, "exponent": one}, ("base", "exponent")),
        "geo_distance": _object({"origin": point, "to": _STRING}, ("origin", "to")),
        "datetime": {"type": "string", "format": "date-time"},
        "datetime_key": _STRING,
    }
    objects = [_object({name: schema}, (name,)) for name, schema in operations.items()]
    condition = {"$ref": _REF.format(name="ConditionBody")}
    return {"anyOf": [{"type": "number"}, _STRING, condition, *objects]}


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
