"""Streams packed a buffer at a time, against the packing of a dataset."""

from typing import Any

import datasets
import numpy as np
import pytest
from tokenizers.pre_tokenizers import WhitespaceSplit

import hf_tfopt as tfo
from hf_tfopt.data.segments import segment_lengths
from hf_tfopt.data.streaming import pack_examples
from tests.data.test_collators import examples, make_model, make_tokenizer
from tests.references.packing import plain_best_fit

Rows = list[dict[str, Any]]


def stream_of(dataset: datasets.Dataset, num_shards: int = 3) -> datasets.IterableDataset:
    return dataset.to_iterable_dataset(num_shards)


def documents(rows: Rows) -> list[tuple[int, ...]]:
    """The examples of all rows, in an order of their own."""
    found: list[tuple[int, ...]] = []
    for row in rows:
        ends = np.cumsum(segment_lengths(np.asarray(row["position_ids"])))[:-1]
        found += [tuple(part.tolist()) for part in np.split(np.asarray(row["input_ids"]), ends)]
    return sorted(found)


def comparable(rows: Rows) -> list[dict[str, list[int]]]:
    return [{name: np.asarray(v).tolist() for name, v in row.items()} for row in rows]


def test_rows_of_a_buffer_are_those_of_best_fit() -> None:
    dataset = examples(40)
    lists = dataset["input_ids"][:]
    found = pack_examples({"input_ids": lists}, 64)
    rows = [
        {name: column[i] for name, column in found.items()} for i in range(len(found["input_ids"]))
    ]
    plain = plain_best_fit([len(ids) for ids in lists], 64)
    expected = [[token for example in row for token in lists[example]] for row in plain]
    assert sorted(row["input_ids"].tolist() for row in rows) == sorted(expected)
    assert [row["input_ids"].tolist() for row in rows] != expected, "not in the order of lengths"
    assert rows[0]["position_ids"].dtype == np.int32


@pytest.mark.parametrize("buffer", [1, 7, 100])
def test_no_example_is_lost_or_cut(buffer: int) -> None:
    dataset = examples(50).add_column("word_ids", [[None, *range(3)] for _ in range(50)])
    dataset = dataset.map(lambda row: {"word_ids": [None, *range(len(row["input_ids"]) - 1)]})
    packed = tfo.pack_stream(stream_of(dataset), 64, buffer=buffer)
    rows = list(packed)
    assert documents(rows) == sorted(tuple(ids) for ids in dataset["input_ids"])
    for row in rows:
        assert len(row["input_ids"]) == len(row["position_ids"]) == len(row["word_ids"]) <= 64
        position = np.where(row["position_ids"] == 0, -1, row["position_ids"] - 1)
        assert row["word_ids"].tolist() == position.tolist()
    assert comparable(rows) == comparable(list(packed)), "the same when it is read again"
    other = tfo.pack_stream(stream_of(dataset), 64, buffer=buffer, seed=1)
    assert documents(list(other)) == documents(rows)
    if buffer == 100:
        assert comparable(list(other)) != comparable(rows)


def test_passes_have_the_shards_in_another_order() -> None:
    packed = tfo.pack_stream(stream_of(examples(50), 5), 64, buffer=10)
    first = list(packed)
    packed.set_epoch(1)
    second = list(packed)
    assert comparable(first) != comparable(second)
    assert documents(first) == documents(second)


def test_rows_are_full() -> None:
    """Text in buffers of 1000, each of which leaves a few rows unfilled (its own bound: 98%)."""
    seed = 0
    print("seed", seed)
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.5, 0.8, 4000).astype(int), 2, 256)
    dataset = datasets.Dataset.from_dict({"input_ids": [[7] * n for n in lengths.tolist()]})
    rows = list(tfo.pack_stream(stream_of(dataset), 256))
    assert sum(len(row["input_ids"]) for row in rows) == lengths.sum()
    assert lengths.sum() / (256 * len(rows)) > 0.98


def test_masks_are_those_of_the_packed_dataset() -> None:
    """A function of (seed, epoch, the example's content), wherever the example stands."""
    dataset, model = examples(30), make_model("bert", "sdpa")
    collator = tfo.MaskedLMCollator(make_tokenizer(), probability=0.3, model=model)

    def masked(rows: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        found = []
        for row in rows:
            batch = collator([row])
            ends = np.cumsum(segment_lengths(np.asarray(row["position_ids"])))
            parts = [np.split(batch[k][0].numpy(), ends)[:-1] for k in ("input_ids", "labels")]
            found += [(tuple(i.tolist()), tuple(t.tolist())) for i, t in zip(*parts, strict=True)]
        return sorted(found)

    collator.set_epoch(3)
    streamed = masked(tfo.pack_stream(stream_of(dataset), 64, buffer=8))
    assert streamed == masked(tfo.pack(dataset, 64))


def test_documents_to_rows() -> None:
    """`tokenize` and `pack_stream` one after the other, of which nothing is known in advance."""
    texts = {"text": [f"w{5 + i % 9 // 3 * 3 + 2} w7 w8 w10 w11" for i in range(40)]}
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    tokens = tfo.tokenize(stream_of(datasets.Dataset.from_dict(texts)), tokenizer, 16)
    rows = list(tfo.pack_stream(tokens, 32))
    expected = tfo.tokenize(datasets.Dataset.from_dict(texts), tokenizer, 16)
    assert documents(rows) == sorted(tuple(ids) for ids in expected["input_ids"])


@pytest.mark.parametrize("format_", [None, "numpy", "torch"])
def test_any_format_of_the_stream(format_: str | None) -> None:
    stream = stream_of(examples(30))
    rows = list(tfo.pack_stream(stream.with_format(format_), 64))
    assert comparable(rows) == comparable(list(tfo.pack_stream(stream, 64)))


def test_labels_go_along_where_they_are_of_tokens() -> None:
    dataset = examples(10)
    labels = [[-100, *row[1:]] for row in dataset["input_ids"]]
    rows = list(tfo.pack_stream(stream_of(dataset.add_column("labels", labels)), 64))
    assert sum((row["labels"] == -100).sum() for row in rows) == 10
    for others in ([1] * 10, [[0.0, 1.0]] * 10, [["O"] * len(row) for row in labels]):
        whole = list(tfo.pack_stream(stream_of(dataset.add_column("labels", others)), 64))
        assert "labels" not in whole[0]


def columns(**lists: list[Any]) -> datasets.IterableDataset:
    return stream_of(datasets.Dataset.from_dict(lists), 1)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (columns(input_ids=[[1, 2], [1] * 9]), "1 of 2 examples do not fit a row of 8 tokens"),
        (columns(input_ids=[[1, 2], []]), "1 of 2 examples .*leave them out"),
        (columns(input_ids=[[1, 2], None]), "no value"),
        (columns(input_ids=[[1.5], [2.5]]), "whole numbers"),
        (columns(input_ids=[5, 6]), "whole numbers"),
        (columns(input_ids=[[1, 0]], attention_mask=[[1, 0]]), "padding=False"),
        (columns(input_ids=[[1, 2]], word_ids=[[1]]), r"one value per token .*columns=\["),
        (columns(input_ids=[[1], [2]], labels=[None, [2]]), r"first example has no .*columns=\["),
        (columns(input_ids=[[1]], position_ids=[[0]]), "packed already"),
        (columns(input_id=[[1, 2]]), "no column 'input_ids' .*did you mean 'input_id'"),
        (columns(input_ids=[[1]]).filter(lambda row: False).map(dict), "has no examples"),
        (datasets.Dataset.from_dict({"input_ids": [[1]]}), "packed by pack"),
        ({"train": columns(input_ids=[[1]])}, "not a dict"),
    ],
)
def test_what_cannot_be_packed(stream: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(tfo.pack_stream(stream, 8))


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="max_length is 0"):
        tfo.pack_stream(columns(input_ids=[[1]]), 0)
    with pytest.raises(ValueError, match="buffer is 0"):
        tfo.pack_stream(columns(input_ids=[[1]]), 8, buffer=0)
