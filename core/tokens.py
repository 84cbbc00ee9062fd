"""Text to tokens, as a text index's options say; texts and queries go through the same tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Tokenizer = Literal["word", "whitespace", "prefix", "multilingual"]

_WORD = re.compile(r"[^\W_]+")
_AS_IT_IS = bytes(code if chr(code).isalnum() and code < 128 else 32 for code in range(256))
_LOWERED = _AS_IT_IS.lower()
"""ASCII to letters and digits, and spaces for all else."""
_PREFIX_MAX = 64  # an index of prefixes without an upper bound keeps at most this many of a word


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a text index cuts text. Lengths are in characters; 0 tokens of a length out of bounds are kept."""

    tokenizer: Tokenizer = "word"
    min_token_len: int | None = None
    max_token_len: int | None = None
    lowercase: bool = True
    ascii_folding: bool = False
    stopwords: frozenset[str] = frozenset()


DEFAULT_TEXT = TextOptions()


def tokens_of(text: str, options: TextOptions = DEFAULT_TEXT) -> list[str]:
    """A stored text's tokens, in order. With the prefix tokenizer: every prefix of every word."""
    if text.isascii() and _keeps_all(options):  # most texts: the same in a sixth of the time
        if options.tokenizer == "whitespace":
            return (text.lower() if options.lowercase else text).split()
        return text.encode().translate(_LOWERED if options.lowercase else _AS_IT_IS).decode().split()
    return list(_tokens(text, options, of_query=False))


def query_tokens_of(text: str, options: TextOptions = DEFAULT_TEXT) -> list[str]:
    """A query's tokens. With the prefix tokenizer: each word once, cut to the longest prefix kept."""
    return list(_tokens(text, options, of_query=True))


def _keeps_all(options: TextOptions) -> bool:
    """Every word of a text is a token as it stands."""
    return (
        options.tokenizer != "prefix"
        and options.min_token_len is None
        and options.max_token_len is None
        and not options.stopwords
    )


def _tokens(text: str, options: TextOptions, *, of_query: bool) -> Iterator[str]:
    shortest, longest = options.min_token_len or 0, options.max_token_len
    for word in _words(text, options):
        if options.tokenizer == "prefix":
            top = min(len(word), longest or _PREFIX_MAX)
            if of_query:
                if top >= shortest:
                    yield word[:top]
            else:
                yield from (word[:n] for n in range(max(1, shortest), top + 1))
        elif shortest <= len(word) and (longest is None or len(word) <= longest):
            yield word


def _words(text: str, options: TextOptions) -> Iterator[str]:
    pieces = text.split() if options.tokenizer == "whitespace" else _WORD.findall(text)
    for piece in pieces:
        word = piece.lower() if options.lowercase else piece
        if options.ascii_folding:
            word = _folded(word)
        if word and word not in options.stopwords:
            yield word


def _folded(word: str) -> str:
    """Letters without their accents: `é` is `e`."""
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))


# -- the three tests of a text ------------------------------------------------------------------------------

TextTest = Callable[[str], bool]


def all_of(text: str, options: TextOptions) -> TextTest:
    """All tokens of the query occur. A query without tokens matches nothing."""
    wanted = frozenset(query_tokens_of(text, options))
    return lambda value: bool(wanted) and wanted.issubset(tokens_of(value, options))


def any_of(text: str, options: TextOptions) -> TextTest:
    """One token of the query occurs."""
    wanted = frozenset(query_tokens_of(text, options))
    return lambda value: not wanted.isdisjoint(tokens_of(value, options))


def phrase_of(text: str, options: TextOptions) -> TextTest:
    """The query's tokens occur one after the other."""
    wanted = query_tokens_of(text, options)
    length = len(wanted)

    def test(value: str) -> bool:
        found = query_tokens_of(value, options)
        return bool(wanted) and any(found[i : i + length] == wanted for i in range(len(found) - length + 1))

    return test


def contains(text: str) -> TextTest:
    """Without a text index: the text as it stands, case and all."""
    return lambda value: text in value


def contains_any_word(text: str) -> TextTest:
    words = tuple(text.split())
    return lambda value: any(word in value for word in words)


def starts_with(text: str) -> TextTest:
    return lambda value: value.startswith(text)
