"""Lengths of rows, from Arrow or asked for; what says them wrongly is refused."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.data.row_lengths import padded_rows, row_lengths

LENGTHS = [3, 1, 0, 7, 2, 2, 5]
IDS = [list(range(n)) for n in LENGTHS]


def dataset(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": IDS, **columns})


def in_chunks(chunks: list[list[list[int]]], kind: pa.DataType) -> datasets.Dataset:
    column = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    return datasets.Dataset(pa.table({"input_ids": column}))


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32())], ids=str)
def test_through_chunks_slices_and_an_indices_mapping(kind: pa.DataType) -> None:
    whole = in_chunks([IDS[:2], [], IDS[2:]], kind)
    assert whole.data.column("input_ids").num_chunks == 3
    selected = whole.shuffle(seed=1).select([5, 0, 3, 3])
    part = datasets.Dataset(whole.data.slice(1, 4))
    for each in (whole, selected, part, whole.with_format("torch"), tfo.ArrowRows(selected)):
        plain = [len(row["input_ids"]) for row in each]
        assert row_lengths(each).tolist() == plain
        assert row_lengths(each).dtype == np.int64


def test_lists_of_one_size_and_no_rows_at_all() -> None:
    fixed = in_chunks([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(pa.int64(), 2))
    assert row_lengths(fixed).tolist() == [2, 2, 2]
    assert row_lengths(fixed.select([])).tolist() == []


def test_from_disk_nothing_but_offsets_is_made_a_list(tmp_path: Path, monkeypatch: Any) -> None:
    dataset().save_to_disk(tmp_path)
    loaded = datasets.load_from_disk(tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("a row was read")

    monkeypatch.setattr(datasets.Dataset, "__getitem__", refuse)
    assert row_lengths(loaded).tolist() == LENGTHS


def test_other_datasets_are_asked() -> None:
    plain = [{"input_ids": ids} for ids in IDS]
    tensors = [{"input_ids": torch.tensor(ids)} for ids in IDS]
    subset = torch.utils.data.Subset(dataset(), [3, 0])
    for each in (plain, tensors):
        assert row_lengths(each).tolist() == LENGTHS
    assert row_lengths(subset).tolist() == [7, 3]


def test_a_transform_makes_the_rows() -> None:
    halves = dataset().with_transform(
        lambda batch: {"input_ids": [row[: len(row) // 2] for row in batch["input_ids"]]}
    )
    assert row_lengths(halves).tolist() == [n // 2 for n in LENGTHS]


def test_a_column_may_say_them() -> None:
    assert row_lengths(dataset(size=LENGTHS), "size").tolist() == LENGTHS
    rows = [{"size": n} for n in LENGTHS]
    assert row_lengths(rows, "size").tolist() == LENGTHS
    text = datasets.Dataset.from_dict({"text": ["a", "b"], "size": [4, 9]})
    assert row_lengths(text.select([1]), "size").tolist() == [9]
    assert row_lengths(dataset(labels=[[0]] * 7), "labels").tolist() == [1] * 7


def test_numbers_are_taken_as_they_are() -> None:
    shorter = np.minimum(LENGTHS, 4).astype(np.uint8)
    assert row_lengths(dataset(), shorter).tolist() == shorter.tolist()
    assert row_lengths(dataset(), LENGTHS).dtype == np.int64


@pytest.mark.parametrize("is_arrow", [True, False])
def test_a_column_that_lies_is_noticed(is_arrow: bool) -> None:
    lies = dataset(length=[3, 1, 1, 7, 2, 9, 5])
    rows: Any = lies if is_arrow else list(lies)
    message = r"'length' lies for 2 of 7 rows: it says 1 for row 2, whose input_ids has 0"
    with pytest.raises(ValueError, match=message):
        row_lengths(rows, "length")


@pytest.mark.parametrize(
    ("made", "lengths", "message"),
    [
        (lambda: dataset(), "inputs", r"no column 'inputs' \(did you mean 'input_ids'\?\)"),
        (lambda: dataset(text=["a"] * 7), "text", "'text' holds string: neither lists"),
        (lambda: dataset(x=[0.5] * 7), "x", "'x' holds double: neither lists"),
        (lambda: dataset(n=[1, None] * 3 + [1]), "n", "3 rows with no value"),
        (lambda: dataset(n=[3, 1, -1, 7, 2, 2, 5]), "n", "row 2 would have -1 tokens"),
        (lambda: dataset(), [1, 2], r"shape \(2,\) .* each of the 7 rows"),
        (lambda: dataset(), [0.5] * 7, "type float64; it must be one whole"),
        (lambda: dataset(), [-1] * 7, "row 0 would have -1 tokens"),
        (
            lambda: [{"ids": [1]}],
            None,
            r"row 0 of the dataset \(dict with ids\) has no 'input_ids'",
        ),
        (lambda: [([1], 0)], None, r"row 0 of the dataset \(tuple\) has no 'input_ids'"),
        (lambda: [{"input_ids": torch.ones(1, 4)}], None, "with 2 dimensions"),
        (lambda: [{"input_ids": "text"}], None, "type str"),
        (lambda: [{"input_ids": None}], None, "type NoneType"),
        (lambda: dataset(x=[[[1], [2]]] * 7), "x", "lists of lists"),
        (lambda: [{"input_ids": [[1, 2], [3]]}], None, "list with 2 dimensions"),
        (lambda: [{"input_ids": [torch.ones(2)]}], None, "list with 2 dimensions"),
        (lambda: tfo.mix({"a": dataset()}), None, "Mixture.* are others in every epoch"),
    ],
)
def test_what_has_no_lengths_is_refused(made: Any, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_lengths(made(), lengths)


def test_padded_rows_are_found_at_either_end() -> None:
    masks = [[1, 1, 0], [1, 1, 1], [], [0, 1, 1], [1, 0, 1]]
    plain = datasets.Dataset.from_dict({"attention_mask": masks[:3]})
    whole = datasets.concatenate_datasets(
        [plain, datasets.Dataset.from_dict({"attention_mask": masks[3:]})]
    )
    assert padded_rows(whole).tolist() == [0, 3]
    assert padded_rows(tfo.ArrowRows(whole.select([4, 3, 1]))).tolist() == [1]
    unseen = (dataset(), list(whole), dataset(attention_mask=["a"] * 7), whole.select([]))
    for each in unseen:
        assert padded_rows(each).tolist() == []
