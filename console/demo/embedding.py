"""Texts to vectors without a model: TF-IDF, then a truncated SVD (latent semantic analysis), in numpy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

_TERMS_MAX = 4096  # the most frequent ones: a dense matrix of some thousand texts then takes 60 MB
_IN_TEXTS_MIN, _IN_TEXTS_SHARE_MAX = 2, 0.3
_OVERSAMPLE, _POWER_STEPS, _SEED = 16, 4, 20_260_101
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]{2,}(?![a-z])")
_STOP_WORDS = """
a an and are as at be been but by can do does for from has have how i if in into is it its not of on or so
such than that the their them then there these they this to was we what when where which will with you your
"""
_STOP = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class Embedder:
    """Maps any text to a unit vector; texts that mean alike lie close by cosine."""

    terms: dict[str, int]
    idf: F32
    axes: F32
    """(terms, dimensions): the directions in which the texts differ most."""

    @property
    def dimensions(self) -> int:
        return int(self.axes.shape[1])

    def embed(self, texts: Sequence[str]) -> F32:
        """(n, dimensions), rows of length 1; a text of none but unknown words becomes zeros."""
        return _unit(_weights(texts, self.terms, self.idf) @ self.axes)


def fit(texts: Sequence[str], *, dimensions: int) -> Embedder:
    """Learns words and directions from the texts; the same texts always give the same embedder."""
    in_texts = Counter(term for text in texts for term in set(_words(text)))
    usual = [
        (count, term)
        for term, count in in_texts.items()
        if _IN_TEXTS_MIN <= count <= _IN_TEXTS_SHARE_MAX * len(texts)
    ]
    chosen = sorted(usual, key=lambda it: (-it[0], it[1]))[:_TERMS_MAX]
    terms = {term: column for column, (_, term) in enumerate(chosen)}
    idf = np.log((1 + len(texts)) / np.array([1 + count for count, _ in chosen], dtype=np.float32))
    axes = _right_singular_vectors(_weights(texts, terms, idf), dimensions)
    return Embedder(terms, idf, axes)


def _words(text: str) -> list[str]:
    """Lower-case words, compound names taken apart (`readLine`, `read_line` → read, line), plurals cut."""
    words = (word.lower() for word in _WORD.findall(text))
    return [_stem(word) for word in words if len(word) > 1 and word not in _STOP]


def _stem(word: str) -> str:
    """Enough that `compressing`, `compressed` and `compresses` meet; it need not be a word."""
    for ending in ("ings", "ing", "ies", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _weights(texts: Sequence[str], terms: dict[str, int], idf: F32) -> F32:
    """(texts, terms): (1 + log count) · idf, rows of length 1."""
    weights = np.zeros((len(texts), len(terms)), dtype=np.float32)
    for row, text in enumerate(texts):
        for term, count in Counter(_words(text)).items():
            column = terms.get(term)
            if column is not None:
                weights[row, column] = 1 + np.log(count)
    return _unit(weights * idf)


def _right_singular_vectors(matrix: F32, count: int) -> F32:
    """The first ones, by subspace iteration from a random start (Halko, Martinsson, Tropp 2011, §4.5)."""
    count = min(count, *matrix.shape)
    random = np.random.default_rng(_SEED)
    width = min(count + _OVERSAMPLE, *matrix.shape)
    basis = matrix @ random.standard_normal((matrix.shape[1], width), dtype=np.float32)
    for _ in range(_POWER_STEPS):
        basis, _r = np.linalg.qr(basis)
        basis, _r = np.linalg.qr(matrix.T @ basis)
        basis = matrix @ basis
    basis, _r = np.linalg.qr(basis)
    _u, _s, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return np.ascontiguousarray(right[:count].T)


def _unit(rows: F32) -> F32:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: F32 = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
