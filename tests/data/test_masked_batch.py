"""A masked batch is the same to the last bit with the compiled form and with arrays."""

import ctypes
import gc
import subprocess
import sys
import weakref
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_tfopt.data import masking_kernel
from hf_tfopt.data.masking_rule import UNITS, span_tables
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.native.build import SWITCH, find_compiler, library
from tests.data.test_collators import NUM_IDS, WIDTH, make_collator, make_model, make_tokenizer
from tests.data.test_words import byte_level

NUM_ROWS = 30


@pytest.fixture(autouse=True)
def restored() -> Any:
    yield
    library.cache_clear()


def make_dataset(kind: Any = None, seed: int = 0) -> datasets.Dataset:
    """Ragged rows, some without a token or with special tokens only, in five chunks, shuffled."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    lengths = [0, 1, 2, *rng.integers(0, WIDTH, NUM_ROWS - 3)]
    ids = [rng.integers(0, NUM_IDS, n) for n in lengths]
    ids[2] = np.array([2, 3])
    words = [[None if j % 7 == 0 else j // 3 for j in range(n)] for n in lengths]
    types = [rng.integers(0, 2, n) for n in lengths]
    table = pa.table(
        {
            "input_ids": pa.array(ids, kind or pa.list_(pa.int32())),
            "token_type_ids": pa.array(types, pa.list_(pa.int8())),
            "attention_mask": pa.array([np.ones_like(row) for row in types], pa.list_(pa.int8())),
            "word_ids": pa.array(words, pa.large_list(pa.int64())),
            "next_sentence_label": pa.array(rng.integers(0, 2, len(ids))),
        }
    )
    cuts = [0, 3, 4, 4, 20, NUM_ROWS]
    chunks = pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(cuts)])
    return datasets.Dataset(chunks).shuffle(seed=1)


def packed(dataset: datasets.Dataset) -> datasets.Dataset:
    filled = dataset.filter(lambda row: len(row["input_ids"]) > 0)
    rows = pack(filled, WIDTH)
    # a row without a token, and position ids that begin where RoBERTa's do
    position_ids = [[2 + p for p in row] for row in rows["position_ids"]]
    rows = rows.remove_columns("position_ids").add_column("position_ids", position_ids)
    empty = {name: [] for name in rows.column_names}
    return datasets.concatenate_datasets(
        [rows, datasets.Dataset.from_list([empty], features=rows.features)]
    )


def without(*names: str) -> Any:
    return lambda dataset: dataset.remove_columns(list(names))


FORMS: dict[str, tuple[Any, str | None, dict[str, Any]]] = {
    "padded": (without("word_ids"), None, {}),
    "padded wider": (without("word_ids", "token_type_ids"), None, {"pad_to_multiple_of": 48}),
    "rows of one length": (
        lambda d: d.map(lambda row: {"input_ids": ([2, 7, 9] * 20)}).select_columns("input_ids"),
        None,
        {},
    ),
    "word ids": (lambda d: d, "sdpa", {}),
    "in one row": (without("word_ids"), "unpadded", {}),
    "in one row, filled up": (lambda d: d, "unpadded", {"pad_to_multiple_of": 64}),
    "packed for sdpa": (packed, "sdpa", {}),
    "packed unpadded": (packed, "unpadded", {"pad_to_multiple_of": 5}),
    "packed without word ids": (lambda d: packed(without("word_ids")(d)), "unpadded", {}),
}


def batches(collator: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of these rows with arrays, and compiled."""
    found = []
    for switch in ("0", "1"):
        monkeypatch.setenv(SWITCH, switch)
        library.cache_clear()
        assert (library("masked_batch") is None) == (switch == "0")
        found.append(collator(rows))
    return found


class Watched:
    """In the place of a collator's clock: asks for the keys of every batch."""

    is_hosted, is_watching, epoch = False, True, 0

    def __init__(self) -> None:
        self.keys: list[list[int]] = []

    def watch(self, keys: Any) -> None:
        self.keys.append(keys.tolist())


def with_threads(patch: pytest.MonkeyPatch, number: int) -> None:
    """Batches of any size are filled by so many threads."""
    patch.setattr(masking_kernel, "num_threads", lambda *_: ctypes.c_int(number))


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name]


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("form", FORMS)
def test_both_forms_give_the_same_batch(
    form: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, implementation, options = FORMS[form]
    dataset = make(make_dataset())
    if implementation:
        options = options | {"model": make_model("bert", implementation)}
    collator = make_collator(make_tokenizer(), unit, 0.3, **options)
    arrow = ArrowRows(dataset)
    for chosen in (range(len(dataset)), [4, 1, 1, 6, 5]):
        rows = arrow.__getitems__(list(chosen))
        collator._clock = watched = Watched()
        arrays, compiled = batches(collator, rows, monkeypatch)
        assert_equal(arrays, compiled)
        for threads in (2, 3, 40, -2):
            with monkeypatch.context() as patched:
                with_threads(patched, threads)
                assert_equal(collator(rows), compiled)
        assert all(keys == watched.keys[0] for keys in watched.keys)
        assert (arrays["labels"] != -100).any()
        # rows of lists are the same rows
        assert_equal(compiled, collator([dataset[i] for i in chosen]))


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.uint8()), pa.large_list(pa.uint16()), pa.list_(pa.uint64()), pa.list_(pa.int64())],
)
def test_ids_of_every_kind(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_collator(make_tokenizer())(ArrowRows(make_dataset()).__getitems__([3, 4, 5]))
    rows = ArrowRows(make_dataset(kind)).__getitems__([3, 4, 5])
    for batch in batches(make_collator(make_tokenizer()), rows, monkeypatch):
        assert_equal(batch, expected)


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_columns_of_other_lengths_or_fractions_are_refused(
    compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, compiled)
    library.cache_clear()
    model = make_model("bert", "unpadded")
    for unit, column in (
        ("token", "token_type_ids"),
        ("word", "word_ids"),
        ("token", "word_ids"),  # which units of tokens do not read
        ("span", "position_ids"),
    ):
        dataset = datasets.Dataset.from_dict(
            {"input_ids": [[2, 7, 3]] * 2, column: [[1, 2, 3], [1]]}
        )
        collator = make_collator(make_tokenizer(), unit, model=model)
        for rows in (ArrowRows(dataset).__getitems__([0, 1]), list(dataset)):
            with pytest.raises(ValueError, match=f"a row has 3 input_ids and 1 {column}"):
                collator(rows)
    fractions = datasets.Dataset.from_dict({"input_ids": [[2.0, 7.0]]})
    for rows in ([ArrowRows(fractions)[0]], list(fractions)):
        with pytest.raises(ValueError, match="whole numbers"):
            make_collator(make_tokenizer())(rows)


@pytest.mark.parametrize("place", [0, 13, 29])
def test_a_bad_row_is_told_whoever_meets_it(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": [2, 7, 3]} for _ in range(30)]
    rows[place] = {"input_ids": [2, 10**6, 3]}
    for threads in (1, 3):
        with_threads(monkeypatch, threads)
        with pytest.raises(ValueError, match="1000000"):
            make_collator(make_tokenizer())(rows)


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_that_carry_on_a_character_do_not_look_into_the_example_before(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte-level pieces of characters: their class is that of a token before them, of their own."""
    tokenizer = byte_level(300, add_prefix_space=False)
    rng = np.random.default_rng(0)
    print("seed 0")
    rows = [{"input_ids": rng.integers(0, len(tokenizer), 40).tolist()} for _ in range(60)]
    collator = make_collator(tokenizer, unit, 0.3)
    arrays, compiled = batches(collator, rows, monkeypatch)
    assert_equal(arrays, compiled)
    for row, labels in zip(rows, compiled["labels"], strict=True):
        assert torch.equal(collator([row])["labels"][0], labels)


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_tables_read_by_address_live_as_long_as_the_collator() -> None:
    """Others' rates drive them out of the cache that all collators share."""
    span_tables.cache_clear()
    collator = make_collator(make_tokenizer(), "span", 0.15)
    rows = [{"input_ids": [2, *[9] * 40, 3]}]
    first = collator(rows)
    table = weakref.ref(span_tables(0.15).lengths)
    for percent in range(20, 40):
        span_tables(percent / 100)
    gc.collect()
    assert table() is not None
    assert_equal(collator(rows), first)


FORKED = """
import multiprocessing
import torch
from hf_tfopt.native.threads import num_threads
from tests.data.test_collators import make_collator, make_tokenizer

torch.set_num_threads(2)
torch.ones(10**6).add(1)  # starts torch's threads, which a forked process does not have
collator = make_collator(make_tokenizer())
rows = [{"input_ids": [2, *[9] * 998, 3]} for _ in range(50)]
assert num_threads(10**6, 1).value == 2


def labels():
    return collator(rows)["labels"].tolist()


expected = labels()
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.apply(num_threads, (10**6, 1)).value == -2
    assert pool.apply_async(labels).get(60) == expected
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked elsewhere")
def test_forked_processes_do_not_wait_for_threads_they_have_not() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)
