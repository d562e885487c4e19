"""Files on this machine -> documents: .txt, .jsonl, .json, .csv, .parquet, a folder or a glob."""

import codecs
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError

from hf_tfopt.data.document_cache import TEXT, AnyDataset, PathLike, cached_documents
from hf_tfopt.registry import check_name, nearest

TextUnit = Literal["paragraph", "line", "file"]

LOADERS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}

_TRAIN, _VALIDATION, _TEST = {"train"}, {"validation", "valid", "val", "dev"}, {"test"}
_CHECKED_WHEN_STREAMING = 1 << 20  # bytes


def find_files(source: str) -> list[Path] | None:
    """The files that a path, folder or glob names, sorted; None if it looks like no path at all.

    Raises:
        FileNotFoundError: it looks like a path, and nothing is there.
        ValueError: a folder or glob without a file that can be read, or a file of an unknown kind.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [
            p
            for p in path.rglob("*")
            if p.suffix.lower() in LOADERS and p.is_file() and not _is_hidden(p.relative_to(path))
        ]
    elif path.exists():
        found = [path]
    elif any(character in source for character in "*?["):
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    elif _looks_like_path(path, source):
        raise FileNotFoundError(f"no such file or folder: {source!r}{_nearest_path(path)}")
    else:
        return None
    if not found:
        raise ValueError(f"no {', '.join(LOADERS)} file in {source!r}")
    for file in found:
        if file.suffix.lower() not in LOADERS:
            raise ValueError(
                f"{file} is not a kind of file that is read here: {', '.join(LOADERS)}"
                f"{nearest(file.suffix, LOADERS)}"
            )
    return sorted(found)


def split_by_name(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by split: train, and eval where the names of files or their folders say so.

    Only where one is marked `train`, as in `train.txt`, `wiki.train.txt` or `train/0.txt`. Those
    marked `validation`, `valid`, `val` or `dev` are eval, or else those marked `test`; a `test`
    beside a `validation` is left alone, so that it stays unseen.
    """
    marks = {f: {f.parent.name, *re.split(r"[\W_]+", f.stem.lower())} for f in files}
    train, validation, test = (
        [f for f in files if marks[f] & words] for words in (_TRAIN, _VALIDATION, _TEST)
    )
    held_out = validation or test
    if not train or not held_out or set(train) & {*validation, *test}:
        return {"train": list(files)}
    return {"train": [f for f in files if f not in {*validation, *test}], "eval": held_out}


def read_files(
    files: Sequence[Path],
    text_column: str,
    text_unit: TextUnit,
    streaming: bool,
    cache_dir: PathLike | None,
) -> AnyDataset:
    """The documents of some files, in their order by kind, in the column "text"."""
    check_name("text_unit", text_unit, get_args(TextUnit))
    by_loader: dict[str, list[str]] = {}
    for file in files:
        loader = LOADERS[file.suffix.lower()]
        if loader == "parquet":
            _check_parquet(file, text_column)
        else:
            check_utf8(file, _CHECKED_WHEN_STREAMING if streaming else None)
        if file.stat().st_size:
            by_loader.setdefault(loader, []).append(str(file.resolve()))
    parts: Any = [
        _read_text(paths, text_unit, streaming, cache_dir)
        if loader == "text"
        else _read_table(loader, paths, text_column, streaming, cache_dir)
        for loader, paths in by_loader.items()
    ]
    if not parts:
        raise ValueError(f"nothing but empty files: {', '.join(str(f) for f in files[:5])}")
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def check_utf8(file: Path, num_bytes: int | None = None) -> None:
    """Raise ValueError with the byte offset if a file is not text in UTF-8.

    Args:
        file: the file.
        num_bytes: how far to look; None is the whole file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            num_pending = len(decoder.getstate()[0])
            if b"\0" in chunk:
                offset += chunk.index(b"\0")
                raise ValueError(f"{file} is binary, not text: a zero byte at byte {offset}")
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset - num_pending + error.start) from error
            offset += len(chunk)
            if num_bytes is not None and offset >= num_bytes:
                return
    if decoder.getstate()[0]:
        raise _not_utf8(file, offset - len(decoder.getstate()[0]))


def check_column(text_column: str, columns: Iterable[str], file: Path | None = None) -> None:
    """Raise ValueError with the columns there are if `text_column` is none of them."""
    columns = [str(column) for column in columns]
    if text_column not in columns:
        raise ValueError(
            f"no column {text_column!r}{f' in {file}' if file else ''}"
            f"{nearest(text_column, columns)}; columns: {', '.join(c[:40] for c in columns)}"
        )


def text_documents(paths: Iterable[str], text_unit: TextUnit) -> Iterator[str]:
    """The documents of .txt files.

    Args:
        paths: the files, in UTF-8, with or without a byte order mark.
        text_unit: "paragraph": blank lines stand between documents; "line": every line that is not
            blank is one; "file": every file is one.
    """
    for path in paths:
        with open(path, encoding="utf-8-sig") as file:
            if text_unit == "file":
                yield file.read().strip()
                continue
            block: list[str] = []
            for line in file:
                if block and (text_unit == "line" or not line.strip()):
                    yield "\n".join(block)
                    block = []
                if line.strip():
                    block.append(line.strip())
            if block:
                yield "\n".join(block)


def only_text(dataset: AnyDataset, text_column: str) -> AnyDataset:
    """The dataset with its text column alone, named "text"; ValueError if it has no such column."""
    features: Mapping[str, Any] | None = dataset.features
    if features is None:  # a stream says nothing before its first row
        row = next(iter(dataset), {text_column: ""})
        check_column(text_column, row)
        dtype = (
            "string"
            if isinstance(row[text_column], str | None)
            else type(row[text_column]).__name__
        )
    else:
        check_column(text_column, features)
        dtype = str(getattr(features[text_column], "dtype", features[text_column]))
    if "string" not in dtype:
        raise ValueError(f"column {text_column!r} holds {dtype}, not text")
    dataset = dataset.select_columns([text_column])
    if text_column != "text":
        dataset = dataset.rename_column(text_column, "text")
    return dataset if dataset.features == TEXT else dataset.cast(TEXT)


def _read_text(
    paths: list[str], text_unit: TextUnit, streaming: bool, cache_dir: PathLike | None
) -> AnyDataset:
    if streaming:
        options = {"paths": paths, "text_unit": [text_unit] * len(paths)}
        return datasets.IterableDataset.from_generator(_rows, features=TEXT, gen_kwargs=options)
    digest = hashlib.sha256(text_unit.encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    documents = partial(text_documents, paths, text_unit)
    return cached_documents("text", digest.hexdigest()[:16], documents, cache_dir)


def _rows(paths: list[str], text_unit: list[TextUnit]) -> Iterator[dict[str, str]]:
    """A stream's rows; one value per file, because `datasets` deals lists out to workers."""
    for path, unit in zip(paths, text_unit, strict=True):
        for document in text_documents([path], unit):
            yield {"text": document}


def _read_table(
    loader: str, paths: list[str], text_column: str, streaming: bool, cache_dir: PathLike | None
) -> AnyDataset:
    # "NA" and "null" are words, where pandas reads them as nothing
    options: dict[str, Any] = {"keep_default_na": False} if loader == "csv" else {}
    try:
        dataset: Any = datasets.load_dataset(
            loader,
            data_files=paths,
            split="train",
            streaming=streaming,
            cache_dir=str(cache_dir) if cache_dir else None,
            **options,
        )
        return only_text(dataset, text_column)
    except DatasetGenerationError as error:
        raise ValueError(f"{', '.join(paths[:5])} cannot be read: {_innermost(error)}") from error


def _check_parquet(file: Path, text_column: str) -> None:
    try:
        columns: list[str] = pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file: {error}") from error
    check_column(text_column, columns, file)


def _not_utf8(file: Path, offset: int) -> ValueError:
    with file.open("rb") as handle:
        handle.seek(offset)
        value = handle.read(1).hex()
    return ValueError(f"{file} is not text in UTF-8: byte {offset} is 0x{value}; save it as UTF-8")


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _looks_like_path(path: Path, source: str) -> bool:
    separators = source.count("/") + source.count("\\")
    return (
        path.is_absolute()
        or source.startswith((".", "~"))
        or separators > 1
        or path.suffix.lower() in LOADERS
        or (separators == 1 and path.parent.exists())
    )


def _nearest_path(path: Path) -> str:
    """The hint with the entry of the last folder that is there which is most like what is not."""
    parent = path.parent
    missing = path.name
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    hint = nearest(missing, sorted(os.listdir(parent)))
    return f" in {parent}{hint}" if hint else ""
