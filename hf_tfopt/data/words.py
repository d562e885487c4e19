"""Where words begin in a row of token ids, from tables over the vocabulary alone.

No text and no `word_ids` are needed, so this works on what is left when the host has removed the
unused columns. Words are those of the tokenizer's own pre-tokenizer, punctuation apart.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.keyed_bits import Flags, Integers

Classes = NDArray[np.uint8]

# Classes of characters as bits: two tokens belong together if their sets meet.
LETTER, NUMBER, SPACE, OTHER, APOSTROPHE = 1, 2, 4, 8, 16
ANY, CARRIED = 31, 0
CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")  # GPT-2's pattern: what an apostrophe joins

ALLOWED = (
    "words are known for fast tokenizers of the kinds WordPiece, WordLevel, byte-level BPE, BPE "
    "with a prefix or suffix, and SentencePiece (Metaspace); use unit='token' otherwise"
)


@dataclass(frozen=True)
class WordTables:
    """What the vocabulary tells about words, by token id.

    Args:
        starts: 1 where the token begins a word wherever it stands, 2 or 3 where it is no part of
            any: it is a unit by itself.
        first: the classes that the token's first character may continue; None: `starts` is all.
        last: the classes of its last character; 0: those of the token before it.
    """

    starts: Flags | Classes
    first: Classes | None = None
    last: Classes | None = None

    def word_starts(self, ids: Integers, begins: Integers | None = None) -> Flags:
        """Whether a word starts at each of `ids`, each one following the one before it.

        `starts[ids[i]] or starts[ids[i - 1]] > 1 or not first[ids[i]] & last[ids[i - 1]]`

        Args:
            ids: token ids.
            begins: where examples with tokens begin, so that none has to do with the one before.
        """
        kinds = self.starts[ids]
        starts = kinds != 0
        starts[1:] |= kinds[:-1] > 1
        if self.first is None or self.last is None or len(ids) < 2:
            return starts
        last = self.last[ids]
        if (carried := last == CARRIED).any():
            if begins is not None:
                carried[begins] = False
            source = np.where(carried, 0, np.arange(len(ids)))
            last = last[np.maximum.accumulate(source)]
        starts[1:] |= (self.first[ids[1:]] & last[:-1]) == 0
        return starts

    def set_apart(self, special: Flags) -> Self:
        """The tables with these tokens as units by themselves."""
        return replace(self, starts=self.starts.astype(np.uint8) + np.uint8(2) * special)


def word_tables(tokenizer: Any) -> WordTables:
    """The tables of a fast tokenizer: what begins a word.

    WordPiece: a token without the continuation prefix. BPE with a suffix: the token after one with
    it. Byte-level BPE: a token with a leading space, or a change between letters, numbers, spaces
    and the rest (a run of spaces is one word). Metaspace: a token with a leading "▁", or a change
    between letters with numbers and the rest.

    Raises:
        ValueError: a slow tokenizer, or one of another kind.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(f"{name} is a slow tokenizer: {ALLOWED}")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens: list[str] = tokenizer.convert_ids_to_tokens(list(range(num_ids(tokenizer))))
    tokens = [token or "" for token in tokens]  # ids that no token has
    model = parts["model"]
    if model["type"] == "WordLevel":
        return WordTables(np.ones(len(tokens), dtype=np.bool_))
    if prefix := model.get("continuing_subword_prefix"):  # WordPiece has one, BPE may
        return WordTables(np.array([not token.startswith(prefix) for token in tokens]))
    if suffix := model.get("end_of_word_suffix"):
        return _suffixed(tokens, suffix)
    kinds = set(_types(parts["pre_tokenizer"])) | set(_types(parts["decoder"]))
    if "ByteLevel" in kinds:
        return _byte_level(tokens)
    if "Metaspace" in kinds or "▁" in json.dumps(parts["decoder"], ensure_ascii=False):
        return _metaspace(tokens)
    raise ValueError(f"{name} has a {model['type']} model without word marks: {ALLOWED}")


def num_ids(tokenizer: Any) -> int:
    """The size of a table by token id: some vocabularies leave ids out."""
    return max(max(tokenizer.get_vocab().values()) + 1, len(tokenizer))


def _types(part: Any) -> Sequence[str]:
    """Every "type" inside a part of the tokenizer's JSON."""
    if isinstance(part, Mapping):
        return [str(part.get("type")), *(t for value in part.values() for t in _types(value))]
    return [t for value in part for t in _types(value)] if isinstance(part, list) else []


def _character_class(character: str) -> int:
    """The class that GPT-2's pattern gives a character."""
    if character.isspace():
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(character)[0], OTHER)


def _word_character(character: str) -> int:
    """SentencePiece has no pattern: letters, their marks and numbers make up words."""
    return LETTER if unicodedata.category(character)[0] in "LMN" else OTHER


def _suffixed(tokens: Sequence[str], suffix: str) -> WordTables:
    first = np.full(len(tokens), LETTER, dtype=np.uint8)
    last = np.array([OTHER if t.endswith(suffix) else LETTER for t in tokens], dtype=np.uint8)
    return WordTables(np.zeros(len(tokens), dtype=np.bool_), first, last)


def _metaspace(tokens: Sequence[str]) -> WordTables:
    texts = [token.removeprefix("▁") for token in tokens]
    return WordTables(
        np.array([token.startswith("▁") for token in tokens]),
        _table(texts, lambda text: _word_character(text[0])),
        _table(texts, lambda text: _word_character(text[-1])),
    )


def _table(texts: Sequence[Any], class_of: Callable[[Any], int]) -> Classes:
    return np.array([class_of(text) if text else ANY for text in texts], dtype=np.uint8)


def _byte_level(tokens: Sequence[str]) -> WordTables:
    raw = [_to_bytes(token) for token in tokens]
    texts = [data.removeprefix(b" ") for data in raw]
    last = _table(texts, _last_class)
    last[[i for i, data in enumerate(raw) if data == b"'"]] |= APOSTROPHE
    return WordTables(
        np.array([data.startswith(b" ") for data in raw]), _table(texts, _first_class), last
    )


def _first_class(text: bytes) -> int:
    if text[0] & 0xC0 == 0x80:  # inside a character that an earlier token began
        return ANY
    first = _leading_class(text)
    return first | APOSTROPHE if text.decode(errors="replace") in CONTRACTIONS else first


def _last_class(text: bytes) -> int:
    begin = len(text) - 1
    while begin and text[begin] & 0xC0 == 0x80:
        begin -= 1
    if text[begin] & 0xC0 == 0x80:
        return CARRIED
    return _leading_class(text[begin:])


def _leading_class(text: bytes) -> int:
    """The class of the first character; if its end is in a later token, of most it may become."""
    width = 1 if text[0] < 0x80 else 2 if text[0] < 0xE0 else 3 if text[0] < 0xF0 else 4
    if len(text) >= width:
        return _character_class(text[:width].decode(errors="replace"))
    return _likeliest_class(text, width)


@lru_cache(maxsize=4096)
def _likeliest_class(prefix: bytes, width: int) -> int:
    missing = width - len(prefix)
    low, high = (_code_point(prefix + bytes([fill]) * missing) for fill in (0x80, 0xBF))
    step = max((high - low) // 512, 1)
    characters = [chr(c) for c in range(low, min(high, 0x10FFFF) + 1, step)]
    assigned = [c for c in characters if unicodedata.category(c) not in ("Cn", "Cs")]
    classes = [_character_class(c) for c in assigned] or [OTHER]
    if 3 * classes.count(LETTER) >= len(classes):  # letters are written more often than symbols
        return LETTER
    return max(classes, key=classes.count)


def _code_point(encoded: bytes) -> int:
    value = encoded[0] & (0xFF >> (len(encoded) + 1))
    for byte in encoded[1:]:
        value = value << 6 | byte & 0x3F
    return value


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _to_bytes(token: str) -> bytes:
    table = _byte_of()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()  # an added token stands for its own text
