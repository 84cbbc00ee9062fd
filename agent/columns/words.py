"""A dictionary of words: one file, append only, in which a word's place is its code.

Words are separated by the byte FF, which UTF-8 never has, so a search for FF word FF finds the
word and nothing else, and a reader needs no table in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator

Data = bytes | mmap.mmap
SEPARATOR = b"\xff"
EMPTY = b"\x00" + SEPARATOR
"""A dictionary without words. Codes are places of separators; none is at 0, so that code 0 is no word."""


def encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")


def appended(words: Iterable[bytes]) -> bytes:
    """What new words add to a dictionary; the separator before them is there already."""
    return b"".join([word + SEPARATOR for word in words])


def code_of(data: Data, word: str) -> int:
    """The code of the word, or 0."""
    return max(0, data.find(SEPARATOR + encoded(word) + SEPARATOR))


def codes_starting(data: Data, prefix: str, size: int) -> list[int]:
    """Codes of all words of a dictionary of `size` bytes that begin so."""
    wanted, last = SEPARATOR + encoded(prefix), size - 1
    found: list[int] = []
    at = data.find(wanted)
    while 0 <= at < last:
        found.append(at)
        at = data.find(wanted, at + 1)
    return found


def codes_containing(data: Data, part: str, size: int) -> list[int]:
    """Codes of all words in which the text occurs."""
    wanted = encoded(part)
    if not wanted:
        return codes_starting(data, "", size)
    found: list[int] = []
    at = data.find(wanted, 1, size)
    while at >= 0:
        found.append(data.rfind(SEPARATOR, 0, at))
        at = data.find(wanted, data.find(SEPARATOR, at), size)
    return found


def all_words(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Every word with its code."""
    at = 1
    for word in data[2:].split(SEPARATOR)[:-1]:
        yield word, at
        at += len(word) + 1
