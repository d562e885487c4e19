"""ArrowRows gives the dataset's own rows, from the buffers."""

import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader
from transformers.trainer_utils import RemoveColumnsCollator

from hf_tfopt.data.columns import NO_WORD, Lists, open_column
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.native.build import SWITCH, library


def make_dataset(num_rows: int = 40, seed: int = 0) -> datasets.Dataset:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, num_rows)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [rng.integers(0, 100, n).tolist() for n in lengths],
            "token_type_ids": [[0] * n for n in lengths],
            "label": list(range(num_rows)),
            "text": [f"text {i}" for i in range(num_rows)],
        }
    )


def chunked(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same rows in a table of seven chunks, one of them empty."""
    table = dataset.data.table
    cuts = [0, 3, 3, 10, 11, 20, 39, 40]
    parts = [table.slice(a, b - a).to_batches() for a, b in pairwise(cuts)]
    columns = [
        pa.chunked_array([*(b.column(i) for part in parts for b in part)], table.schema.types[i])
        for i in range(table.num_columns)
    ]
    return datasets.Dataset(pa.Table.from_arrays(columns, names=table.column_names))


def on_disk(dataset: datasets.Dataset, folder: Path) -> datasets.Dataset:
    dataset.save_to_disk(folder, num_shards=3)
    return datasets.load_from_disk(folder)


VIEWS: dict[str, Any] = {
    "plain": lambda d, folder: d,
    "shuffled": lambda d, folder: d.shuffle(seed=1),
    "selected": lambda d, folder: d.select([5, 1, 1, 39, 0]),
    "slice": lambda d, folder: d.select(range(7, 31)),
    "slice of shuffled": lambda d, folder: d.shuffle(seed=2).select(range(10, 20)),
    "shard": lambda d, folder: d.shard(3, 1, contiguous=False),
    "chunks": lambda d, folder: chunked(d),
    "chunks shuffled": lambda d, folder: chunked(d).shuffle(seed=3),
    "concatenated": lambda d, folder: datasets.concatenate_datasets([d, d.shuffle(seed=4), d]),
    "filtered": lambda d, folder: d.filter(lambda row: row["label"] % 3 == 0),
    "on disk": lambda d, folder: on_disk(d, folder),
    "on disk shuffled": lambda d, folder: on_disk(d, folder).shuffle(seed=5),
    "torch format": lambda d, folder: d.with_format("torch"),
}


def assert_equal_rows(rows: list[Any], expected: list[dict[str, Any]]) -> None:
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert set(row) == set(wanted)
        for name, value in wanted.items():
            got = row[name].tolist() if isinstance(row[name], np.ndarray) else row[name]
            assert got == value


@pytest.mark.parametrize("view", VIEWS)
def test_rows_equal_those_of_the_dataset(view: str, tmp_path: Path) -> None:
    dataset = VIEWS[view](make_dataset(), tmp_path)
    rows, expected = ArrowRows(dataset), dataset.with_format(None)[:]
    expected = [
        {name: expected[name][i] for name in dataset.column_names} for i in range(len(dataset))
    ]
    assert_equal_rows(rows.__getitems__(list(range(len(dataset)))), expected)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    assert_equal_rows(rows.__getitems__(order), [expected[i] for i in order])
    assert_equal_rows([rows[-1]], [expected[-1]])
    assert_equal_rows(
        pickle.loads(pickle.dumps(rows)).__getitems__([2, 0]), [expected[2], expected[0]]
    )


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int16(), 4)]
)
def test_all_kinds_of_lists(kind: pa.DataType) -> None:
    values = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    column = pa.chunked_array([pa.array(values, kind)[1:], pa.array(values, kind)])
    rows = ArrowRows(datasets.Dataset(pa.table({"input_ids": column})))
    found = [row["input_ids"].tolist() for row in rows.__getitems__([0, 1, 2, 3, 4])]
    assert found == [*values[1:], *values]


def test_slices_are_views_that_cannot_be_written() -> None:
    rows = ArrowRows(make_dataset())
    values = next(row["input_ids"] for row in (rows[i] for i in range(40)) if len(row["input_ids"]))
    assert values.base is not None
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_the_hosts_column_remover_lets_rows_through() -> None:
    row = ArrowRows(make_dataset())[0]
    assert isinstance(row, Mapping)
    assert not isinstance(row, dict)
    through = RemoveColumnsCollator(lambda features: features, signature_columns=["label"])
    assert through([row]) == [row]


def test_columns() -> None:
    dataset = make_dataset()
    row = ArrowRows(dataset, columns=["label"])[3]
    assert dict(row) == {"label": 3}
    assert "label" in row and "text" not in row and len(row) == 1
    assert list(ArrowRows(dataset.with_format("numpy", columns=["text"]))[0]) == ["text"]
    with pytest.raises(ValueError, match="did you mean 'input_ids'"):
        ArrowRows(dataset, columns=["input_id"])


def test_word_ids_of_special_tokens() -> None:
    rows = ArrowRows(datasets.Dataset.from_dict({"word_ids": [[None, 0, 0, None]]}))
    assert rows[0]["word_ids"].tolist() == [NO_WORD, 0, 0, NO_WORD]


def test_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="'input_ids' has 1 missing values inside its lists"):
        ArrowRows(datasets.Dataset.from_dict({"input_ids": [[1, None]]}))
    with pytest.raises(ValueError, match="'input_ids' has 1 rows with no value"):
        ArrowRows(datasets.Dataset.from_dict({"input_ids": [[1], None]}))


def test_what_rows_would_skip_is_refused() -> None:
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"has a transform .* run it once with dataset\.map"):
        ArrowRows(dataset.with_transform(lambda batch: batch))
    with pytest.raises(ValueError, match="DatasetDict given"):
        ArrowRows(datasets.DatasetDict({"train": dataset}))  # type: ignore[arg-type]


def test_indices_out_of_range() -> None:
    rows = ArrowRows(make_dataset())
    for bad in ([40], [0, -41], [-1]):
        with pytest.raises(IndexError, match=r"is not in 0\.\.39"):
            rows.__getitems__(bad)
    with pytest.raises(IndexError):
        rows[40]


def test_workers() -> None:
    dataset = make_dataset().shuffle(seed=6)
    loader = DataLoader(
        ArrowRows(dataset, columns=["input_ids"]),
        batch_size=8,
        num_workers=1,
        collate_fn=lengths,
    )
    assert [n for batch in loader for n in batch] == [len(ids) for ids in dataset["input_ids"]]


def lengths(rows: list[Any]) -> list[int]:
    return [len(row["input_ids"]) for row in rows]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint16()])
@pytest.mark.parametrize("nested", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 5)])
def test_many_rows_come_flat(
    kind: Any, nested: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1" if compiled else "0")
    library.cache_clear()
    rng = np.random.default_rng(0)
    print("seed 0")
    fixed = pa.types.is_fixed_size_list(nested(kind))
    rows = [rng.integers(0, 128, 5 if fixed else rng.integers(0, 9)).tolist() for _ in range(50)]
    whole = pa.array(rows, nested(kind))
    for cuts in ([0, 50], [0, 3, 4, 4, 30, 50]):
        chunks = [whole.slice(a, b - a) for a, b in pairwise(cuts)]
        column = open_column("ids", pa.chunked_array(chunks))
        assert isinstance(column, Lists)
        wanted = rng.integers(0, 50, 20).tolist()
        found, bounds = column.flat(wanted)
        assert found.dtype == np.int64
        assert found.tolist() == [value for row in wanted for value in rows[row]]
        assert bounds.tolist() == np.cumsum([0, *(len(rows[row]) for row in wanted)]).tolist()
    library.cache_clear()
