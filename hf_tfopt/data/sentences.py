"""Text -> sentences, by rules that need no model; documents -> the tokens of their sentences."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray

_BLANK_LINE = re.compile(r"\n\s*\n")
# A line that goes on in lower case is the same sentence, wrapped.
_LINE_BREAK = re.compile(r"\s*\n\s*(?=\S)")
# What ends a sentence, with closing quotes and brackets; some scripts leave no space behind it.
_END = re.compile(r"[.!?…؟।]+[\"'”’»)\]]*\s+|[。！？]+[」』”’）]*\s*")
_SHORTENED = (
    "e.g. i.e. etc. cf. vs. al. fig. figs. eq. eqs. sec. ch. nos. vol. pp. p. ed. eds. approx. "
    "mr. mrs. ms. dr. prof. st. sr. jr. gen. col. lt. rev. hon. inc. ltd. co. corp. dept. est. "
    "jan. feb. mar. apr. jun. jul. aug. sep. sept. oct. nov. dec. u.s. u.k. a.m. p.m."
)
_ABBREVIATIONS = frozenset(_SHORTENED.split())
_INITIAL = re.compile(r"(?:^|[\s.(])([^\W\d_])\.$")  # J. Smith

_FEATURES = datasets.Features(
    {
        "ids": datasets.List(datasets.Value("int32")),
        "lengths": datasets.List(datasets.Value("int32")),
    }
)


class Sentences(NamedTuple):
    """The tokens of all documents.

    Args:
        ids: of all documents, one after the other.
        ends: where each sentence begins in `ids`, and the end of the last.
        documents: where each document begins in `ends`, and the end of the last; none is empty.
    """

    ids: NDArray[np.int32]
    ends: list[int]
    documents: list[int]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space around them; empty ones are left out.

    A sentence ends at a blank line; at a line break, unless the next line goes on in lower case;
    and behind `.`, `!`, `?` and their like where white space follows and what comes next is not
    in lower case, but not behind an initial or a common abbreviation of English. Wrong now and
    then, which a pair of "sentences" bears: in BERT's sense they are any contiguous text.

    Args:
        text: of any script; where sentences end without a space (。！？) none is needed.
    """
    found: list[str] = []
    for paragraph in _BLANK_LINE.split(text):
        for line in _lines(paragraph.strip()):
            found += _of_line(line)
    return found


def _lines(paragraph: str) -> list[str]:
    """The lines of a paragraph, wrapped ones joined."""
    lines: list[str] = []
    for line in filter(None, _LINE_BREAK.split(paragraph)):
        if lines and line[0].islower():
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return lines


def _of_line(line: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(line):
        following = line[end.end() : end.end() + 1]
        if following and not following.islower() and not _goes_on(line[start : end.end()].rstrip()):
            sentences.append(line[start : end.end()].rstrip())
            start = end.end()
    return [*sentences, line[start:]] if start < len(line) else sentences


def _goes_on(sentence: str) -> bool:
    """Whether its last word is an abbreviation or an initial, whose stop ends nothing."""
    if not sentence.endswith("."):
        return False
    word = sentence.rsplit(maxsplit=1)[-1].lstrip("\"'(“‘«[").lower()
    initial = _INITIAL.search(sentence)
    return word in _ABBREVIATIONS or (initial is not None and initial[1].isupper())


def tokenize_sentences(
    dataset: datasets.Dataset,
    tokenizer: Any,
    text_column: str,
    splitter: Callable[[str], Sequence[str]],
    num_proc: int | None,
) -> Sentences:
    """All documents' sentences as tokens; those without any are left out.

    Args:
        dataset: documents: in each row a text, a list of sentences, or nothing.
        tokenizer: any tokenizer of `transformers`.
        text_column: the column of the documents.
        splitter: makes sentences of a text.
        num_proc: processes that tokenize.

    Raises:
        ValueError: a document of another type.
    """
    tokenized = dataset.map(
        _tokenize_batch,
        batched=True,
        features=_FEATURES,
        remove_columns=dataset.column_names,
        fn_kwargs={"tokenizer": tokenizer, "text_column": text_column, "splitter": splitter},
        num_proc=num_proc,
        desc="Tokenizing sentences",
    )
    ids, _ = _lists(tokenized, "ids")
    lengths, num_sentences = _lists(tokenized, "lengths")
    ends = np.cumsum(np.concatenate([[0], lengths], dtype=np.int64))
    documents = np.cumsum(np.concatenate([[0], num_sentences[num_sentences > 0]], dtype=np.int64))
    return Sentences(ids, ends.tolist(), documents.tolist())


def _tokenize_batch(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: Any,
    text_column: str,
    splitter: Callable[[str], Sequence[str]],
) -> dict[str, list[list[int]]]:
    """Each document's tokens, and how many each of its sentences has; empty ones left out."""
    documents = [_sentences_of(document, splitter) for document in batch[text_column]]
    texts = [text for document in documents for text in document]
    encoded = (
        tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,  # `[MASK]` in a text is no mask
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # long sentences are cut afterwards
        )["input_ids"]
        if texts
        else []
    )
    found = iter(encoded)
    by_document = [
        [ids for ids in (next(found) for _ in document) if ids] for document in documents
    ]
    return {
        "ids": [[i for ids in document for i in ids] for document in by_document],
        "lengths": [[len(ids) for ids in document] for document in by_document],
    }


def _sentences_of(document: Any, splitter: Callable[[str], Sequence[str]]) -> Sequence[str]:
    if document is None:
        return ()
    sentences = splitter(document) if isinstance(document, str) else document
    if not isinstance(sentences, list | tuple) or not all(isinstance(s, str) for s in sentences):
        raise ValueError(
            f"a document is {str(document)[:60]!r} ({type(document).__name__}); it must be a text "
            "or a list of sentences"
        )
    return sentences


def _lists(dataset: datasets.Dataset, name: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """A column of lists as all its values, one after the other, and the length of each list."""
    chunks: Any = dataset.data.column(name).chunks
    empty = np.empty(0, dtype=np.int32)
    values = [chunk.flatten().to_numpy() for chunk in chunks]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    return np.concatenate([empty, *values]), np.concatenate([empty, *lengths]).astype(np.int64)
