"""Prompts with their completions, or chats -> rows of token ids whose labels are the answers alone.

A prompt is read as it will be when the model is asked: the tokens of an answer never change those
of the prompt before it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError

from hf_tfopt.data.corpus import Documents, hub_splits, split_documents
from hf_tfopt.data.document_cache import PathLike
from hf_tfopt.data.local_files import LOADERS, check_column, check_utf8, find_files, split_by_name
from hf_tfopt.data.model_inputs import IGNORED
from hf_tfopt.data.tokenizer import surroundings

PROMPT, COMPLETION, MESSAGES = "prompt", "completion", "messages"
_IDS = datasets.List(datasets.Value("int32"))
_ROWS = {"input_ids": _IDS, "labels": _IDS, "is_cut": datasets.Value("bool")}
_READ = {suffix: loader for suffix, loader in LOADERS.items() if loader != "text"}


class Piece(NamedTuple):
    """A stretch of text, and whether the model is to learn to write it."""

    text: str
    is_learned: bool


def load_instructions(
    source: PathLike,
    columns: Mapping[str, str],
    *,
    eval_fraction: float = 0.05,
    seed: int = 0,
    max_documents: int | None = None,
) -> Documents:
    """Instructions, "train" and "eval", split as `load_corpus` splits documents.

    Args:
        source: a `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder or a glob of them, or the
            name of a dataset on the Hub, `name` or `name:configuration`.
        columns: "prompt" and "completion" -> the columns that have them; or "messages" -> the
            column of chats, lists of `{"role": ..., "content": ...}`.
        eval_fraction: the expected share of held-out rows, where the source has none of its own.
        seed: draws another split and another sample.
        max_documents: at most so many rows in both together.

    Returns:
        Those columns, under these names, and all their words in a column "text".

    Raises:
        FileNotFoundError: `source` looks like a path, and there is no such file.
        ValueError: no such column, a row without answer, a chat of another form, too few rows.
    """
    source = os.fspath(source)
    splits = {name: _named(part, columns) for name, part in _read(source).items()}
    checked = {name: _checked(source, part) for name, part in splits.items()}
    return split_documents(source, checked, eval_fraction, seed, max_documents)


def _read(source: str) -> dict[str, Any]:
    files = find_files(source)
    if files is None:
        return dict(hub_splits(source))
    return {split: _read_files(part) for split, part in split_by_name(files).items()}


def _read_files(files: Sequence[Path]) -> Any:
    loaders = {_READ.get(file.suffix.lower()) for file in files}
    loader = loaders.pop()
    if loaders or loader is None:
        raise ValueError(
            f"{', '.join(str(file) for file in files[:5])}: rows with columns are read from files "
            f"of one kind, {', '.join(_READ)}"
        )
    if loader != "parquet":
        for file in files:
            check_utf8(file)
    options: dict[str, Any] = {"keep_default_na": False} if loader == "csv" else {}
    paths = [str(file.resolve()) for file in files]
    try:
        return datasets.load_dataset(loader, data_files=paths, split="train", **options)
    except DatasetGenerationError as error:
        raise ValueError(f"{', '.join(paths[:5])} cannot be read: {error.__cause__}") from error


def _named(dataset: Any, columns: Mapping[str, str]) -> Any:
    """The columns under the names that they have here."""
    for column in columns.values():
        check_column(column, dataset.column_names)
    dataset = dataset.select_columns(list(columns.values()))
    changed = {column: name for name, column in columns.items() if column != name}
    return dataset.rename_columns(changed) if changed else dataset


def _checked(source: str, dataset: Any) -> Any:
    """The dataset with all words of a row in "text"; ValueError for rows that cannot be learnt."""
    texts: list[str] = []
    for number, row in enumerate(dataset):
        fault = _chat_fault(row[MESSAGES]) if MESSAGES in row else _pair_fault(row)
        if fault:
            raise ValueError(f"{source}: row {number} {fault}")
        parts = [m["content"] for m in row[MESSAGES]] if MESSAGES in row else row.values()
        texts.append("\n".join(parts))
    if not texts:
        raise ValueError(f"{source} has no rows")
    return dataset.add_column("text", texts)


def _pair_fault(row: Mapping[str, Any]) -> str:
    for name in (PROMPT, COMPLETION):
        if not isinstance(row[name], str):
            return f"has {row[name]!r:.60} where its {name} should be, a text"
    return "" if row[COMPLETION].strip() else "has no completion: nothing of it can be learnt"


def _chat_fault(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        return f"has {messages!r:.60} where its messages should be"
    for message in messages:
        texts = [message.get(key) for key in ("role", "content")] if message else [None]
        if not all(isinstance(text, str) for text in texts):
            return f"has the message {message!r:.80}, which is no {{role: text, content: text}}"
    is_answered = any(m["role"] == "assistant" and m["content"].strip() for m in messages)
    return "" if is_answered else "has no message of the assistant: nothing of it can be learnt"


def tokenize_instructions(dataset: Any, tokenizer: Any, max_length: int) -> datasets.Dataset:
    """Instructions as rows: "input_ids"; "labels", -100 but for answers; "is_cut".

    Prompt and completion stand between what the tokenizer puts before a text and its end-of-text
    token; chats are written by the tokenizer's chat template, and all answers of the assistant are
    learned, with what ends them. Names of special tokens in them are special tokens, as in a prompt
    to a model. Rows are cut at `max_length`; one whose answer would begin behind it is left out.

    Args:
        dataset: as `load_instructions` gives it.
        tokenizer: with an end-of-text token, or a chat template for messages.
        max_length: tokens of the longest row.

    Raises:
        ValueError: a tokenizer without what it needs; a chat that its template cannot write, or
            writes otherwise once it goes on; no row whose answer begins before `max_length`.
    """
    if MESSAGES in dataset.column_names and not tokenizer.chat_template:
        raise ValueError(
            "messages: the tokenizer has no chat template to write them with; take an instruction "
            "model's tokenizer, or columns of prompts and completions"
        )
    if tokenizer.eos_token_id is None and PROMPT in dataset.column_names:
        raise ValueError("the tokenizer has no end-of-text token (eos_token) to end answers with")
    rows = dataset.map(
        _rows,
        batched=True,
        remove_columns=dataset.column_names,
        features=datasets.Features(_ROWS),
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        desc="Tokenizing",
    )
    if not len(rows):
        raise ValueError(
            f"max_length: got {max_length}, but no row's answer begins before that: raise it"
        )
    return rows


def _rows(batch: Mapping[str, Any], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in _ROWS}
    names = [name for name in (PROMPT, COMPLETION, MESSAGES) if name in batch]
    for values in zip(*(batch[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        ids, labels = labelled(*pieces_of(row, tokenizer), tokenizer)
        if any(label != IGNORED for label in labels[1:max_length]):
            found["input_ids"].append(np.array(ids[:max_length], dtype=np.int32))
            found["labels"].append(np.array(labels[:max_length], dtype=np.int32))
            found["is_cut"].append(len(ids) > max_length)
    return found


def pieces_of(row: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[Piece], list[int]]:
    """The ids before a row's text, its pieces, and the ids behind it."""
    if MESSAGES in row:
        return [], chat_pieces(row[MESSAGES], tokenizer), []
    before, _ = surroundings(tokenizer)
    pieces = [Piece(row[PROMPT], False), Piece(row[COMPLETION], True)]
    return before, pieces, [tokenizer.eos_token_id]


def chat_pieces(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> list[Piece]:
    """A chat as the tokenizer's template writes it, up to the end of the last answer.

    Raises:
        ValueError: the template refuses the chat, or writes its beginning otherwise once it goes
            on (as some do that leave earlier thoughts out), so that there is no one text to learn.
    """
    try:
        whole = _written(messages, tokenizer)
        pieces: list[Piece] = []
        done = ""
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                before = _written(messages[:place], tokenizer, asks=True)
                after = _written(messages[: place + 1], tokenizer)
                if not (before.startswith(done) and after.startswith(before)):
                    raise ValueError(_CHANGING.format(place=place))
                pieces += [Piece(before[len(done) :], False), Piece(after[len(before) :], True)]
                done = after
    except (TemplateError, LookupError) as error:
        raise ValueError(
            f"the chat template cannot write the chat {messages!r:.80}: {error}"
        ) from (error)
    if not whole.startswith(done):
        raise ValueError(_CHANGING.format(place=len(messages) - 1))
    return pieces


_CHANGING = (
    "the chat template writes the messages before number {place} otherwise once there are more: "
    "what the model would learn is not what it will read. Cut such chats so that each has one "
    "answer, at its end"
)


def _written(messages: Sequence[Mapping[str, str]], tokenizer: Any, asks: bool = False) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)


def labelled(
    before: Sequence[int], pieces: Sequence[Piece], after: Sequence[int], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Token ids of the pieces one after another, and their labels: -100 where nothing is learned.

    A piece is tokenized together with those before it where that leaves their tokens as they are;
    else by itself, as it is when a model goes on from them.

    Args:
        before: ids in front; not learned.
        pieces: of the text.
        after: ids behind; learned if the last piece is.
        tokenizer: of the ids.
    """
    ids: list[int] = []
    labels: list[int] = []
    text = ""
    for piece in pieces:
        text += piece.text
        joint: list[int] = _ids(text, tokenizer)
        new = joint[len(ids) :] if joint[: len(ids)] == ids else _ids(piece.text, tokenizer)
        ids += new
        labels += new if piece.is_learned else [IGNORED] * len(new)
    is_learned = bool(pieces) and pieces[-1].is_learned
    labels = (
        [IGNORED] * len(before) + labels + (list(after) if is_learned else [IGNORED] * len(after))
    )
    return [*before, *ids, *after], labels


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
