"""Texts with labels, from a file or a dataset's name, as they are trained on."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_tfopt.data.document_cache import PathLike
from hf_tfopt.data.local_files import check_column, check_utf8
from hf_tfopt.registry import nearest

LOADERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}


def load_labelled(
    source: PathLike,
    *,
    text_column: str = "text",
    label_column: str = "label",
    columns: Sequence[str] | None = None,
    split: str = "train",
) -> datasets.Dataset:
    """Labelled texts: a dataset with "text" and "label", in the order of the source.

    Args:
        source: a `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` file, or the name of a dataset on
            the Hugging Face Hub, `name` or `name:configuration`.
        text_column: where the text is.
        label_column: where the label is; whole numbers or names.
        columns: names of the columns of a .csv or .tsv file without a heading line.
        split: of a dataset by name.

    Raises:
        FileNotFoundError: `source` looks like a file, and is none.
        ValueError: a kind of file that is not read, no such column, a row without text or label.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if columns is not None:
        check_column(text_column, columns)
        check_column(label_column, columns)
    if path.is_file() or suffix in LOADERS or path.is_absolute():
        dataset = _read_file(path, columns)
    else:
        dataset = _read_hub(os.fspath(source), split)
    for column in (text_column, label_column):
        check_column(column, dataset.column_names, path if path.is_file() else None)
    dataset = dataset.select_columns([text_column, label_column])
    for column, name in ((text_column, "text"), (label_column, "label")):
        if column != name:
            dataset = dataset.rename_column(column, name)
    _check_rows(source, dataset)
    return dataset


def _read_file(path: Path, columns: Sequence[str] | None) -> Any:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}")
    if suffix not in LOADERS:
        raise ValueError(
            f"{path} is not a kind of file that is read here: {', '.join(LOADERS)}"
            f"{nearest(suffix, LOADERS)}"
        )
    options: dict[str, Any] = {}
    if LOADERS[suffix] == "csv":
        check_utf8(path)
        # "NA" and "null" are words; in a .tsv a quotation mark is one too
        options = {"keep_default_na": False, "sep": "\t" if suffix == ".tsv" else ","}
        options |= {"quoting": 3} if suffix == ".tsv" else {}
        options |= {"names": list(columns), "header": None} if columns else {}
    elif columns:
        raise ValueError(f"columns: {path} names its columns itself; leave them out")
    try:
        return datasets.load_dataset(
            LOADERS[suffix], data_files=str(path.resolve()), split="train", **options
        )
    except DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error


def _read_hub(source: str, split: str) -> Any:
    name, _, configuration = source.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None, split=split)
    except (DatasetNotFoundError, DatasetGenerationError, OSError) as error:
        raise ValueError(
            f"{source!r} is no file, and the Hub did not give it as a dataset: {error}"
        ) from error


def _check_rows(source: PathLike, dataset: datasets.Dataset) -> None:
    """Refuse rows that would be trained on as something else than they are."""
    if not len(dataset):
        raise ValueError(f"{source} has no rows")
    for row, (text, label) in enumerate(zip(dataset["text"], dataset["label"], strict=True)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{source}: row {row} has {text!r} where its text should be")
        if label is None or label == "" or isinstance(label, float):
            raise ValueError(
                f"{source}: row {row} has the label {label!r}; classes are whole numbers or names"
            )


def label_names(labels: Sequence[int | str]) -> list[str]:
    """The classes' names in the order of their numbers: names by the alphabet, numbers from 0.

    Raises:
        ValueError: a single class, or numbers that leave one out.
    """
    found = sorted(Counter(labels))
    if len(found) < 2:
        raise ValueError(f"there is one class only, {found}: nothing can be learnt from it")
    if isinstance(found[0], int) and found != list(range(len(found))):
        raise ValueError(
            f"the labels are {', '.join(map(str, found[:10]))}: classes are numbered from 0 "
            "without gaps, or have names"
        )
    names, numbers = [str(name) for name in found], [str(place) for place in range(len(found))]
    return numbers if set(names) == set(numbers) else names  # "10" is no earlier than "2"


def numbered(dataset: datasets.Dataset, names: Sequence[str], source: PathLike) -> datasets.Dataset:
    """The dataset with each label as its place among `names`.

    Raises:
        ValueError: a label that is not among them.
    """
    places = {name: place for place, name in enumerate(names)}

    def place(label: int | str) -> dict[str, int]:
        if str(label) not in places:
            known = ", ".join(names[:10])
            raise ValueError(
                f"{source}: label {label!r} is not among those of the training rows"
                f"{nearest(str(label), names)}; they are {known}"
            )
        return {"label": places[str(label)]}

    features = datasets.Features({**dataset.features, "label": datasets.Value("int64")})
    return dataset.map(place, input_columns="label", features=features, desc="Labels")
