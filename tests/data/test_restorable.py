"""A stream goes on behind any row it has given, and does so once more."""

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

import hf_tfopt as tfo
from hf_tfopt.data.restorable import (
    POSITION,
    GoingOn,
    Position,
    RestorableStream,
    WithPosition,
    digest_of,
    is_restorable,
    read_position,
)
from tests.data.test_collators import examples

Pairs = list[tuple[dict[str, Any], Position]]


class Counted:
    """A stream that counts the examples it is asked for, in this process."""

    def __init__(self, num_shards: int = 3) -> None:
        self.num_asked = 0
        self.stream = examples(90).to_iterable_dataset(num_shards).map(self._count)

    def _count(self, row: dict[str, Any]) -> dict[str, Any]:
        self.num_asked += 1
        return row


class Generated(IterableDataset):
    """A stream of nobody's, whose state cannot be had."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from examples(60)


def from_generator() -> datasets.IterableDataset:
    def rows(shards: list[int]) -> Iterator[dict[str, list[int]]]:
        for shard in shards:
            yield from ({"input_ids": [shard, number]} for number in range(30))

    shards = {"shards": [5, 6, 7]}
    return datasets.IterableDataset.from_generator(rows, FEATURES, gen_kwargs=shards)


def plain() -> datasets.IterableDataset:
    return examples(90).to_iterable_dataset(3)


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [ids for ids in batch["input_ids"] for _ in range(2)]}


FEATURES = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
STREAMS: dict[str, Callable[[], Any]] = {
    "arrow": plain,
    "numpy": lambda: plain().with_format("numpy"),
    "mapped": lambda: plain().map(lambda row: {"length": len(row["input_ids"])}),
    "batched": lambda: plain().map(doubled, batched=True, batch_size=7, features=FEATURES),
    "packed": lambda: tfo.pack_stream(plain(), 32, buffer=20),
    "packed twice mapped": lambda: tfo.pack_stream(
        plain().map(doubled, batched=True, batch_size=7), 32, buffer=20
    ),
    "filtered": lambda: plain().filter(lambda row: len(row["input_ids"]) % 3),
    "interleaved": lambda: datasets.interleave_datasets([plain(), from_generator()]),
    "drawn": lambda: datasets.interleave_datasets(
        [plain(), STREAMS["batched"]()], probabilities=[0.3, 0.7], seed=1
    ),
    "joined": lambda: datasets.concatenate_datasets([plain(), from_generator()]),
    "cut": lambda: plain().skip(5).take(60),
    "generator": from_generator,
    "shuffled shards": lambda: plain().shuffle(7, buffer_size=1),
    "shuffled": lambda: tfo.pack_stream(plain().shuffle(7, buffer_size=30), 32, buffer=20),
    "not of datasets": Generated,
}
NOT_RESTORABLE = {"shuffled", "not of datasets"}


def tracked(stream: Any, number: int, at: Position | None = None, digest: str = "") -> Pairs:
    found = RestorableStream(stream)
    found.begin(number, None if at is None else GoingOn(number, 0, {0: (at, digest)}))
    return list(found)


def comparable(pairs: Pairs) -> list[str]:
    return [digest_of(row) for row, _ in pairs]


@pytest.mark.invariant
@pytest.mark.parametrize("name", STREAMS)
def test_goes_on_behind_any_row_and_once_more(name: str) -> None:
    make = STREAMS[name]
    assert is_restorable(make()) == (name not in NOT_RESTORABLE)
    for number in (0, 2):
        whole = tracked(make(), number)
        given = make()
        if hasattr(given, "set_epoch"):
            given.set_epoch(number)
        assert comparable(whole) == [digest_of(row) for row in given]
        assert [position.num_read for _, position in whole] == [*range(1, len(whole) + 1)]
        for stop in (1, 16, 17, len(whole) - 1, len(whole)):
            row, position = whole[stop - 1]
            rest = tracked(make(), number, position, digest_of(row))
            assert comparable(rest) == comparable(whole)[stop:]
            assert [p.num_read for _, p in rest] == [p.num_read for _, p in whole[stop:]]
            if len(rest) > 1:
                row, position = rest[len(rest) // 2]
                last = tracked(make(), number, position, digest_of(row))
                assert comparable(last) == comparable(rest)[len(rest) // 2 + 1 :]


def test_little_is_read_again() -> None:
    """At most 16 rows, and the buffer that the first of them is in."""
    counted = Counted()
    stream = tfo.pack_stream(counted.stream, 32, buffer=10)
    counted.num_asked = 0
    whole = tracked(stream, 0)
    assert counted.num_asked == 90
    stop = 3 * len(whole) // 4
    row, position = whole[stop - 1]
    assert position.num_since <= 16
    again = whole[stop - position.num_since : stop]
    num_again = sum(int((row["position_ids"] == 0).sum()) for row, _ in again)
    num_left = sum(int((row["position_ids"] == 0).sum()) for row, _ in whole[stop:])
    counted.num_asked = 0
    tracked(stream, 0, position, digest_of(row))
    assert num_left + num_again <= counted.num_asked <= num_left + num_again + 10 < 90


def test_only_the_pass_that_was_broken_off_goes_on() -> None:
    stream = RestorableStream(plain())
    stream.begin(1)
    pairs = list(stream)
    row, position = pairs[19]
    stream.begin(1, GoingOn(1, 0, {0: (position, digest_of(row))}))
    assert comparable(list(stream)) == comparable(pairs)[20:]
    stream.begin(2)
    assert len(list(stream)) == 90
    stream.set_epoch(5)  # the host's word does not count
    assert comparable(list(stream)) == comparable(tracked(plain(), 2))
    stream.let_go()
    stream.set_epoch(1)
    assert [digest_of(row) for row in stream] == comparable(pairs)


@pytest.mark.parametrize("name", ["arrow", "shuffled", "not of datasets"])
def test_another_stream_is_noticed(name: str) -> None:
    whole = tracked(STREAMS[name](), 0)
    row, position = whole[20]
    with pytest.raises(ValueError, match="row 21 of pass 0 in worker 0"):
        tracked(examples(90, seed=1).to_iterable_dataset(3), 0, position, digest_of(row))
    with pytest.raises(ValueError, match="must be the same stream"):
        tracked(examples(5).to_iterable_dataset(1), 0, position, digest_of(row))


def test_a_state_that_does_not_lead_back_is_not_trusted() -> None:
    """As if `datasets` had restored it wrongly: the pass is read again from its begin."""
    whole = tracked(plain(), 0)
    row, position = whole[40]
    position = position._replace(state=whole[60][1].state)
    assert position.state
    assert comparable(tracked(plain(), 0, position, digest_of(row))) == comparable(whole)[41:]


@pytest.mark.invariant
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("is_persistent", [False, True])
def test_workers_go_on_in_turn(is_persistent: bool) -> None:
    """Three workers of unlike shards, stopped behind any batch; then the next pass."""

    def loader(going_on: GoingOn | None) -> Iterator[list[tuple[str, str]]]:
        stream = RestorableStream(tfo.pack_stream(plain(), 32, buffer=10))
        found = DataLoader(
            stream,
            batch_size=4,
            num_workers=3,
            persistent_workers=is_persistent,
            collate_fn=WithPosition(lambda rows: {"rows": [digest_of(row) for row in rows]}),
        )
        for number in (1, 2):
            stream.begin(number, going_on if number == 1 else None)
            yield [(batch["rows"], batch[POSITION]) for batch in found]

    first, second = loader(None)
    assert {read_position(text)[0].worker for _, text in first} == {0, 1, 2}
    for stop in (2, len(first) - 2):
        positions = {}
        for _, text in first[:stop]:
            position, digest = read_position(text)
            positions[position.worker] = (position, digest)
        going_on = GoingOn(1, (position.worker + 1) % 3, positions)
        rest, after = loader(going_on)
        assert [rows for rows, _ in rest] == [rows for rows, _ in first[stop:]]
        assert [rows for rows, _ in after] == [rows for rows, _ in second]


def test_digests_know_every_kind_of_value() -> None:
    long = torch.arange(5000)
    changed = long.clone()
    changed[2500] = 0  # which a printed array leaves out
    for one, other in (
        ({"a": long}, {"a": changed}),
        ({"a": long.numpy()}, {"a": changed.numpy()}),
        ({"a": [1]}, {"b": [1]}),
        ("text", "texts"),
    ):
        assert digest_of(one) != digest_of(other)
        assert digest_of(one) == digest_of(one)


def test_batches_must_be_dictionaries() -> None:
    rows = [({"a": 1}, Position(0, None, 1, 1))]
    with pytest.raises(ValueError, match="batches of type list"):
        WithPosition(list)(rows)


def test_a_row_is_known_by_its_content() -> None:
    def row(value: int) -> dict[str, Any]:
        image = Image.new("L", (2, 2), value)
        return {"image": image, "part": {"ids": [1, value]}, "decoder": object(), "text": "a"}

    assert digest_of(row(1)) == digest_of(row(1)) != digest_of(row(2))
    assert digest_of({"ids": np.array([1, 2])}) == digest_of({"ids": torch.tensor([1, 2])})
    assert digest_of({"ids": [1, 2]}) != digest_of({"ids": [2, 1]})
