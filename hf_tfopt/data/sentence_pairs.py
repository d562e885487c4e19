"""Documents -> pairs of text segments for next sentence or sentence order prediction."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable
from datasets.utils import tqdm
from numpy.typing import NDArray

from hf_tfopt.data.local_files import check_column
from hf_tfopt.data.pair_template import pair_rows, pair_template
from hf_tfopt.data.sentences import Sentences, split_sentences, tokenize_sentences
from hf_tfopt.registry import check_name

TASKS = ("nsp", "sop")
LABEL = "next_sentence_label"

_MIN_LENGTH = 8
_TOKENS_PER_PART = 1 << 24


class Pair(NamedTuple):
    """Segments A and B as slices of all tokens, one after the other, and the label."""

    a_start: int
    a_end: int
    b_start: int
    b_end: int
    label: int


def sentence_pairs(
    documents: Any,
    tokenizer: Any,
    task: Literal["nsp", "sop"] = "nsp",
    max_length: int = 128,
    *,
    short_probability: float = 0.1,
    seed: int = 0,
    duplicates: int = 1,
    text_column: str = "text",
    splitter: Callable[[str], Sequence[str]] = split_sentences,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Pairs of segments A and B, as BERT (next sentence) or ALBERT (sentence order) train on.

    A document's sentences are gathered into chunks of up to `max_length` less the special tokens,
    with `short_probability` of a random shorter length. A is a random number of the chunk's first
    sentences, at least one and not all. For "nsp", B is with equal chance the rest (label 0, is
    next) or a run of sentences from a random place of *another* document (label 1), and then the
    rest is used again. For "sop", B is the rest, and with equal chance the two change places
    (label 1). What is too long loses tokens of the longer segment, at random in front or behind.

    A pure function of the documents, their order, and `seed`: with each number of processes the
    same. A document of one sentence, and a last sentence left over, make no pair of their own.

    Args:
        documents: a `datasets.Dataset` whose column has a text or a list of sentences for each
            document; or a plain list of these.
        tokenizer: one that puts something between two texts (`[CLS] A [SEP] B [SEP]`).
        task: "nsp" or "sop".
        max_length: tokens of the longest pair, special ones included; at least 8.
        short_probability: the share of pairs that aim at a length drawn from 2 to the longest, so
            that the model sees short texts too; in [0, 1].
        seed: of all that is random.
        duplicates: how often the documents are gone through, with other pairs each time.
        text_column: the column of the documents.
        splitter: makes sentences of a text; `str.splitlines` for files with one on each line.
        num_proc: processes that tokenize; fast tokenizers use every core from one.

    Returns:
        A dataset in memory, in the documents' order: `input_ids`, `token_type_ids` and
        `next_sentence_label` (0 or 1; also for "sop": collators name it as their model does).

    Raises:
        ValueError: an option out of range, a tokenizer that joins two texts with nothing between,
            no documents at all, for "nsp" fewer than two with text, or none with two sentences.

    Paper: Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 3.1 and appendix
    A.2; Lan et al. 2020, ALBERT (https://arxiv.org/abs/1909.11942), section 3.1. Differs from the
    data builders that they released: a chunk has two sentences or more (theirs gives a single one
    a random B, so that more than half of the labels are 1), each pair rather than each document is
    short by chance, and B is never of the same document (theirs draws ten times at most).
    """
    check_name("task", task, TASKS)
    _check_options(tokenizer, max_length, short_probability, duplicates)
    template = pair_template(tokenizer)
    dataset = _as_dataset(documents, text_column)
    sentences = tokenize_sentences(dataset, tokenizer, text_column, splitter, num_proc)
    _check_sentences(sentences, task)
    capacity = max_length - template.num_special
    pairs = np.fromiter(
        (
            place
            for repeat in range(duplicates)
            for pair in _all_pairs(sentences, task, capacity, short_probability, seed, repeat)
            for place in pair
        ),
        dtype=np.int64,
    ).reshape(-1, len(Pair._fields))
    source: Any = dataset  # what datasets keeps of a dataset's origin is not public
    options = (task, max_length, short_probability, seed, duplicates, text_column, splitter)
    origin = Hasher.hash(("sentence_pairs", source._fingerprint, template, *options))
    rows = [pair_rows(sentences.ids, part, template, LABEL) for part in _parts(pairs, max_length)]
    table = InMemoryTable(pa.Table.from_batches(rows))
    return datasets.Dataset(table, split=dataset.split, fingerprint=origin)


def _check_options(
    tokenizer: Any, max_length: int, short_probability: float, duplicates: int
) -> None:
    if not _MIN_LENGTH <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length is {max_length}; it must be at least {_MIN_LENGTH} and at most "
            f"{tokenizer.model_max_length}, the tokenizer's model_max_length"
        )
    if not 0 <= short_probability <= 1:
        raise ValueError(f"short_probability is {short_probability}; it must be from 0 to 1")
    if duplicates < 1:
        raise ValueError(f"duplicates is {duplicates}; it must be at least 1, once through all")


def _as_dataset(documents: Any, text_column: str) -> datasets.Dataset:
    if isinstance(documents, list | tuple | datasets.Dataset) and not len(documents):
        raise ValueError(
            f"documents is an empty {type(documents).__name__}; give at least one text or list of "
            "sentences (two for task='nsp')"
        )
    if isinstance(documents, list | tuple):
        if len({isinstance(document, str) for document in documents if document is not None}) > 1:
            raise ValueError(
                "some documents are texts and some are not: give all as texts, or all as lists of "
                "sentences"
            )
        return datasets.Dataset.from_dict({text_column: list(documents)})
    if not isinstance(documents, datasets.Dataset):
        raise ValueError(
            f"documents is a {type(documents).__name__}; give one datasets.Dataset, such as "
            "load_corpus(...)['train'], or a list of texts or of lists of sentences"
        )
    check_column(text_column, documents.column_names)
    return documents


def _check_sentences(sentences: Sentences, task: str) -> None:
    bounds = np.array(sentences.documents)
    num_documents = len(bounds) - 1
    if task == "nsp" and num_documents < 2:
        raise ValueError(
            f"{num_documents} of the documents has text: a random sentence comes from another "
            "document, so there must be two; is each document a row of its own? (task='sop' "
            "needs no other document)"
        )
    if not (np.diff(bounds) > 1).any():
        raise ValueError(
            "no document has two sentences, and a pair needs two: are the documents lines? They "
            "must be texts, or lists of their sentences (splitter= makes sentences of a text)"
        )


def _all_pairs(
    sentences: Sentences,
    task: str,
    capacity: int,
    short_probability: float,
    seed: int,
    repeat: int,
) -> Iterator[Pair]:
    """The pairs of every document, each with random numbers of its own."""
    for number in tqdm(range(len(sentences.documents) - 1), desc="Pairing sentences"):
        draw = random.Random(f"{seed} {repeat} {number}")
        yield from _pairs_of(number, sentences, task, capacity, short_probability, draw)


def _pairs_of(
    number: int,
    sentences: Sentences,
    task: str,
    capacity: int,
    short_probability: float,
    draw: random.Random,
) -> Iterator[Pair]:
    ends = sentences.ends
    first, last = sentences.documents[number], sentences.documents[number + 1]
    while last - first > 1:
        target = capacity
        if draw.random() < short_probability:
            target = 2 + int(draw.random() * (capacity - 1))
        end = first + 2
        while end < last and ends[end] - ends[first] < target:
            end += 1
        middle = first + 1 + int(draw.random() * (end - first - 1))
        a, b, label = (ends[first], ends[middle]), (ends[middle], ends[end]), 0
        if draw.random() < 0.5:
            label = 1
            if task == "sop":
                a, b = b, a
            else:
                b = _random_run(number, sentences, target - (a[1] - a[0]), draw)
                end = middle  # the rest is used again
        yield Pair(*_truncated(*a, *b, capacity, draw), label)
        first = end


def _random_run(
    number: int, sentences: Sentences, target: int, draw: random.Random
) -> tuple[int, int]:
    """Sentences of another document from a random one on: `target` tokens or up to its end."""
    ends, documents = sentences.ends, sentences.documents
    other = int(draw.random() * (len(documents) - 2))
    other += other >= number
    start, last = documents[other], documents[other + 1]
    start += int(draw.random() * (last - start))
    end = start + 1
    while end < last and ends[end] - ends[start] < target:
        end += 1
    return ends[start], ends[end]


def _truncated(
    a_start: int, a_end: int, b_start: int, b_end: int, capacity: int, draw: random.Random
) -> tuple[int, int, int, int]:
    """Both without the tokens that are too many: one by one of the longer, at a random end."""
    while (a_end - a_start) + (b_end - b_start) > capacity:
        is_front = draw.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = (a_start + 1, a_end) if is_front else (a_start, a_end - 1)
        else:
            b_start, b_end = (b_start + 1, b_end) if is_front else (b_start, b_end - 1)
    return a_start, a_end, b_start, b_end


def _parts(pairs: NDArray[np.int64], max_length: int) -> Iterator[NDArray[np.int64]]:
    """Some at a time: bounds the index, and keeps Arrow's 32-bit list offsets in range."""
    step = max(1, _TOKENS_PER_PART // max_length)
    for first in range(0, len(pairs), step):
        yield pairs[first : first + step]
