"""Pairs of texts: read from every place, held out by their sources, and dates that are right."""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tfopt.data.text_pairs import Columns, held_out, incomplete, load_pairs, without
from hf_tfopt.data.text_pairs_dates import date_pairs

ROWS = [("a b", "x"), ("NA", "null"), ('say "c"', "y, z")]


def _csv(path: Path) -> None:
    lines = [f'"{s}","{t}"' for s, t in ((s.replace('"', '""'), t) for s, t in ROWS)]
    path.write_text("source,target\n" + "\n".join(lines) + "\n")


def _tsv(path: Path) -> None:
    path.write_text("source\ttarget\n" + "".join(f"{s}\t{t}\n" for s, t in ROWS))


def _jsonl(path: Path) -> None:
    pairs = datasets.Dataset.from_list([{"source": s, "target": t} for s, t in ROWS])
    pairs.to_json(path)


def _parquet(path: Path) -> None:
    pq.write_table(pa.table({"source": [s for s, _ in ROWS], "target": [t for _, t in ROWS]}), path)


def _folder(path: Path) -> None:
    pairs = datasets.Dataset.from_list([{"source": s, "target": t} for s, t in ROWS])
    datasets.DatasetDict({"train": pairs, "validation": pairs.select([1])}).save_to_disk(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "pairs.csv": _csv,
    "pairs.tsv": _tsv,
    "pairs.jsonl": _jsonl,
    "pairs.parquet": _parquet,
    "folder": _folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_pairs_come_from_every_kind_of_file_as_they_are(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    found = load_pairs(tmp_path / name, Columns())
    assert found is not None
    assert [(row["source"], row["target"]) for row in found] == ROWS
    assert found.cache_files, "what is made of them has a place on disk"
    eval_pairs = load_pairs(tmp_path / name, Columns(), "eval")
    assert (eval_pairs is None) == (name != "folder")


def test_a_column_of_mappings_is_reached_into(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": 1, "translation": {"en": "tree", "de": "Baum"}}\n')
    found = load_pairs(path, Columns("translation.en", "translation.de"))
    assert found is not None
    assert found[0] == {"source": "tree", "target": "Baum"}
    with pytest.raises(ValueError, match=r"target_column: .* no column 'translation.dd' \(did you"):
        load_pairs(path, Columns("translation.en", "translation.dd"))
    with pytest.raises(ValueError, match=r"source_column: 'id' of .* holds int64"):
        load_pairs(path, Columns("id", "translation.de"))


def test_a_target_may_be_its_source(tmp_path: Path) -> None:
    _csv(tmp_path / "pairs.csv")
    found = load_pairs(tmp_path / "pairs.csv", Columns("source", "source"))
    assert found is not None and found["source"][:] == found["target"][:]


def test_rows_without_a_side_are_found() -> None:
    pairs = datasets.Dataset.from_dict(
        {"source": ["a", "", " \n", "b", None], "target": ["x", "y", "z", None, "u"]}
    )
    assert incomplete(pairs).tolist() == [1, 2, 3, 4]
    assert without(pairs, incomplete(pairs))["source"][:] == ["a"]


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.999])
def test_no_source_is_on_both_sides(fraction: float) -> None:
    sources = [f"s{number % 10}" for number in range(37)]
    pairs = datasets.Dataset.from_dict({"source": sources, "target": ["t"] * 37})
    chosen = held_out(pairs, fraction, seed=3)
    kept, out = without(pairs, chosen), pairs.select(chosen)
    assert not {*kept["source"]} & {*out["source"]}
    assert len(kept) + len(out) == 37 and len(kept) and len(out)
    assert len({*out["source"]}) == min(max(round(10 * fraction), 1), 9)
    assert chosen.tolist() == held_out(pairs, fraction, seed=3).tolist()
    with pytest.raises(ValueError, match="too few"):
        held_out(pairs.select([0, 10]), fraction, 0)


def test_dates_are_the_days_that_they_say() -> None:
    pairs = date_pairs(3000, seed=1)
    assert len({*pairs["source"]}) == len(pairs) == 3000
    months = "January February March April May June July August September October November December"
    numbers = {month[:3]: place for place, month in enumerate(months.split(), 1)}
    for row in pairs:
        day, source = date.fromisoformat(row["target"]), row["source"]
        assert f"{day.year}" in source and re.search(rf"\b{day.day}(st|nd|rd|th|\b)", source)
        found = [
            numbers[word[:3]] for word in re.findall("[A-Z][a-z]+", source) if word[:3] in numbers
        ]
        assert found in ([], [day.month]) and (found or re.search(rf"\b{day.month}\b", source))
        weekday = re.search(r"\w+day", source)
        assert weekday is None or weekday[0] == day.strftime("%A")
    wrong = re.compile(r"(1st|2nd|3rd)")
    assert not [s for s in pairs["source"] if re.search(r"1[123](st|nd|rd)", s)]
    assert [s for s in pairs["source"] if wrong.search(s)]
    assert date_pairs(50, seed=1)["source"][:] == pairs["source"][:50]
