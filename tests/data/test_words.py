"""Word starts by tables equal the `word_ids` of the tokenizers they are made from."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from hf_tfopt.data.words import word_tables

TEXTS = [
    "Hello, world! It's a well-known fact: don't panic -- we'll see in 2024, at 3.14%.",
    "The naïve café's façade cost €1,000.50 (or £900)... “quoted” – it’s fine.",
    "日本語のテキスト と 中文字符 mixed with English. 東京2020!",
    "I've said they're o'clock; we'd you'll I'm it'd. e-mail foo_bar x=y+1",
    "def f(x): return x**2  # two  spaces 😂😂 ok",
    "Übergröße Straße Ångström señor 1st 2nd b2b covid19 A.B.C. ½ ² Привет мир مرحبا",
]
ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
SPECIAL = list(ROLES.values())


def fast(tokenizer: Tokenizer) -> Any:
    names = {f"{role}_token": token for role, token in ROLES.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def word_piece(size: int = 250) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return fast(tokenizer)


def byte_level(size: int, add_prefix_space: bool) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer)


def starts(tokenizer: Any, text: str) -> tuple[list[str], list[bool]]:
    """The tokens of a text without its special tokens, and where the tables start words."""
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    found = word_tables(tokenizer).word_starts(ids)
    return tokenizer.convert_ids_to_tokens(ids.tolist()), [True, *found[1:].tolist()]


def words(tokenizer: Any, text: str) -> list[str]:
    joined: list[str] = []
    for token, is_first in zip(*starts(tokenizer, text), strict=True):
        joined = [*joined, token] if is_first else [*joined[:-1], joined[-1] + token]
    return joined


def by_word_ids(tokenizer: Any, text: str) -> list[bool]:
    word_ids = tokenizer(text, add_special_tokens=False).word_ids()
    return [True, *(a != b for a, b in pairwise(word_ids))]


# 300 ids: hardly a merge, characters in pieces; 420: some; 900: whole words
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [300, 420, 900])
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level(text: str, size: int, add_prefix_space: bool) -> None:
    tokenizer = byte_level(size, add_prefix_space)
    tokens, found = starts(tokenizer, text)
    assert found == by_word_ids(tokenizer, text), tokens


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [150, 250, 600])
def test_word_piece(text: str, size: int) -> None:
    tokenizer = word_piece(size)
    tokens, found = starts(tokenizer, text)
    assert found == by_word_ids(tokenizer, text), tokens


def test_whitespace_is_one_word_in_byte_level() -> None:
    """The one known difference: GPT-2's pattern leaves the last space of a run by itself."""
    tokenizer = byte_level(300, add_prefix_space=False)
    assert words(tokenizer, "a\n\tb") == ["a", "Ċĉ", "b"]
    assert by_word_ids(tokenizer, "a\n\tb") == [True] * 4


def test_metaspace_keeps_punctuation_apart() -> None:
    characters = sorted({c for text in TEXTS for c in text} | {"▁"})
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [(c, -10.0) for c in characters]
    vocabulary += [("▁don", -1.0), ("▁covid", -1.0), ("19", -1.0), ("▁well", -1.0), ("...", -1.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    found = words(fast(tokenizer), "don't well-known... covid19, (café)")
    assert found == [
        "▁don", "'", "t", "▁well", "-", "known", "...", "▁covid19", ",", "▁(", "café", ")",
    ]  # fmt: skip


def test_bpe_with_a_suffix() -> None:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "l", "o", "w</w>", "o</w>"])}
    model = models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert words(fast(tokenizer), "low lo") == ["low</w>", "lo</w>"]


def test_every_token_of_a_word_level_model_is_a_word() -> None:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert words(fast(tokenizer), "a b a") == ["a", "b", "a"]


def test_other_kinds_are_refused() -> None:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "a"])}
    plain_bpe = fast(Tokenizer(models.BPE(vocabulary, [])))
    with pytest.raises(ValueError, match="BPE model without word marks: words are known for fast"):
        word_tables(plain_bpe)

    class SlowTokenizer:
        is_fast = False

    with pytest.raises(ValueError, match="SlowTokenizer is a slow tokenizer: words are known"):
        word_tables(SlowTokenizer())
