"""The OpenAPI 3.1 document of the REST API, made from the types that requests are read into."""

from __future__ import annotations

import re

import msgspec

from core.api import collections
from core.api.calls import CALLS, Call
from core.api.config import VectorParams
from core.api.indexes import INDEX_OPTIONS
from core.openapi_schemas import PATH_PATTERN, REF, Json, close, refine
from core.version import QDRANT_VERSION

_STRING: Json = {"type": "string"}
_UPLOAD: Json = {"type": "object", "properties": {"snapshot": {"type": "string", "format": "binary"}}}

PARAMETERS: dict[str, Json] = {
    "wait": {"type": "boolean", "default": False},
    "ordering": {"enum": ["weak", "medium", "strong"]},
    "timeout": {"type": "integer", "minimum": 1, "maximum": 3600},
    "consistency": {
        "anyOf": [
            {"enum": ["majority", "quorum", "all", "eventual", "strong"]},
            {"type": "integer", "minimum": 1},
        ]
    },
    "allow_partial": {"type": "boolean", "default": False},
    "priority": {"enum": ["no_sync", "snapshot", "replica"]},
    "checksum": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "force": {"type": "boolean", "default": False},
}
_PATH_PARAMETERS: dict[str, Json] = {
    "collection_name": {"type": "string", "pattern": '^[^<>:"/\\\\|?*\\x00-\\x1f\\x7f.]{1,255}$'},
    "vector_name": {"type": "string", "minLength": 1, "maxLength": 255},
    "field_name": {"type": "string", "pattern": PATH_PATTERN},
    "snapshot_name": {"type": "string", "minLength": 1},
    "id": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "uuid"}]},
    "peer_id": {"type": "integer", "minimum": 0},
    "shard_id": {"type": "integer", "minimum": 0},
}


def document() -> Json:
    """The document as JSON values. It lists what the API takes; what it refuses is left out."""
    kinds = [kind for call in CALLS for kind in (call.body, call.answer) if kind is not None]
    extra = [collections.VectorBody, VectorParams, *INDEX_OPTIONS.values()]
    schemas, components = msgspec.json.schema_components([*kinds, *extra], ref_template=REF)
    schema_of = dict(zip(map(repr, [*kinds, *extra]), schemas, strict=True))
    refine(components)
    close(components, [schema_of[repr(call.body)] for call in CALLS if call.body is not None])
    paths: Json = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal",
            "version": QDRANT_VERSION,
            "description": "Vector search that speaks Qdrant's REST API. Other fields are ignored.",
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
        accepted = {"application/json": {"schema": _ACCEPTED}}
        responses["202"] = {"description": "accepted: wait was false", "content": accepted}
    failed = {
        "application/json": {"schema": {"$ref": REF.format(name="Error")}},
        "text/plain": {"schema": {}},
    }
    responses["default"] = {"description": "what went wrong", "content": failed}
    return responses


_ACCEPTED: Json = {
    "type": "object",
    "properties": {"status": {"const": "accepted"}, "time": {"type": "number"}},
    "required": ["status", "time"],
}


def _envelope(result: Json) -> Json:
    return {
        "type": "object",
        "properties": {"result": result, "status": {"const": "ok"}, "time": {"type": "number"}},
        "required": ["result", "status", "time"],
    }
