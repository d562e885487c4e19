"""Documents -> a memory-mapped `datasets.Dataset`, written once and found again by its key."""

import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import config

TEXT = datasets.Features({"text": datasets.Value("string")})
AnyDataset = datasets.Dataset | datasets.IterableDataset
PathLike = str | os.PathLike[str]
_ROWS_PER_BATCH = 1000


def cached_documents(
    name: str, key: str, make: Callable[[], Iterable[str]], cache_dir: PathLike | None
) -> datasets.Dataset:
    """`Dataset.from_dict({"text": list(make())})`, kept on disk under `name` and `key`.

    The file appears whole or not at all, so a run that was stopped and several processes at once do
    no harm. Where nothing can be written, the documents stay in memory and a warning says so.

    Args:
        name: what the documents are, for people who look into the folder.
        key: hexadecimal digits that change whenever the documents may have changed.
        make: gives the documents; called only when they are not on disk.
        cache_dir: the folder; None is the cache of `datasets` (`HF_DATASETS_CACHE`).
    """
    folder = Path(cache_dir or config.HF_DATASETS_CACHE) / "hf_tfopt"
    path = folder / f"{name}-{key}.arrow"
    if path.exists():
        try:
            return datasets.Dataset.from_file(str(path))
        except (pa.ArrowException, OSError) as error:
            warnings.warn(f"{path} cannot be read and is made again: {error}", stacklevel=2)
    temporary = folder / f".{name}-{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    except OSError as error:
        warnings.warn(f"{name} is not cached on disk: {error}", stacklevel=2)
        return datasets.Dataset.from_dict({"text": list(make())}, features=TEXT)
    try:
        with file:
            _write(file, make())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return datasets.Dataset.from_file(str(path))


def _write(file: object, documents: Iterable[str]) -> None:
    schema = TEXT.arrow_schema
    with pa.ipc.new_stream(file, schema) as writer:
        for rows in _batches(documents):
            writer.write_batch(pa.record_batch([pa.array(rows, pa.string())], schema=schema))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(documents)
    while rows := list(islice(iterator, _ROWS_PER_BATCH)):
        yield rows
