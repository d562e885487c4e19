"""Preparation of a corpus on disk: written once, found again, and never all in memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from hf_tfopt.data import packing
from hf_tfopt.data.packing import pack
from hf_tfopt.data.tokenizer import tokenize, train_tokenizer
from hf_tfopt.recipe.keys import load_recipe
from hf_tfopt.recipe.masked_lm import masked_lm_rows
from hf_tfopt.run import progress

NUM_EXAMPLES = 400


def write(path: Path, batches: Iterator[pa.RecordBatch]) -> datasets.Dataset:
    first = next(batches)
    with path.open("wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    return datasets.Dataset.from_file(str(path))


def lists(lengths: np.ndarray, seed: int) -> pa.RecordBatch:
    values = np.random.default_rng(seed).integers(5, 30_000, lengths.sum(), dtype=np.int32)
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.record_batch({"input_ids": pa.ListArray.from_arrays(ends, pa.array(values))})


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> datasets.Dataset:
    """Examples in a file of four pieces, packed as several groups."""
    monkeypatch.setattr(packing, "_TOKENS_PER_GROUP", 1000)
    monkeypatch.setattr(packing, "_ROWS_PER_GROUP", 1)
    draw = np.random.default_rng(0)
    pieces = (lists(draw.integers(1, 40, NUM_EXAMPLES // 4), seed) for seed in range(4))
    return write(tmp_path / "examples.arrow", pieces)


def again(dataset: datasets.Dataset) -> datasets.Dataset:
    """As another process opens it."""
    return datasets.Dataset.from_file(dataset.cache_files[0]["filename"])


def files(dataset: datasets.Dataset) -> set[str]:
    return {path.name for path in Path(dataset.cache_files[0]["filename"]).parent.iterdir()}


def never(*arguments: Any) -> Any:
    raise AssertionError("packed again")


def test_rows_are_written_next_to_the_examples_and_found_there_again(
    corpus: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pack(corpus, 64, keep_in_memory=True)
    assert not kept.cache_files
    assert files(corpus) == {"examples.arrow"}
    rows = pack(corpus, 64)
    [file] = rows.cache_files
    assert Path(file["filename"]).parent == Path(corpus.cache_files[0]["filename"]).parent
    assert rows[:] == kept[:]
    assert rows.data.column("input_ids").num_chunks > 5
    other = pack(corpus, 64, seed=1)
    monkeypatch.setattr(packing, "packed_table", never)
    found = pack(again(corpus), 64)
    assert found[:] == rows[:]
    assert found.features == rows.features
    assert found._fingerprint == rows._fingerprint == kept._fingerprint != other._fingerprint
    assert len(files(corpus)) == 3
    for changed in (lambda: pack(corpus, 65), lambda: pack(corpus.select(range(9)), 64)):
        with pytest.raises(AssertionError, match="packed again"):
            changed()


def test_caching_that_is_switched_off_leaves_no_file_there(corpus: datasets.Dataset) -> None:
    datasets.disable_caching()
    try:
        rows = pack(corpus, 64)
    finally:
        datasets.enable_caching()
    assert files(corpus) == {"examples.arrow"}
    assert rows.cache_files
    assert rows[:] == pack(corpus, 64)[:]


def test_packing_that_was_broken_off_leaves_nothing(
    corpus: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    whole = packing.packed_table

    def breaks(*arguments: Any) -> Any:
        made.append(whole(*arguments))
        if len(made) == 3:
            raise KeyboardInterrupt
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(packing, "packed_table", breaks)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, 64)
    assert files(corpus) == {"examples.arrow"}
    assert pack(corpus, 64)[:] == pack(corpus, 64, keep_in_memory=True)[:]


def test_two_processes_at_once_do_not_disturb_each_other(
    corpus: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second begins and ends while the first is in the middle: the worst that can happen.
    whole, of_second = packing.packed_table, []

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(packing, "packed_table", whole)
        of_second.append(pack(again(corpus), 64))
        return whole(*arguments)

    monkeypatch.setattr(packing, "packed_table", interrupted)
    rows = pack(corpus, 64)
    [second] = of_second
    assert rows[:] == second[:] == pack(corpus, 64, keep_in_memory=True)[:]
    assert len(files(corpus)) == 2


def test_any_number_of_processes_packs_the_same(corpus: datasets.Dataset) -> None:
    one = pack(corpus.shuffle(seed=0, keep_in_memory=True), 64, keep_in_memory=True)
    two = pack(corpus.shuffle(seed=0, keep_in_memory=True), 64, num_proc=2)
    assert len(two.cache_files) == 2
    assert two[:] == one[:]


def test_a_corpus_larger_than_memory_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 200 MB of ids in a file; rows of 400 MB. What Python, numpy and Arrow hold for it stays far
    # below: a group (a million tokens here) in all its forms, and some numbers for
    # each of 50,000 examples.
    monkeypatch.setattr(packing, "_TOKENS_PER_GROUP", 1 << 20)
    monkeypatch.setattr(packing, "_ROWS_PER_GROUP", 100)
    lengths = np.random.default_rng(0).integers(600, 1401, 500)
    corpus = write(tmp_path / "large.arrow", (lists(lengths, seed) for seed in range(100)))
    assert corpus.data.nbytes > 200e6
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        rows = pack(corpus, 2048)
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    print("peak", peak)
    assert rows.data.nbytes > 400e6
    assert peak < 60e6
    assert sum(map(len, rows[:50]["input_ids"])) > 50 * 2048 * 0.9
    taken = rows[len(rows) - 1]
    assert taken["position_ids"][0] == 0


def test_progress_is_shown_as_datasets_are_told_to(
    corpus: datasets.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    was_shown = datasets.is_progress_bar_enabled()
    try:
        datasets.enable_progress_bars()
        pack(corpus, 64)
        assert "Packing" in capsys.readouterr().err
        datasets.disable_progress_bars()
        pack(corpus, 65)
        assert capsys.readouterr().err == ""
    finally:
        (datasets.enable_progress_bars if was_shown else datasets.disable_progress_bars)()


def test_a_recipe_shows_progress_where_it_takes_long(
    documents: datasets.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe("bert-tiny", {"max_length": "16"})
    tokenizer = train_tokenizer(TEXTS, 80)
    was_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    capsys.readouterr()
    try:
        masked_lm_rows(recipe, documents.select(range(50)), tokenizer)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "_LONG", 1)
        rows = masked_lm_rows(recipe, documents, tokenizer)
        shown = capsys.readouterr().err
        assert "Tokenizing" in shown
        assert "Packing" in shown
        assert not datasets.is_progress_bar_enabled()
        assert masked_lm_rows(recipe, again(documents), tokenizer).cache_files == rows.cache_files
        assert "Packing" not in capsys.readouterr().err  # found on disk
    finally:
        if was_shown:
            datasets.enable_progress_bars()


# tokenizing


TEXTS = ["the quick brown fox jumps over the lazy dog", "a quick dog is no fox", "lazy foxes"] * 30


@pytest.fixture
def documents(tmp_path: Path) -> datasets.Dataset:
    return write(tmp_path / "documents.arrow", iter([pa.record_batch({"text": TEXTS})]))


def test_any_number_of_processes_tokenizes_the_same(documents: datasets.Dataset) -> None:
    tokenizer = train_tokenizer(TEXTS, 80)
    one = tokenize(documents, tokenizer, 8, keep_in_memory=True)
    two = tokenize(documents, tokenizer, 8, num_proc=2)
    assert not one.cache_files
    assert len(two.cache_files) == 2
    assert one[:] == two[:]
    assert one._fingerprint == two._fingerprint


def test_examples_are_found_again_wherever_the_tokenizer_was_read_from(
    documents: datasets.Dataset, tmp_path: Path
) -> None:
    trained = train_tokenizer(TEXTS, 80)
    examples = tokenize(documents, trained, 8)
    trained.save_pretrained(tmp_path / "run")
    read = AutoTokenizer.from_pretrained(tmp_path / "run")
    read(["a", "b"], padding="max_length", truncation=True, max_length=8)  # leaves traces in it
    before = files(documents)
    assert tokenize(again(documents), read, 8).cache_files == examples.cache_files
    assert files(documents) == before
    others = [train_tokenizer(TEXTS, 79), AutoTokenizer.from_pretrained(tmp_path / "run")]
    others[1].add_tokens(["lazy dog"])
    made = [tokenize(documents, other, 8)._fingerprint for other in others]
    assert len({examples._fingerprint, *made}) == 3
    assert tokenize(documents, trained, 9)._fingerprint != examples._fingerprint
