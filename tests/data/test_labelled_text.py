"""Labelled texts from every kind of file, and what is refused."""

import json
from pathlib import Path

import datasets
import pytest

from hf_tfopt.data.labelled_text import label_names, load_labelled, numbered

TEXTS = ['he said "no', "NA", "a, b"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows{kind}"
    rows = [{"sentence": text, "label": number % 2} for number, text in enumerate(TEXTS)]
    if kind == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind in (".json", ".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path)
    else:
        path.write_text("".join(f"{row['sentence']}\t{row['label']}\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_gives_the_same(kind: str, tmp_path: Path) -> None:
    columns = ["sentence", "label"] if kind == ".tsv" else None
    found = load_labelled(write(tmp_path, kind), text_column="sentence", columns=columns)
    assert list(found["text"]) == TEXTS
    assert list(found["label"]) == [0, 1, 0]


def test_names_are_numbered_by_the_alphabet(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,good\nb,bad\n")
    found = load_labelled(path)
    names = label_names(found["label"])
    assert names == ["bad", "good"]
    assert list(numbered(found, names, path)["label"]) == [1, 0]
    with pytest.raises(ValueError, match=r"label 'goood' is not .* \(did you mean 'good'\?\)"):
        numbered(datasets.Dataset.from_dict({"label": ["goood"]}), names, "eval.csv")


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv")
    with pytest.raises(ValueError, match=r"no column 'sentense' .*did you mean 'sentence'"):
        load_labelled(path, text_column="sentense")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_labelled(tmp_path / "none.csv")
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(ValueError, match="not a kind of file that is read here"):
        load_labelled(tmp_path / "rows.xlsx")
    with pytest.raises(ValueError, match="names its columns itself"):
        load_labelled(write(tmp_path, ".jsonl"), text_column="a", columns=["a", "label"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",1", "has '' where its text should be"),
        ("words,", "has the label"),
        ("words,0.5", r"has the label 0\.5; classes are whole numbers or names"),
    ],
)
def test_bad_rows_are_refused(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text,label\n{row}\n")
    with pytest.raises(ValueError, match=message):
        load_labelled(path)


def test_numbers_written_as_text_stay_in_their_order() -> None:
    numbers = [str(number) for number in range(12)]
    assert label_names(sorted(numbers)) == numbers, "by the alphabet 10 is before 2"
    assert label_names(["1", "10"]) == ["1", "10"], "with gaps they are names"


def test_classes_are_two_or_more_and_without_gaps() -> None:
    with pytest.raises(ValueError, match="there is one class only"):
        label_names([1, 1])
    with pytest.raises(ValueError, match="numbered from 0 without gaps"):
        label_names([0, 2])
