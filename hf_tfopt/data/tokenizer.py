"""Documents -> a WordPiece tokenizer, and documents -> examples of token ids."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets.utils import is_progress_bar_enabled
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase

from hf_tfopt.data.local_files import check_column
from hf_tfopt.data.rows_fingerprint import rows_fingerprint

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INPUT_IDS = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
_MIN_LENGTH = 8
_TEXTS_PER_BATCH = 1000
_CHARACTERS_AT_ONCE = 2**22  # and at least one document

_Dataset = TypeVar("_Dataset", datasets.Dataset, datasets.IterableDataset)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8192,
    *,
    lowercase: bool = True,
    min_frequency: int = 2,
    alphabet_size: int = 1000,
    model_max_length: int = 512,
) -> BertTokenizer:
    """A BERT tokenizer (WordPiece) with its vocabulary learnt from some texts.

    What `tokenizers` learns with its `WordPieceTrainer`, except that equal texts give an equal
    vocabulary: there, the numbers of the pieces and the choice between equally frequent ones depend
    on the process. And every letter may continue a word, seen there or not, so that fewer words are
    unknown. `save_pretrained` writes a plain tokenizer that `AutoTokenizer` opens.

    Args:
        texts: the documents; an iterator is read into memory, because they are read twice.
        vocab_size: the most pieces it may have, the five special ones among them. Fewer where the
            texts give no more; 30,522 is BERT's own, and 8,192 suits some millions of words.
        lowercase: whether case and accents are taken away.
        min_frequency: how often a pair of pieces must be seen to become one.
        alphabet_size: how many characters are known, the most frequent ones; a word with any other
            is `[UNK]`.
        model_max_length: the longest example in tokens that the tokenizer does not warn of.

    Raises:
        ValueError: no text, or a vocabulary too small for the characters.

    Paper: Wu et al. 2016, Google's Neural Machine Translation System,
        https://arxiv.org/abs/1609.08144, section 4.1. Differs: pairs are joined by frequency (as in
        byte-pair encoding), not by likelihood; so does the library.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one text; it must be an iterable of documents")
    if isinstance(texts, Iterator):
        texts = list(texts)
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(texts, backend)[:alphabet_size]
    # Listed as special so that their numbers, which decide between equals, are set beforehand.
    pieces = [*SPECIAL_TOKENS, *(f"##{c}" for c in alphabet if _continues_words(c, backend))]
    if vocab_size < len(pieces) + len(alphabet):
        raise ValueError(
            f"vocab_size is {vocab_size}; the special tokens and {len(alphabet)} characters alone "
            f"are {len(pieces) + len(alphabet)}; raise it, or lower alphabet_size ({alphabet_size})"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=pieces,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=is_progress_bar_enabled(),
    )
    backend.train_from_iterator(_batches(texts), trainer)
    return BertTokenizer(
        vocab=backend.get_vocab(), do_lower_case=lowercase, model_max_length=model_max_length
    )


def tokenize(
    dataset: _Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    text_column: str = "text",
    min_tokens: int = 2,
    end_id: int | None = None,
    num_proc: int | None = None,
    keep_in_memory: bool = False,
) -> _Dataset:
    """Examples of at most `max_length` token ids, each from one document; the column "input_ids".

    A document is cut into consecutive windows, so all of it is used. A last window shorter than an
    eighth of the others shares its tokens evenly with the one before it. Around each window stands
    what the tokenizer puts around a text (`[CLS]` and `[SEP]`, or nothing). A special token's name
    in a document is text like any other: `[MASK]` in it is no mask.

    As with `Dataset.map`, the examples of documents on disk are written next to their file, piece
    by piece, and are found there by the next call with the same documents, options, and tokenizer,
    wherever that was read from; those of documents in memory stay in memory. A thousand documents
    are read at a time; long ones are tokenized in parts of some million characters.

    Args:
        dataset: documents; a stream (`IterableDataset`) gives a stream.
        tokenizer: any tokenizer of `transformers`.
        max_length: tokens of the longest example, special ones included; at least 8.
        text_column: the column that has the documents.
        min_tokens: documents with fewer tokens are left out: the default asks for a masked token
            to have a neighbour that it can be told from. Special tokens do not count.
        end_id: what ends each document, for a causal model: it stands at the end of the last
            window, and nothing else stands behind any.
        num_proc: processes that tokenize; with any number the examples are the same. Fast
            tokenizers use every core from one, but for what Python does. Not for streams.
        keep_in_memory: write nothing to disk. Not for streams.

    Raises:
        ValueError: `max_length` out of range, no such column, one that does not hold text, or no
            document with enough tokens.
    """
    if not _MIN_LENGTH <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length is {max_length}; it must be at least {_MIN_LENGTH} and at most "
            f"{tokenizer.model_max_length}, the tokenizer's model_max_length"
        )
    source: Any = dataset
    columns: Iterable[str] = source.column_names or next(iter(source), {})
    check_column(text_column, columns)
    _check_text(source, text_column)
    options: dict[str, Any] = {
        "batched": True,
        "features": _INPUT_IDS,
        "remove_columns": list(columns),
        "fn_kwargs": {
            "tokenizer": tokenizer,
            "text_column": text_column,
            "max_length": max_length,
            "min_tokens": max(1, min_tokens),
            "end_id": end_id,
            # of a stream the rows are what the function gives, of a dataset Arrow's lists
            "has_arrays": not isinstance(dataset, datasets.IterableDataset),
        },
    }
    if not isinstance(dataset, datasets.IterableDataset):
        ends = () if end_id is None else (end_id,)
        made_with = (text_column, max_length, max(1, min_tokens), *ends)
        options |= {
            "num_proc": num_proc if num_proc is None else min(num_proc, max(1, len(dataset))),
            "keep_in_memory": keep_in_memory,
            "desc": "Tokenizing",
            "new_fingerprint": rows_fingerprint("tokenize 1", source, tokenizer, *made_with),
        }
    examples = source.map(_tokenize_batch, **options)
    if next(iter(examples), None) is None:
        raise ValueError(
            "no example has a token to predict: no document has "
            f"{max(1, min_tokens)} tokens or more"
        )
    return examples


def _check_text(source: Any, text_column: str) -> None:
    kind = source.features[text_column] if source.features else None  # streams may not know
    if kind is not None and getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"column {text_column!r} holds {kind}, not texts")


def cut(num_tokens: int, capacity: int) -> list[tuple[int, int]]:
    """The windows (start, end) of a document of `num_tokens`: none longer than `capacity`."""
    borders = [*range(0, num_tokens, capacity), num_tokens]
    tail = num_tokens % capacity
    if len(borders) > 2 and 0 < tail * 8 < capacity:
        borders[-2] = num_tokens - (capacity + tail) // 2
    return list(pairwise(borders))


def _tokenize_batch(
    batch: Mapping[str, Sequence[str | None]],
    tokenizer: PreTrainedTokenizerBase,
    text_column: str,
    max_length: int,
    min_tokens: int,
    end_id: int | None,
    has_arrays: bool,
) -> dict[str, list[Any]]:
    prefix, suffix = surroundings(tokenizer)
    suffix, end = (suffix, []) if end_id is None else ([], [end_id])
    capacity = max_length - len(prefix) - len(suffix)
    texts = [text for text in batch[text_column] if text]
    return {
        "input_ids": [
            np.array(example, dtype=np.int32) if has_arrays else example
            for part in _parts(texts)
            for bare in _encode(tokenizer, part, False)
            if len(bare) >= min_tokens
            for ids in [bare + end]
            for first, last in cut(len(ids), capacity)
            for example in [prefix + ids[first:last] + suffix]
        ]
    }


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, some at a time: a token takes 100 bytes and more until it is a number."""
    part: list[str] = []
    num_characters = 0
    for text in texts:
        part.append(text)
        num_characters += len(text)
        if num_characters >= _CHARACTERS_AT_ONCE:
            yield part
            part, num_characters = [], 0
    if part:
        yield part


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    [bare], [full] = (_encode(tokenizer, ["a"], special) for special in (False, True))
    before = next(i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
    return full[:before], full[before + len(bare) :]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool
) -> list[list[int]]:
    encoded: Any = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # long documents are cut afterwards
    )
    return encoded["input_ids"]


def _alphabet(texts: Iterable[str], backend: Any) -> list[str]:
    """The characters of the normalised texts, the most frequent first."""
    raw: Counter[str] = Counter()
    for batch in _batches(texts):
        raw.update("".join(batch))
    normalised: Counter[str] = Counter()
    for character, count in raw.items():
        for result in backend.normalizer.normalize_str(character):
            normalised[result] += count
    found = [character for character in normalised if not character.isspace()]
    if not found:
        raise ValueError("there is no text to learn a tokenizer from")
    return sorted(found, key=lambda character: (-normalised[character], character))


def _continues_words(character: str, backend: Any) -> bool:
    """Whether it can stand within a word: punctuation and ideographs are words of their own."""
    within = backend.normalizer.normalize_str(f"a{character}a")
    return len(backend.pre_tokenizer.pre_tokenize_str(within)) == 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _TEXTS_PER_BATCH)):
        yield batch
