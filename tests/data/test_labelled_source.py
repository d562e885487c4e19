"""Tables with labels from every kind of file, and what is refused."""

import json
from pathlib import Path

import datasets
import pytest

from hf_tfopt.data.labelled_source import read_tables

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
    (found,) = read_tables(write(tmp_path, kind), columns).values()
    assert list(found["sentence"]) == TEXTS
    assert list(found["label"]) == [0, 1, 0]


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tables(tmp_path / "none.csv")
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(ValueError, match="not a kind of file that is read here"):
        read_tables(tmp_path / "rows.xlsx")
    with pytest.raises(ValueError, match="names its columns itself"):
        read_tables(write(tmp_path, ".jsonl"), ["a", "label"])
