"""Which line of a TOML text each key stands on: what tomllib doesn't keep and a mistake's message needs.

The text has been parsed by tomllib before, so it is known to be well formed; this only has to find its way.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]
"""Of keys, and of positions in arrays of tables: ("nodes", 1, "weight")."""

# In the order in which they must be tried: three quotes before one.
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<string>\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
      | (?P<newline>\n)
      | (?P<open>[\[{]) | (?P<close>[\]}])
      | (?P<other>[^\#"'\n\[\]{}]+)""",
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of each table header and each `key =` that is written on a line of its own.

    Keys inside an inline table are not found; `line_of` then answers with the table's.
    """
    lines: dict[Path, int] = {}
    tables: dict[Path, int] = {}  # how many [[headers]] of each path there were
    table: Path = ()
    for number, statement in _statements(text):
        if statement.startswith("[["):
            name = _dotted(statement[2 : statement.rindex("]]")], tables)
            tables[name] = tables.get(name, 0) + 1
            table = (*name, tables[name] - 1)
            lines.setdefault(name, number)
            lines[table] = number
        elif statement.startswith("["):
            table = _dotted(statement[1 : statement.rindex("]")], tables)
            lines.setdefault(table, number)
        else:
            keys = _dotted(_before_equals(statement), {})
            for depth in range(1, len(keys) + 1):
                lines.setdefault(table + keys[:depth], number)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of the key, or of the nearest table around it that has one."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _statements(text: str) -> list[tuple[int, str]]:
    """Each header or assignment with the line that it begins on, without comments."""
    found: list[tuple[int, str]] = []
    number, begun_at, depth, parts = 1, 1, 0, ""
    for token in _TOKEN.finditer(text.replace("\r\n", "\n") + "\n"):
        kind, piece = token.lastgroup, token.group()
        if kind == "newline" and depth == 0:
            if parts.strip():
                found.append((begun_at, parts.strip()))
            parts = ""
        elif kind != "comment":
            if not parts.strip():
                begun_at = number
            depth += (kind == "open") - (kind == "close")
            parts += piece
        number += piece.count("\n")
    return found


def _before_equals(statement: str) -> str:
    key = ""
    for token in _TOKEN.finditer(statement):
        piece = token.group()
        if token.lastgroup == "other" and "=" in piece:
            return key + piece.split("=", 1)[0]
        key += piece
    return key


def _dotted(key: str, tables: dict[Path, int]) -> Path:
    """`a."b.c".d` as a path; tomllib itself takes it apart. A name of an array means its newest table."""
    nested: object = tomllib.loads(f"{key.strip()} = 0")
    path: Path = ()
    while isinstance(nested, dict):
        (name, nested) = next(iter(nested.items()))
        path = (*path, name)
        if isinstance(nested, dict) and path in tables:
            path = (*path, tables[path] - 1)
    return path
