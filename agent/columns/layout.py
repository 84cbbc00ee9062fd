"""The files of one payload index: flags and a value by slot, lists appended, a dictionary of words.

    <k>.head    u64: see Head. What readers may look at, written after it is there
    <k>.flags   one byte a slot, see Flag
    <k>.values  one value a slot, where the path leads to just one
    <k>.owners  i64: slot + 1 of an element of a list; 0 where it is not used any more
    <k>.items   the element
    <k>.words   dictionary of keywords and tokens; append only

Derived from the payloads: in step with them after a killed process, made anew after a lost machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = 1
HEAD_BYTES = 4096


class Head(IntEnum):
    """Positions of the numbers in the head."""

    FORMAT = 0
    ITEMS_LOW = 1
    ITEMS_HIGH = 2
    WORDS_BYTES = 3
    FOREIGN = 4
    """How often a value was met that the column cannot hold; 0: no slot is in doubt."""


class Flag(IntFlag):
    ONE = 1  # `values` holds the only value
    MANY = 2  # all values are items
    FOREIGN = 4  # there are values that the column cannot hold: look at the payload
    NULL = 8  # is_null holds
    EMPTY = 16  # is_empty holds: no key, null, or []
    ODD = 32  # the number of values is not the length of the list
    TEXTS = 64  # text: several strings, so that tokens may come from different ones
    BUSY = 128  # being edited in place, if the page says that an edit is under way: look at the payload


@dataclass(frozen=True, slots=True)
class Layout:
    """How a type is stored: `width` numbers of `dtype` a value; `scalar` is false if all values are items."""

    dtype: npt.DTypeLike
    width: int = 1
    scalar: bool = True
    words: bool = False

    @property
    def value_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * self.width

    def shaped(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return flat if self.width == 1 else flat.reshape(-1, self.width)


LAYOUTS = {
    "keyword": Layout(np.uint32, words=True),
    "integer": Layout(np.int64),
    "float": Layout(np.float64),
    "datetime": Layout(np.int64),
    "bool": Layout(np.uint8),
    "uuid": Layout(np.uint64, width=2),
    "geo": Layout(np.float64, width=2),
    "text": Layout(np.uint32, scalar=False, words=True),
}


def file_of(folder: Path, k: int, part: str) -> Path:
    return folder / f"{k}.{part}"
