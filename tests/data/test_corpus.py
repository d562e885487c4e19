"""Documents from the embedded corpus, from files and from datasets, and their split."""

import gc
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from hf_tfopt.data import embedded, local_files
from hf_tfopt.data.corpus import load_corpus
from hf_tfopt.data.document_cache import cached_documents

DOCUMENTS = [f"document number {i} says {'word ' * (i % 7 + 1)}".strip() for i in range(200)]


@pytest.fixture
def unclosed_files() -> Iterator[None]:
    """The csv streams of `datasets` leave files open, which some later test would be blamed for."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def reads_csv_streams(test: Any) -> Any:
    unclosed = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
    return unclosed(pytest.mark.usefixtures("unclosed_files")(test))


def texts(dataset: Any) -> list[str]:
    return [row["text"] for row in dataset]


def load(source: Any, tmp_path: Path, **options: Any) -> Any:
    return load_corpus(source, cache_dir=tmp_path / "cache", **options)


def write_txt(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def write_jsonl(path: Path, documents: list[str], column: str = "text") -> Path:
    rows = (json.dumps({column: text, "number": i}) for i, text in enumerate(documents))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def write_csv(path: Path, documents: list[str]) -> Path:
    datasets.Dataset.from_dict({"text": documents}).to_csv(str(path), index=False)
    return path


def write_parquet(path: Path, documents: list[str], column: str = "text") -> Path:
    datasets.Dataset.from_dict({column: documents}).to_parquet(str(path))
    return path


WRITERS = {
    "corpus.txt": write_txt,
    "corpus.jsonl": write_jsonl,
    "corpus.json": write_jsonl,
    "corpus.csv": write_csv,
    "corpus.parquet": write_parquet,
}


# files


@reads_csv_streams
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_every_document_once(
    name: str, streaming: bool, tmp_path: Path
) -> None:
    loaded = load(WRITERS[name](tmp_path / name, DOCUMENTS), tmp_path, streaming=streaming)
    assert isinstance(loaded, datasets.IterableDatasetDict if streaming else datasets.DatasetDict)
    assert set(loaded) == {"train", "eval"}
    assert sorted(texts(loaded["train"]) + texts(loaded["eval"])) == sorted(DOCUMENTS)
    assert list(next(iter(loaded["train"]))) == ["text"]


@reads_csv_streams
def test_kinds_and_streams_agree_on_the_split(tmp_path: Path) -> None:
    held_out = {
        (name, streaming): set(texts(load(tmp_path / name, tmp_path, streaming=streaming)["eval"]))
        for name, write in WRITERS.items()
        if write(tmp_path / name, DOCUMENTS)
        for streaming in (False, True)
    }
    assert len({frozenset(part) for part in held_out.values()}) == 1


def test_a_folder_is_all_its_files_and_a_glob_some(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    write_txt(folder / "a.txt", DOCUMENTS[:50])
    write_jsonl(folder / "deep" / "b.jsonl", DOCUMENTS[50:100])
    write_parquet(folder / "deep" / "c.parquet", DOCUMENTS[100:])
    write_txt(folder / "deep" / ".hidden" / "d.txt", ["not this one"])
    (folder / "notes.md").write_text("nor this one")
    whole = load(folder, tmp_path)
    assert sorted(texts(whole["train"]) + texts(whole["eval"])) == sorted(DOCUMENTS)
    some = load(folder / "**" / "*.[jt]*", tmp_path)
    assert sorted(texts(some["train"]) + texts(some["eval"])) == sorted(DOCUMENTS[:100])


def test_a_folder_whose_files_are_named_by_split_is_not_split_again(tmp_path: Path) -> None:
    write_txt(tmp_path / "wiki.train.txt", [*DOCUMENTS[:100], DOCUMENTS[150]])
    write_txt(tmp_path / "wiki.valid.txt", DOCUMENTS[100:160])
    write_txt(tmp_path / "wiki.test.txt", DOCUMENTS[160:])
    loaded = load(tmp_path, tmp_path)
    assert texts(loaded["train"]) == DOCUMENTS[:100]  # without the one that is held out
    assert texts(loaded["eval"]) == DOCUMENTS[100:160]
    streamed = load(tmp_path, tmp_path, streaming=True)
    assert texts(streamed["eval"]) == DOCUMENTS[100:160]


def test_split_words_in_names_mean_nothing_without_a_file_to_train_on(tmp_path: Path) -> None:
    write_txt(tmp_path / "how-to-test.txt", DOCUMENTS[:100])
    write_txt(tmp_path / "dev.txt", DOCUMENTS[100:])
    loaded = load(tmp_path, tmp_path)
    assert sorted(texts(loaded["train"]) + texts(loaded["eval"])) == sorted(DOCUMENTS)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("paragraph", ["one\ntwo", "three"]),
        ("line", ["one", "two", "three"]),
        ("file", ["one\ntwo \n\n \nthree"]),
    ],
)
def test_a_document_of_a_text_file_is_what_was_asked_for(
    unit: local_files.TextUnit, expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\none\r\ntwo \n\n \nthree\n\n".encode())
    assert list(local_files.text_documents([str(path)], unit)) == expected


def test_a_text_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", ["one", "two"])
    load(path, tmp_path)
    write_txt(path, ["one", "two", "three"])
    loaded = load(path, tmp_path)
    assert sorted(texts(loaded["train"]) + texts(loaded["eval"])) == ["one", "three", "two"]


def test_another_text_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", DOCUMENTS, column="body")
    assert len(load(path, tmp_path, text_column="body")["train"]) > 100
    with pytest.raises(ValueError, match=r"no column 'bdy' .*did you mean 'body'.*columns: body"):
        load(path, tmp_path, text_column="bdy")


@reads_csv_streams
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "corpus.txt"])
def test_a_missing_text_column_lists_those_that_are_there(
    name: str, streaming: bool, tmp_path: Path
) -> None:
    path = WRITERS[name](tmp_path / name, DOCUMENTS)
    with pytest.raises(ValueError, match=r"no column 'texts'.*did you mean 'text'.*columns: "):
        load(path, tmp_path, text_column="texts", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_numbers_is_no_text(streaming: bool, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(ValueError, match="column 'number' holds int"):
        load(path, tmp_path, text_column="number", streaming=streaming)


# the split


def test_more_documents_move_none_of_the_others(tmp_path: Path) -> None:
    few = load(write_txt(tmp_path / "few.txt", DOCUMENTS[:150]), tmp_path, eval_fraction=0.2)
    more = load(write_txt(tmp_path / "more.txt", DOCUMENTS[::-1]), tmp_path, eval_fraction=0.2)
    assert set(texts(few["eval"])) == set(texts(more["eval"])) & set(DOCUMENTS[:150])
    # 200 draws of 0.2: 40 expected, standard deviation 5.7; the draw is fixed
    assert 20 < len(more["eval"]) < 60


def test_the_seed_draws_another_split(tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", DOCUMENTS)
    first, again, other = (
        texts(load(path, tmp_path, eval_fraction=0.2, seed=seed)["eval"]) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_no_text_is_on_both_sides(tmp_path: Path) -> None:
    copies = [text + end for end in ("", " ", "\n") for text in DOCUMENTS]
    path = write_jsonl(tmp_path / "a.jsonl", copies)
    loaded = load(path, tmp_path, eval_fraction=0.5)
    sides = [{text.strip() for text in texts(loaded[name])} for name in ("train", "eval")]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(DOCUMENTS)


@pytest.mark.parametrize("eval_fraction", [1e-9, 1 - 1e-9])
def test_a_small_corpus_has_a_document_on_each_side(eval_fraction: float, tmp_path: Path) -> None:
    loaded = load(
        write_txt(tmp_path / "a.txt", ["one", "two", "three"]),
        tmp_path,
        eval_fraction=eval_fraction,
    )
    assert min(len(loaded["train"]), len(loaded["eval"])) == 1
    assert sorted(texts(loaded["train"]) + texts(loaded["eval"])) == ["one", "three", "two"]


def test_documents_without_text_are_left_out_and_those_of_one_word_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": text} for text in ("", None, " \n", "word", "other")]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    for streaming in (False, True):
        loaded = load(path, tmp_path, eval_fraction=0.5, seed=1, streaming=streaming)
        assert sorted(texts(loaded["train"]) + texts(loaded["eval"])) == ["other", "word"]


def test_a_sample_is_drawn_from_the_whole_and_keeps_the_order(tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", DOCUMENTS)
    small, large = (load(path, tmp_path, max_documents=n, eval_fraction=0.2) for n in (50, 100))
    chosen = texts(small["train"]) + texts(small["eval"])
    assert len(chosen) == 50
    assert set(chosen) <= set(texts(large["train"]) + texts(large["eval"]))
    assert 3 < len(small["eval"]) < 20  # 10 expected, standard deviation 2.8; the draw is fixed
    indices = [DOCUMENTS.index(text) for text in texts(small["train"])]
    assert indices == sorted(indices)
    assert max(indices) > 100
    stream = load(path, tmp_path, max_documents=50, eval_fraction=0.2, streaming=True)
    assert sorted(texts(stream["train"]) + texts(stream["eval"])) == sorted(DOCUMENTS[:50])


def test_a_sample_where_the_source_has_splits(tmp_path: Path) -> None:
    write_txt(tmp_path / "train.txt", DOCUMENTS[:150])
    write_txt(tmp_path / "test.txt", DOCUMENTS[150:])
    for streaming in (False, True):
        loaded = load(tmp_path, tmp_path, max_documents=40, streaming=streaming)
        assert [len(texts(loaded[split])) for split in ("train", "eval")] == [38, 2]


# what is refused


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n  \n"],
    ids=["empty", "blank"],
)
def test_an_empty_corpus(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty"):
        load(path, tmp_path)


@pytest.mark.parametrize("copies", [1, 3])
def test_one_document_leaves_nothing_to_evaluate_on(copies: int, tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", ["the only one"] * copies)
    with pytest.raises(ValueError, match=r"has one document.*nothing is left to evaluate on"):
        load(path, tmp_path)
    with pytest.raises(ValueError, match="no document with text for"):
        load(path, tmp_path, streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_is_not_utf8_is_named_with_the_byte(
    name: str, streaming: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes("text\nà la carte".encode() + "déjà".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name} is not text in UTF-8: byte 17 is 0xe9"):
        load(path, tmp_path, streaming=streaming)


def test_a_binary_file_is_named_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\0def")
    with pytest.raises(ValueError, match=r"a\.txt is binary, not text: a zero byte at byte 3"):
        load(path, tmp_path)


@pytest.mark.parametrize(
    ("end", "offset"), [(b"\xc3", 2**20 - 1), (b"\xc3(", 2**20 - 1), (b"\xc3\xa9\xff", 2**20 + 1)]
)
def test_the_byte_is_right_where_a_character_lies_across_two_blocks(
    end: bytes, offset: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (2**20 - 1) + end)
    with pytest.raises(ValueError, match=f"byte {offset} is "):
        local_files.check_utf8(path)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("text")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        load(path, tmp_path)


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ')
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: .*JSON"):
        load(path, tmp_path)


def test_a_path_that_is_missing_is_no_name_of_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_txt(tmp_path / "wiki.txt", DOCUMENTS)
    (tmp_path / "folder").mkdir()
    for source in ("wki.txt", "./wki.txt", "folder/wki.txt", "~nobody/a", "/nowhere/at/all"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            load(source, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean 'wiki\.txt'"):
        load("wki.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean 'folder'"):
        load("foldr/deep/wiki.txt", tmp_path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.jsonn").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a kind of file .*\.jsonl.*did you mean '\.json'"):
        load(tmp_path / "a.jsonn", tmp_path)
    for source in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(ValueError, match=r"no \.txt, .* file in"):
            load(source, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no file"),
        ("a\0b", "no file"),
        ("https://example.org/a.txt", "addresses are not read"),
        ("hf://datasets/a", "addresses are not read"),
        ("file:///etc/passwd", "addresses are not read"),
        ("a..b", "no name of a dataset"),
        ("a/..", "no name of a dataset|no .* file in"),
        ("wiki:../x", "no name of a dataset"),
        ("wiki text", "no name of a dataset"),
        ("-name", "no name of a dataset"),
        ("embeded", "did you mean 'embedded'"),
    ],
)
def test_names_that_are_none_never_reach_the_hub(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was asked for"))
    with pytest.raises(ValueError, match=message):
        load(source, tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"eval_fraction": 0.0}, {"eval_fraction": 1}, {"max_documents": 1}, {"text_unit": "lines"}],
)
def test_options_out_of_range(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", DOCUMENTS)
    with pytest.raises(ValueError, match=next(iter(options))):
        load(path, tmp_path, **options)


# names of datasets


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[str]]) -> list[Any]:
    calls: list[Any] = []

    def load_dataset(name: str, configuration: str | None, **_: Any) -> datasets.DatasetDict:
        calls.append((name, configuration))
        return datasets.DatasetDict(
            {k: datasets.Dataset.from_dict({"text": v, "id": v}) for k, v in splits.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_dataset_is_named_with_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_hub(monkeypatch, {"train": DOCUMENTS})
    for source in ("wikitext", "Salesforce/wikitext:wikitext-2-raw-v1"):
        load(source, tmp_path)
    assert calls == [("wikitext", None), ("Salesforce/wikitext", "wikitext-2-raw-v1")]


@pytest.mark.parametrize(
    ("splits", "held_out"),
    [
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
    ],
)
def test_a_datasets_own_splits_are_kept(
    splits: tuple[str, ...], held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {split: [f"{split} {i}" for i in range(5)] for split in splits}
    fake_hub(monkeypatch, parts)
    loaded = load("name", tmp_path)
    assert texts(loaded["train"]) == parts["train"]
    assert texts(loaded["eval"]) == parts[held_out]


def test_a_dataset_with_one_split_is_split_and_one_without_train_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(monkeypatch, {"test": DOCUMENTS})
    loaded = load("name", tmp_path)
    assert sorted(texts(loaded["train"]) + texts(loaded["eval"])) == sorted(DOCUMENTS)
    fake_hub(monkeypatch, {"a": DOCUMENTS, "b": DOCUMENTS})
    with pytest.raises(ValueError, match="has no split 'train'; its splits: a, b"):
        load("name", tmp_path)


def test_train_texts_that_are_all_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {"train": DOCUMENTS[:5], "validation": DOCUMENTS})
    with pytest.raises(ValueError, match="0 documents to train on that are not in its held-out"):
        load("name", tmp_path)


def test_a_name_that_is_not_found_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise DatasetNotFoundError("Dataset 'wikitxt' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"'wikitxt' is not on disk, .* doesn't exist"):
        load("wikitxt", tmp_path)


# the embedded corpus

MODULE = '''
"""The module explains what it is for in one sentence that is long enough to be kept in the
corpus, and it explains in the next one why nothing of it runs when it is read."""

raise SystemExit("this file must be read, never run")

import torch

def first(x):
    """Return the first of the things that were given, or whatever the caller asked for.

    Args:
        x (`list[int]`, *optional*): The things among which the first one is to be found.

    Example:

    ```python
    first([1, 2, 3])
    ```

    >>> first("abc")
    'a'

    Returns:
        `int`: What was found, as it stands, without any copy of it being made.
    """
    # This comment explains in many words why the function is written as it is,
    # and it goes on for a second line.
    return x[0]

def short():
    """Do it."""

add_documentation(first, """A text that is given to a function is documentation as well, when it
is long enough and when it reads as English; this one is both, as anybody can see who counts the
words.""")

class Thing:
    """A thing of the first kind, about which there is much to say that others would not say.

    The sentence about BertModel and its 12 layers is in every file of this package.
    """

    def method(self):
        """Return what the thing is made of, in the order in which it was put together by hand."""
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "tests").mkdir(parents=True)
    (folder / "b.py").write_text(MODULE)
    copy = MODULE.replace("BertModel and its 12", "OtherModel and its 24").replace("hand", "chance")
    (folder / "c.py").write_text(copy)
    (folder / "a.py").write_text(
        '"""Broken, and so it is passed over, with all that it says."""\nif'
    )
    (folder / "tests" / "d.py").write_text(
        '"""' + "The tests are not what we read here. " * 9 + '"""'
    )
    return folder


def test_embedded_documents_are_the_prose_of_source_files(package: Path) -> None:
    found = list(embedded.documents({"package": package}))
    assert found == [
        "The module explains what it is for in one sentence that is long enough to be kept in the "
        "corpus, and it explains in the next one why nothing of it runs when it is read.",
        "Return the first of the things that were given, or whatever the caller asked for.\n"
        "The things among which the first one is to be found.\n"
        "What was found, as it stands, without any copy of it being made.\n"
        "This comment explains in many words why the function is written as it is, and it goes on "
        "for a second line.",
        "A text that is given to a function is documentation as well, when it is long enough and "
        "when it reads as English; this one is both, as anybody can see who counts the words.",
        "A thing of the first kind, about which there is much to say that others would not say.\n"
        "The sentence about BertModel and its 12 layers is in every file of this package.\n"
        "Return what the thing is made of, in the order in which it was put together by hand.",
    ]


def test_the_embedded_corpus_is_built_once(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_folders", lambda: {"package": package})
    first = load("embedded", tmp_path, eval_fraction=0.5)
    monkeypatch.setattr(embedded, "documents", lambda _: pytest.fail("it was built again"))
    again = load("embedded", tmp_path, eval_fraction=0.5)
    assert texts(first["train"]) == texts(again["train"])
    assert len(first["train"]) + len(first["eval"]) == 4
    streamed = load("embedded", tmp_path, eval_fraction=0.5, streaming=True)
    assert texts(streamed["eval"]) == texts(first["eval"])
    monkeypatch.setattr(embedded, "PACKAGES", {"torch": "another-torch"})
    with pytest.raises(pytest.fail.Exception, match="built again"):
        load("embedded", tmp_path, eval_fraction=0.5)


def test_the_help_topics_of_the_standard_library_read_as_english() -> None:
    folder = Path(sysconfig.get_path("stdlib"), "pydoc_data")
    found = list(embedded.documents({"topics": folder}))
    words = " ".join(found).split()
    assert len(found) > 50
    assert len(words) > 30_000
    assert "the" in words
    assert not [text for text in found if "::" in text or ">>>" in text]
    paragraphs = [line for text in found for line in text.split("\n")]
    assert len(paragraphs) == len(set(paragraphs))


def test_every_package_of_the_embedded_corpus_is_looked_for_by_its_right_name() -> None:
    folders = embedded._folders()
    assert {"torch", "transformers", "datasets", "numpy"} <= set(folders)
    assert set(folders) <= {embedded.STANDARD_LIBRARY, *embedded.PACKAGES}
    assert all(folder.is_dir() for folder in folders.values())


# the cache


def test_documents_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Any:
        yield "one"
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached_documents("text", "0", broken, tmp_path)
    assert not list((tmp_path / "hf_tfopt").iterdir())
    assert texts(cached_documents("text", "0", lambda: ["one"], tmp_path)) == ["one"]
    assert texts(cached_documents("text", "0", broken, tmp_path)) == ["one"]


def test_a_torn_file_is_made_again(tmp_path: Path) -> None:
    cached_documents("text", "0", lambda: ["one"], tmp_path)
    [path] = (tmp_path / "hf_tfopt").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.warns(UserWarning, match="cannot be read and is made again"):
        assert texts(cached_documents("text", "0", lambda: ["two"], tmp_path)) == ["two"]


def test_where_nothing_can_be_written_documents_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "hf_tfopt").write_text("in the way")
    with pytest.warns(UserWarning, match="is not cached on disk"):
        assert texts(cached_documents("text", "0", lambda: ["one"], tmp_path)) == ["one"]
