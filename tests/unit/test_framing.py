"""Whole plain requests are found in the bytes of a connection; whatever could be read in two ways is not."""

from __future__ import annotations

import pytest

from agent.front.framing import Framing, parse_head

HEAD = b"POST /collections/c/points/query HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
WHOLE = HEAD + b'{"a"}'


def fed(*pieces: bytes) -> tuple[list[bytes], list[bytes]]:
    """What was passed on, and the bodies of the plain requests."""
    framing = Framing()
    passed, bodies = [], []
    for piece in pieces:
        data, plain = framing.feed(piece)
        passed += [data] if data else []
        bodies += [plain.body] if plain else []
    return passed, bodies


def test_a_head_says_what_is_asked_and_how_long_the_body_is() -> None:
    head = parse_head(HEAD)
    assert head is not None
    assert (head.method, head.target, head.body_bytes) == ("POST", "/collections/c/points/query", 5)
    assert head.headers == {"host": "h", "content-length": "5"}
    assert head.size_bytes == len(HEAD)


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Content-Length: 6",  # twice
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Connection: close",
        b"Origin: https://example.org",
        b"Name : value",
        b" folded",
        b"Name: a\nOther: b",
        b"Name: a\x00b",
        b"no colon",
    ],
)
def test_what_changes_how_a_request_is_read_is_not_plain(line: bytes) -> None:
    assert parse_head(HEAD[:-2] + line + b"\r\n\r\n") is None


@pytest.mark.parametrize("length", [b"+5", b"5, 5", b"0x5", b"", b"-1", b"1" * 10, "٥".encode()])
def test_a_length_is_digits_only(length: bytes) -> None:
    assert parse_head(b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n") is None


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.0", b"get / HTTP/1.1", b"GET x HTTP/1.1", b"\r\nGET / HTTP/1.1"]
)
def test_other_request_lines_are_not_plain(line: bytes) -> None:
    assert parse_head(line + b"\r\n\r\n") is None


def test_a_request_is_whole_in_one_piece_or_in_several() -> None:
    assert fed(WHOLE, WHOLE) == ([WHOLE, WHOLE], [b'{"a"}', b'{"a"}'])
    assert fed(HEAD, b'{"', b'a"}', WHOLE) == ([WHOLE, WHOLE], [b'{"a"}', b'{"a"}'])


def test_one_without_a_body_is_whole() -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    assert fed(get, WHOLE) == ([get, WHOLE], [b"", b'{"a"}'])


@pytest.mark.parametrize(
    "unclear",
    [
        WHOLE + WHOLE,  # pipelined
        WHOLE + b"GET /",
        HEAD[:20],
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"x" * 5000,
    ],
)
def test_after_bytes_whose_end_is_not_certain_nothing_is_plain(unclear: bytes) -> None:
    assert fed(WHOLE, unclear, WHOLE) == ([WHOLE, unclear, WHOLE], [b'{"a"}'])


def test_a_large_body_is_passed_on_as_it_comes_and_the_next_request_is_plain_again() -> None:
    head = b"PUT /collections/c/points HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"
    rest = b" " * 600_000
    assert fed(head, rest, rest[:400_000], WHOLE) == ([head, rest, rest[:400_000], WHOLE], [b'{"a"}'])
    assert fed(head, rest, rest, WHOLE) == ([head, rest, rest, WHOLE], [])


def test_what_is_held_can_be_let_go_and_the_rest_follows() -> None:
    framing = Framing()
    assert framing.feed(HEAD + b'{"') == (b"", None)
    assert framing.is_holding
    assert framing.release() == HEAD + b'{"'
    assert not framing.is_holding
    assert framing.feed(b'a"}') == (b'a"}', None)
    data, plain = framing.feed(WHOLE)
    assert data == WHOLE
    assert plain is not None
