"""Lists and words of a column over time: edits do not make it grow, and every word is found again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.columns.dictionary import Dictionary
from agent.columns.reader import ColumnReader
from agent.columns.words import EMPTY, all_words, appended, encoded
from agent.columns.writer import ColumnWriter
from agent.store.files import Files
from agent.store.manifest import ColumnParams
from core.filters import FieldCondition, MatchText, MatchValue
from core.payload import parse_path

FIRST, ROWS = 1_000, 400


class Lists:
    """A column of lists, or of texts, and what it should hold by slot."""

    def __init__(self, folder: Path, kind: str) -> None:
        (folder / "columns").mkdir()
        params = ColumnParams("f", kind)
        self.kind = kind
        self.writer = ColumnWriter(folder, 1, params, Files())
        self.reader = ColumnReader(folder / "columns", 1, params)
        self.rng = random.Random(kind)
        self.held: dict[int, set[str]] = {}

    def put(self, low: int, high: int) -> None:
        words = [self.random_words() for _ in range(low, high)]
        self.held.update(zip(range(low, high), words, strict=True))
        self.writer.put(np.arange(low, high), [self.payload(w) for w in words])

    def edit(self, count: int) -> None:
        """As the store does it: prepared, marked, edited."""
        slots = np.array(sorted(self.rng.sample(sorted(self.held), count)))
        words = [self.random_words() for _ in slots]
        self.held.update(zip(slots.tolist(), words, strict=True))
        prepared = self.writer.prepare(slots, [self.payload(w) for w in words])
        self.writer.mark(slots)
        self.writer.edit(prepared)
        self.writer.unmark(slots)

    def random_words(self) -> set[str]:
        return {f"w{self.rng.randrange(30)}" for _ in range(self.rng.randrange(40))}

    def payload(self, words: set[str]) -> dict[str, Any]:
        return {"f": " ".join(words) if self.kind == "text" else sorted(words)}

    def check(self) -> None:
        high = max(self.held) + 1
        for word in ("w0", "w7", "w29", "w30"):
            condition: FieldCondition = MatchValue(parse_path("f"), word)
            if self.kind == "text":
                condition = MatchText(parse_path("f"), word)
            yes, maybe = self.reader.mask(condition, 0, high)
            assert np.flatnonzero(yes).tolist() == sorted(
                s for s, words in self.held.items() if word in words
            )
            assert (yes == maybe).all()

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.writer.paths())


@pytest.mark.parametrize("kind", ["keyword", "text"])
def test_edits_of_lists_are_found_and_do_not_pile_up(tmp_path: Path, kind: str) -> None:
    lists = Lists(tmp_path, kind)
    lists.put(FIRST, FIRST + ROWS)
    lists.check()
    sizes = []
    for turn in range(120):
        lists.edit(lists.rng.choice((1, 7, 60)))
        if turn % 10 == 0:
            low = max(lists.held) + 1
            lists.put(low, low + 3)  # new slots, after what was moved
            lists.check()
            sizes.append(lists.bytes())
    for _ in range(200):
        lists.edit(60)
    lists.check()
    assert lists.bytes() < 2 * max(sizes), "each edit adds to the files for ever"


def test_a_text_without_tokens_can_be_edited(tmp_path: Path) -> None:
    lists = Lists(tmp_path, "text")
    lists.writer.put(np.arange(2), [{"f": ""}, {"f": ", "}])
    lists.held = {0: set(), 1: set()}
    lists.edit(2)
    lists.check()


def test_a_reader_sees_all_items_while_they_are_moved(tmp_path: Path) -> None:
    lists = Lists(tmp_path, "keyword")
    lists.put(0, ROWS)
    for _ in range(300):
        before = lists.reader._items_range()
        owners, items = (part.copy() for part in lists.reader._items_now())
        lists.edit(60)
        if lists.reader._items_range()[0] != before[0]:
            low, high = before
            assert (lists.reader._owners.array(np.int64, high)[low:] == owners).sum() > len(owners) // 4
            assert (lists.reader._items.array(np.uint32, high)[low:] == items).all()
            return
    raise AssertionError("the items were never moved")


def test_every_word_of_a_growing_dictionary_is_found(tmp_path: Path) -> None:
    path, rng = tmp_path / "words", random.Random(1)
    data = bytearray(EMPTY)
    dictionary = Dictionary(path)
    known: dict[str, int] = {}
    for size in (3, 200, 9_000, 1, 30_000):
        new = {f"{rng.randrange(10**9)}ä" * rng.choice((1, 1, 1, 3)) for _ in range(size)} - known.keys()
        new |= {"x" * 200_000} if size == 200 else set()
        data += appended([encoded(word) for word in sorted(new)])
        path.write_bytes(data)
        known = {raw.decode(): code for raw, code in all_words(bytes(data))}
        for word in rng.sample(sorted(known), min(500, len(known))):
            assert dictionary.code_of(word, len(data)) == known[word]
            assert dictionary.code_of(word + "?", len(data)) == 0
    assert dictionary.code_of("", len(data)) == 0
