"""On which line a key stands, in every way in which TOML lets one write it."""

from __future__ import annotations

import tomllib

import pytest

from core.toml_lines import Path, key_lines, line_of

TEXT = '''\
# [not] = a header
top = 1  # "

[cluster]
name = "a # no comment"
"quoted key" = 2
'literal.key' = 3
a . b = 4

multi = """
[fake]
key = 1
"quotes" inside \\""" still
"""
literal = \'\'\'
[[fake]]
\'\'\'
array = [ # [open
  "x]",
  [1, 2],
  { b = 1 },
]
inline = { c = 1, d = { e = 2 } }
last = 1
[[nodes]]
id = "n1"
[nodes.more]
x = 1
[[nodes]]
id = "n2"
[[nodes.more]]
y = 1
[[nodes.more]]
y = 2
[a.b.c]
z = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("cluster",), 4),
        (("cluster", "name"), 5),
        (("cluster", "quoted key"), 6),
        (("cluster", "literal.key"), 7),
        (("cluster", "a"), 8),
        (("cluster", "a", "b"), 8),
        (("cluster", "multi"), 10),
        (("cluster", "literal"), 15),
        (("cluster", "array"), 18),
        (("cluster", "array", 1), 18),
        (("cluster", "inline", "d", "e"), 23),
        (("cluster", "last"), 24),
        (("nodes",), 25),
        (("nodes", 0, "id"), 26),
        (("nodes", 0, "more", "x"), 28),
        (("nodes", 1), 29),
        (("nodes", 1, "id"), 30),
        (("nodes", 1, "more", 1, "y"), 34),
        (("a", "b", "c", "z"), 36),
        (("nowhere",), None),
        (("cluster", "nothing"), 4),
    ],
)
def test_a_key_is_found_on_its_line(path: Path, line: int | None) -> None:
    tomllib.loads(TEXT)
    assert line_of(key_lines(TEXT), path) == line


def test_windows_line_ends_count_once() -> None:
    assert line_of(key_lines("a = 1\r\n\r\n[b]\r\nc = 1\r\n"), ("b", "c")) == 4
