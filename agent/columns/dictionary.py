"""The dictionary of a column as searches read it: its file, mapped, and where in it a word is, by hash."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.columns import words

_CHUNK_BYTES = 64 << 10
_REST_MIN_BYTES = 32 << 10
_REST_SHARE = 32
"""What is not hashed yet is searched through: up to a 32nd of the dictionary, which takes as long."""


class _Hashed(NamedTuple):
    """The words below `end`: hashes, ascending, and the code of each."""

    end: int
    hashes: npt.NDArray[np.int64]
    codes: npt.NDArray[np.uint32]


_NOTHING = _Hashed(len(words.EMPTY), np.empty(0, np.int64), np.empty(0, np.uint32))


class Dictionary:
    """Takes 12 bytes of memory a word. Any thread may ask."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data: words.Data = words.EMPTY
        self._hashed = _NOTHING
        self._hashing = threading.Lock()

    def data(self, size: int) -> words.Data:
        """At least the first `size` bytes."""
        if size > len(self._data):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._data = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
            finally:
                os.close(fd)
        return self._data

    def code_of(self, word: str, size: int) -> int:
        """The code of the word in the first `size` bytes, or 0."""
        data, hashed = self.data(size), self._hashed_to(size)
        raw = words.encoded(word) + words.SEPARATOR
        key = hash(raw)
        at = int(np.searchsorted(hashed.hashes, key))
        while at < len(hashed.hashes) and hashed.hashes[at] == key:
            code = int(hashed.codes[at])
            if data[code + 1 : code + 1 + len(raw)] == raw:
                return code
            at += 1
        return max(0, data.find(words.SEPARATOR + raw, hashed.end - 1, size))

    def _hashed_to(self, size: int) -> _Hashed:
        hashed = self._hashed
        rest = size - hashed.end
        if rest <= max(_REST_MIN_BYTES, hashed.end // _REST_SHARE) or not self._hashing.acquire(
            blocking=False
        ):
            return hashed
        try:
            self._hashed = hashed = _with_words(hashed, self.data(size), size)
            return hashed
        finally:
            self._hashing.release()


def _with_words(hashed: _Hashed, data: words.Data, size: int) -> _Hashed:
    """With all words up to `size`, chunk by chunk: other threads get their turns."""
    hashes, codes, end = [hashed.hashes], [hashed.codes], hashed.end
    while end < size:
        stop = data.rfind(words.SEPARATOR, end, min(size, end + _CHUNK_BYTES)) + 1
        if stop == 0:  # one word is larger than a chunk
            stop = data.find(words.SEPARATOR, end, size) + 1
        raw = data[end:stop].split(words.SEPARATOR)[:-1]
        lengths = np.fromiter(map(len, raw), np.int64, len(raw)) + 1
        codes.append((end - 1 + np.cumsum(lengths) - lengths).astype(np.uint32))
        hashes.append(np.fromiter((hash(word + words.SEPARATOR) for word in raw), np.int64, len(raw)))
        end = stop
    joined = np.concatenate(hashes)
    order = np.argsort(joined, kind="stable")
    return _Hashed(end, joined[order], np.concatenate(codes)[order])
