"""Text, wherever it lies -> documents, one a row, split into training and held-out ones.

The split is drawn for each document by a hash of the seed and its text: more documents move none of
the others to the other side, and no text is ever on both.
"""

import os
import re
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_tfopt.data.document_cache import AnyDataset, PathLike
from hf_tfopt.data.embedded import embedded_corpus
from hf_tfopt.data.local_files import TextUnit, find_files, only_text, read_files, split_by_name

_HUB_NAME = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*)?(?::[\w.+=-][\w.+=, -]*)?")
_HELD_OUT_SPLITS = ("validation", "test")
_EMPTY = "the corpus is empty: {source!r} has no document with text in it"


class Documents(datasets.DatasetDict):
    """Documents, "train" and "eval"; `is_drawn`: whether fraction and seed chose any of them.

    They have not where all documents are read and the source has a held-out split of its own.
    """

    is_drawn: bool = True


def load_corpus(
    source: PathLike = "embedded",
    *,
    eval_fraction: float = 0.05,
    seed: int = 0,
    text_column: str = "text",
    text_unit: TextUnit = "paragraph",
    max_documents: int | None = None,
    streaming: bool = False,
    cache_dir: PathLike | None = None,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Documents for language modelling, split into "train" and "eval", in the column "text".

    A document is held out if `hash(seed, text) < eval_fraction`; if that leaves one side without
    any, the document nearest to the border changes sides. A source that comes with splits keeps
    them: "validation", or else "test", is eval, and what is in eval is taken out of train.

    Args:
        source: where the documents are:
            "embedded", the English documentation that our dependencies bring along (no network);
            a `.txt`, `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder of them, or a glob;
            otherwise the name of a dataset on the Hugging Face Hub, `name` or `name:configuration`
            (`Salesforce/wikitext:wikitext-2-raw-v1`). What exists on disk comes before the Hub, and
            `./embedded` is a folder of that name.
        eval_fraction: the expected share of held-out documents, between 0 and 1; used where the
            source has no held-out split of its own.
        seed: draws another split and another sample.
        text_column: the column that has the text; `.txt` files have no columns.
        text_unit: what a document is in a `.txt` file: a "paragraph" (blank lines between
            documents), a "line" or the whole "file".
        max_documents: at most this many documents in both splits together: a sample by hash, or
            with streaming the first ones; at least 2.
        streaming: read while training instead of before; the documents of both splits are read to
            find those of one, text files are only checked at their beginning, and a source's own
            splits are taken as they are.
        cache_dir: where datasets are kept; None is the cache of `datasets` (`HF_DATASETS_CACHE`).

    Returns:
        `Documents`, a `DatasetDict`; with streaming an `IterableDatasetDict`; without the documents
        that have no text.

    Raises:
        FileNotFoundError: `source` looks like a path, and there is no such file.
        ValueError: an option out of range, a name that is none, a file that is not text in UTF-8,
            no such column, no document at all, or one only, which leaves nothing to evaluate on.
    """
    source = os.fspath(source)
    _check_options(source, eval_fraction, max_documents)
    splits = _read(source, text_column, text_unit, streaming, cache_dir)
    if streaming:
        return _split_stream(source, splits, eval_fraction, seed, max_documents)
    return split_documents(source, splits, eval_fraction, seed, max_documents)


def _check_options(source: str, eval_fraction: float, max_documents: int | None) -> None:
    if not 0 < eval_fraction < 1:
        raise ValueError(f"eval_fraction is {eval_fraction}; it must lie between 0 and 1")
    if max_documents is not None and max_documents < 2:
        raise ValueError(f"max_documents is {max_documents}; both splits need one: at least 2")
    if not source.strip() or "\0" in source:
        raise ValueError(f"source is {source!r}: no file, folder, glob or name of a dataset")
    if re.match(r"[A-Za-z][\w+.-]*://", source):
        raise ValueError(
            f"source is {source!r}: addresses are not read; download the file and give its path, "
            "or give the name of a dataset on the Hub"
        )


def _read(
    source: str,
    text_column: str,
    text_unit: TextUnit,
    streaming: bool,
    cache_dir: PathLike | None,
) -> dict[str, AnyDataset]:
    """The documents before we split them: train, and eval where the source has one."""
    if source == "embedded":
        corpus = embedded_corpus(cache_dir)
        return {"train": corpus.to_iterable_dataset() if streaming else corpus}
    files = find_files(source)
    if files is not None:
        return {
            split: read_files(part, text_column, text_unit, streaming, cache_dir)
            for split, part in split_by_name(files).items()
        }
    return _read_hub(source, text_column, streaming, cache_dir)


def _read_hub(
    source: str, text_column: str, streaming: bool, cache_dir: PathLike | None
) -> dict[str, AnyDataset]:
    splits = hub_splits(source, streaming, cache_dir)
    return {name: only_text(part, text_column) for name, part in splits.items()}


def hub_splits(
    source: str, streaming: bool = False, cache_dir: PathLike | None = None
) -> dict[str, AnyDataset]:
    """The dataset of that name on the Hub: "train", and "eval" where it has a held-out split.

    Raises:
        ValueError: a name that is none, or leads nowhere; splits without "train".
    """
    if ".." in source or not _HUB_NAME.fullmatch(source):
        raise ValueError(
            f"source is {source!r}: no file, folder or glob that exists, and no name of a dataset "
            "(name or name:configuration)"
        )
    name, _, configuration = source.partition(":")
    if get_close_matches(name, ["embedded"], cutoff=0.8):  # asking the Hub takes long when offline
        raise ValueError(f"unknown source {source!r} (did you mean 'embedded'?)")
    try:
        splits: Any = datasets.load_dataset(
            name,
            configuration or None,
            streaming=streaming,
            cache_dir=str(cache_dir) if cache_dir else None,
        )
    except (DatasetNotFoundError, DatasetGenerationError, OSError) as error:
        raise ValueError(
            f"{source!r} is not on disk, and the Hub did not give it as a dataset: {error}"
        ) from error
    if len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise ValueError(f"{source!r} has no split 'train'; its splits: {', '.join(splits)}")
    held_out = next((splits[split] for split in _HELD_OUT_SPLITS if split in splits), None)
    return {"train": splits["train"]} | ({} if held_out is None else {"eval": held_out})


def split_documents(
    source: str,
    splits: dict[str, Any],
    eval_fraction: float,
    seed: int,
    max_documents: int | None,
) -> Documents:
    """Documents in a column "text", as `load_corpus` splits them; other columns come along."""
    train, (train_rows, train_keys) = splits["train"], _keys(splits["train"], seed)
    if "eval" in splits:
        held_out, (eval_rows, eval_keys) = splits["eval"], _keys(splits["eval"], seed)
        is_novel = ~np.isin(train_keys, eval_keys)
        train_rows, train_keys = train_rows[is_novel], train_keys[is_novel]
        if max_documents is not None:
            num_eval = min(len(eval_rows), max(1, round(max_documents * eval_fraction)))
            eval_rows = _sample(eval_rows, eval_keys, num_eval)
            train_rows = _sample(train_rows, train_keys, max_documents - num_eval)
    else:
        held_out = train
        if max_documents is not None:
            sample = _sample(np.arange(len(train_rows)), train_keys, max_documents)
            train_rows, train_keys = train_rows[sample], train_keys[sample]
        is_eval = _draw(source, train_keys, eval_fraction)
        eval_rows, train_rows = train_rows[is_eval], train_rows[~is_eval]
    if not len(train_rows) or not len(eval_rows):
        raise ValueError(
            f"{source!r} has {len(train_rows)} documents to train on that are not in its held-out "
            f"split, which has {len(eval_rows)}: both need one"
        )
    found = Documents({"train": _select(train, train_rows), "eval": _select(held_out, eval_rows)})
    found.is_drawn = "eval" not in splits or max_documents is not None
    return found


def _keys(dataset: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have text, and the 64-bit hash of each one's text."""
    rows: list[int] = []
    keys: list[int] = []
    texts = (text for batch in dataset.iter(1000) for text in batch["text"])
    for row, text in enumerate(texts):
        if text and not text.isspace():
            rows.append(row)
            keys.append(_hash(text, seed))
    return np.array(rows, np.int64), np.array(keys, np.uint64)


def _hash(text: str, seed: int) -> int:
    """64 bits; the text's ends do not count, whatever white space a file format leaves there."""
    data = text.strip().encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, key=str(seed).encode()).digest(), "big")


def _draw(source: str, keys: np.ndarray, eval_fraction: float) -> np.ndarray:
    """Whether each document is held out."""
    distinct = np.unique(keys)
    if not len(distinct):
        raise ValueError(_EMPTY.format(source=source))
    if len(distinct) == 1:
        copies = f", {len(keys)} times" if len(keys) > 1 else ""
        raise ValueError(
            f"{source!r} has one document{copies}: nothing is left to evaluate on; put blank lines "
            "between the documents of a .txt file, or say text_unit='line'"
        )
    border = np.clip(_border(eval_fraction), distinct[0] + np.uint64(1), distinct[-1])
    return keys < border


def _border(eval_fraction: float) -> np.uint64:
    return np.uint64(int(eval_fraction * 2**64))


def _sample(rows: np.ndarray, keys: np.ndarray, num_rows: int) -> np.ndarray:
    """At most `num_rows` of the rows, chosen by hash, in their order."""
    # The low bits: the split has the high ones, and a sample by these would be all held out.
    chosen = np.argsort(keys << np.uint64(32), kind="stable")[:num_rows]
    return rows[np.sort(chosen)]


def _select(dataset: datasets.Dataset, rows: np.ndarray) -> datasets.Dataset:
    return dataset if len(rows) == len(dataset) else dataset.select(rows)


def _split_stream(
    source: str,
    splits: dict[str, Any],
    eval_fraction: float,
    seed: int,
    max_documents: int | None,
) -> datasets.IterableDatasetDict:
    border = int(_border(eval_fraction))
    if "eval" in splits:
        parts = {
            name: part.filter(_has_text, input_columns="text") for name, part in splits.items()
        }
        if max_documents is not None:
            num_eval = max(1, round(max_documents * eval_fraction))
            parts["eval"] = parts["eval"].take(num_eval)
            parts["train"] = parts["train"].take(max_documents - num_eval)
    else:
        documents = splits["train"].filter(_has_text, input_columns="text")
        if max_documents is not None:
            documents = documents.take(max_documents)
        parts = {
            name: documents.filter(
                _is_on_side,
                input_columns="text",
                fn_kwargs={"seed": seed, "border": border, "is_eval": name == "eval"},
            )
            for name in ("train", "eval")
        }
    for name, part in parts.items():
        if next(iter(part), None) is None:
            raise ValueError(
                f"{source!r} has no document with text for {name!r} (eval_fraction is "
                f"{eval_fraction}); a small corpus is better read without streaming"
            )
    return datasets.IterableDatasetDict(**parts)


def _has_text(text: str | None) -> bool:
    return bool(text) and not str(text).isspace()


def _is_on_side(text: str, seed: int, border: int, is_eval: bool) -> bool:
    return (_hash(text, seed) < border) == is_eval
