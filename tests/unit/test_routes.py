"""The table of routes: what is found, with which parameters, and what is not."""

from __future__ import annotations

import pytest

from agent.front.access import Role
from agent.front.routes import MethodNotAllowed, Reply, Request, Route, Router, flag, parse_query
from core.errors import BadRequest, NotFound


async def nothing(request: Request) -> Reply:
    return Reply()


ROUTES = [
    Route("GET", "/", Role.NOBODY, nothing),
    Route("GET", "/collections", Role.READ, nothing),
    Route("PUT", "/collections/*", Role.FULL, nothing),
    Route("POST", "/collections/aliases", Role.FULL, nothing),
    Route("GET", "/collections/*/points/*", Role.READ, nothing),
    Route("POST", "/collections/*/points/query", Role.READ, nothing),
]


@pytest.mark.parametrize(
    ("method", "path", "pattern", "parameters"),
    [
        ("GET", "/", "/", ()),
        ("GET", "/collections/", "/collections", ()),
        ("PUT", "/collections/a%20b", "/collections/*", ("a b",)),
        ("PUT", "/collections/a%2Fb", "/collections/*", ("a/b",)),
        ("PUT", "/collections/%2A", "/collections/*", ("*",)),
        ("POST", "/collections/aliases", "/collections/aliases", ()),
        ("GET", "/collections/c/points/12", "/collections/*/points/*", ("c", "12")),
        ("POST", "/collections/aliases/points/query", "/collections/*/points/query", ("aliases",)),
    ],
)
def test_a_path_finds_its_route(method: str, path: str, pattern: str, parameters: tuple[str, ...]) -> None:
    route, found = Router(ROUTES).find(method, path)
    assert (route.pattern, found) == (pattern, parameters)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/collections/c/points", "/collections/c/points/1/2", "/%2F", "/*"]
)
def test_another_path_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        Router(ROUTES).find("GET", path)


def test_a_wrong_method_names_those_that_are_allowed() -> None:
    with pytest.raises(MethodNotAllowed, match="POST"):
        Router(ROUTES).find("DELETE", "/collections/c/points/query")


def test_two_handlers_for_one_route_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two routes"):
        Router([ROUTES[0], ROUTES[0]])


@pytest.mark.parametrize(
    ("raw", "value"), [("wait=true", True), ("wait=1", True), ("wait=false", False), ("", False)]
)
def test_a_flag_of_the_query_string(raw: str, value: bool) -> None:
    assert flag(parse_query(raw), "wait") is value


def test_a_wrong_flag_names_the_parameter() -> None:
    with pytest.raises(BadRequest, match="wait"):
        flag({"wait": "maybe"}, "wait")
