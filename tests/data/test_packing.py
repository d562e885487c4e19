"""Packing loses nothing, mixes nothing, and leaves hardly a place empty."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from hf_tfopt.data import packing
from hf_tfopt.data.packing import best_fit, fullness, pack, segment_lengths
from tests.references.packing import plain_best_fit


def realistic_lengths(num_examples: int, seed: int = 0, longest: int = 512) -> np.ndarray:
    """Lognormal with a median of 100 tokens, cut like tokenized documents are."""
    print("seed", seed)
    draws = np.random.default_rng(seed).lognormal(np.log(100), 0.9, num_examples)
    return np.clip(draws.astype(int), 4, longest)


def examples(lengths: np.ndarray, **columns: Any) -> datasets.Dataset:
    """Token ids that tell their example and their place in it."""
    ids = [[1000 * i + place for place in range(n)] for i, n in enumerate(lengths)]
    return datasets.Dataset.from_dict({"input_ids": ids, **columns})


def unpacked(packed: datasets.Dataset, column: str = "input_ids") -> list[tuple[int, ...]]:
    found = []
    for row in packed:
        ends = np.cumsum(segment_lengths(np.array(row["position_ids"])))
        found += [tuple(part) for part in np.split(np.array(row[column]), ends[:-1])]
    return sorted(found)


def originals(dataset: datasets.Dataset, column: str = "input_ids") -> list[tuple[int, ...]]:
    return sorted(tuple(row) for row in dataset[column])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("capacity", [1, 7, 64, 500])
def test_best_fit_equals_the_plain_loop(seed: int, capacity: int) -> None:
    print("seed", seed)
    lengths = np.random.default_rng(seed).integers(1, capacity + 1, 200)
    ours = [row.tolist() for row in best_fit(lengths, capacity)]
    assert ours == plain_best_fit(lengths.tolist(), capacity)


def test_best_fit_of_nothing_is_no_rows() -> None:
    assert best_fit(np.array([], dtype=int), 8) == []


def test_best_fit_of_100k_examples_is_full() -> None:
    lengths = realistic_lengths(100_000)
    rows = best_fit(lengths, 512)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(lengths)))
    totals = np.array([lengths[row].sum() for row in rows])
    assert totals.max() <= 512
    assert totals.sum() / (512 * len(rows)) >= 0.999


@pytest.mark.parametrize("seed", range(3))
def test_rows_hold_whole_examples_and_are_full(seed: int) -> None:
    dataset = examples(realistic_lengths(2000, seed))
    rows = pack(dataset, 512)
    assert rows.column_names == ["input_ids", "position_ids"]
    assert unpacked(rows) == originals(dataset)
    assert fullness(rows, 512) >= 0.98
    assert fullness(dataset, 512) < 0.4
    assert all(p == ids % 1000 for row in rows for p, ids in _zipped(row))


def _zipped(row: dict[str, list[int]]) -> list[tuple[int, np.int64]]:
    return list(zip(row["position_ids"], np.array(row["input_ids"]), strict=True))


def test_the_order_of_rows_is_fixed_by_the_seed_and_free_of_length() -> None:
    dataset = examples(realistic_lengths(500))
    rows, again, other = pack(dataset, 512), pack(dataset, 512), pack(dataset, 512, seed=1)
    assert rows[:] == again[:]
    assert rows._fingerprint == again._fingerprint != other._fingerprint
    assert rows[:] != other[:]
    assert unpacked(rows) == unpacked(other)
    longest = [max(row) for row in rows["position_ids"]]
    steps = np.sign(np.diff(longest))
    assert (steps > 0).sum() > 0.2 * len(steps)  # falling nearly always if still sorted
    assert (steps < 0).sum() > 0.2 * len(steps)


def test_columns_by_token_go_along_and_others_stay_behind() -> None:
    lengths = np.array([3, 5, 2, 4])
    types = [[i % 2] * n for i, n in enumerate(lengths)]
    words = [[None, *range(n - 2), None] for n in lengths]
    ones = [[1] * n for n in lengths]
    dataset = examples(
        lengths, token_type_ids=types, word_ids=words, attention_mask=ones, text=list("abcd")
    )
    rows = pack(dataset, 8)
    assert set(rows.column_names) == {"input_ids", "position_ids", "token_type_ids", "word_ids"}
    assert unpacked(rows, "token_type_ids") == originals(dataset, "token_type_ids")
    filled = sorted(tuple(-1 if w is None else w for w in word) for word in words)
    assert unpacked(rows, "word_ids") == filled
    assert pack(dataset, 8, columns=()).column_names == ["input_ids", "position_ids"]


def test_labels_go_along_where_they_are_of_tokens() -> None:
    lengths = np.array([3, 5, 2, 4])
    labels = [[-100, *range(n - 1)] for n in lengths]
    rows = pack(examples(lengths, labels=labels), 8)
    assert unpacked(rows, "labels") == sorted(map(tuple, labels))
    others = ([0, 1, 0, 1], [[0.0, 1.0]] * 4, [["O"] * n for n in lengths], [[[1]]] * 4)
    for labels in others:  # of examples, several at once, names, nested
        assert "labels" not in pack(examples(lengths, labels=labels), 8).column_names


def test_a_selection_a_shuffle_and_many_chunks_are_honoured() -> None:
    dataset = examples(realistic_lengths(300, longest=60))
    parts = [dataset.select(range(0, 100)), dataset.select(range(200, 300))]
    chunked = datasets.concatenate_datasets([*parts, dataset.select([150, 3])]).shuffle(seed=0)
    assert chunked.data.column("input_ids").num_chunks > 1
    for chosen in (chunked, dataset.select([5, 5, 17]), dataset.shuffle(seed=1).select(range(50))):
        assert unpacked(pack(chosen, 64)) == originals(chosen)


@pytest.mark.parametrize("kind", [pa.large_list(pa.int64()), pa.list_(pa.uint16(), 3)])
def test_every_kind_of_arrow_list_is_read(kind: pa.DataType) -> None:
    column = pa.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], kind).slice(1)
    dataset = datasets.Dataset(pa.table({"input_ids": column}))
    assert unpacked(pack(dataset, 4)) == [(4, 5, 6), (7, 8, 9)]


def test_groups_lose_nothing_and_are_equally_full(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = examples(realistic_lengths(3000)).shuffle(seed=0)
    monkeypatch.setattr(packing, "_TOKENS_PER_GROUP", 1)
    monkeypatch.setattr(packing, "_ROWS_PER_GROUP", 100)
    rows = pack(dataset, 512)
    assert rows.data.column("input_ids").num_chunks == round(
        sum(map(len, dataset["input_ids"])) / 51200
    )
    assert unpacked(rows) == originals(dataset)
    assert fullness(rows, 512) >= 0.98
    first = rows[: len(rows) // 20]["input_ids"]
    of_examples = {i // 1000 for row in first for i in row}
    group = {ids[0] // 1000 for ids in dataset[: len(dataset) // 5]["input_ids"]}
    assert of_examples <= group  # reads of a row are close together on disk


def test_rows_can_be_saved_and_read_again(tmp_path: Any) -> None:
    rows = pack(examples(realistic_lengths(50)), 512)
    rows.save_to_disk(tmp_path / "rows")
    assert datasets.load_from_disk(tmp_path / "rows")[:] == rows[:]


SHORT = examples(np.array([3, 5]))


@pytest.mark.parametrize(
    ("dataset", "max_length", "words"),
    [
        (SHORT, 4, ["1 of 2 examples", "example 1 with 5", "tokenize with max_length=4"]),
        (SHORT, 0, ["at least 1 token", "0"]),
        (SHORT.select([]), 8, ["nothing to pack"]),
        (SHORT.rename_column("input_ids", "input_id"), 8, ["did you mean 'input_id'", "tokenize"]),
        (datasets.DatasetDict(train=SHORT), 8, ["DatasetDict", "splits['train']"]),
        (datasets.Dataset.from_dict({"input_ids": ["a b"]}), 8, ["not lists"]),
        (datasets.Dataset.from_dict({"input_ids": [[0.5, 1.0]]}), 8, ["double", "token ids"]),
        (datasets.Dataset.from_dict({"input_ids": [[1, None]]}), 8, ["missing values", "row 0"]),
        (datasets.Dataset.from_dict({"input_ids": [[1], None]}), 8, ["missing", "example 1"]),
        (datasets.Dataset.from_dict({"input_ids": [[1], []]}), 8, ["empty", "example 1"]),
        (
            SHORT.add_column("attention_mask", [[1, 1, 0], [1] * 5]),
            8,
            ["padded", "example 0", "padding=False"],
        ),
        (SHORT.add_column("token_type_ids", [[0, 0], [0] * 5]), 8, ["'token_type_ids'", "per tok"]),
        (SHORT.add_column("labels", [[0, 1], [1, 0]]), 8, ["'labels'", "columns=[...]"]),
        (pack(SHORT, 8), 16, ["packed already"]),
        (datasets.Dataset.from_dict({"input_ids": [[1], [2, -100]]}), 8, ["example 1", "-100"]),
        (SHORT.with_transform(lambda batch: batch), 8, ["transform", "dataset.map"]),
    ],
)
def test_what_cannot_be_packed_is_refused(dataset: Any, max_length: int, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        pack(dataset, max_length)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_a_bad_row_of_a_selection_is_named_and_one_left_out_does_no_harm() -> None:
    rows = [[1], [2], [3, None], [4], [-5], [6], None, []]
    dataset = datasets.Dataset.from_dict({"input_ids": rows})
    for chosen, words in (([5, 4, 0], "example 1 .*-5"), ([0, 1, 3, 2], r"\(row 3\)")):
        with pytest.raises(ValueError, match=words):
            pack(dataset.select(chosen), 4)
    assert unpacked(pack(dataset.select([5, 0, 3]), 4)) == [(1,), (4,), (6,)]
