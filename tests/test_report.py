import base64
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hf_tfopt.plotting import curves, series, smoothed
from hf_tfopt.recipe import load_recipe
from hf_tfopt.report import write_report
from hf_tfopt.run_folder import (
    Run,
    check_unchanged,
    claim,
    finished_steps,
    read_run,
    write_run,
    write_text,
)
from hf_tfopt.run_tables import duration, number, shown_value

HOSTILE = "<script>alert(1)</script> | `a` [x](http://y) \n---\nlicense: evil"


def history(last=50):
    entries = []
    for step in range(5, last + 1, 5):
        loss = 3 + math.exp(-step / 20)
        entries.append({"step": step, "loss": loss, "learning_rate": 0.1, "grad_norm": 1.0 / step})
        if step % 25 == 0:
            entries.append({"step": step, "eval_loss": loss, "eval_perplexity": math.exp(loss)})
    return entries


def finished_run(text="a word", recipe=None):
    return Run(
        name="run",
        metrics={
            "eval_loss": 3.25,
            "perplexity": 25.79,
            "train_seconds": 171.2,
            "steps": 50,
            "tokens_per_second": 12345.6,
        },
        recipe=recipe or {},
        history=history(),
        data={"train": {"documents": 1234, "fullness": 0.9912}, "eval": {"documents": 12}},
        model={"class": "BertForMaskedLM", "layers": 2},
        examples=[
            {
                "before": f"{text} is ",
                "word": "Closed",
                "after": " now.",
                "guesses": [["open", 0.31], ["closed", 0.08]],
            }
        ],
        environment={"torch": "2.13.0"},
    )


def write_finished_run(folder, text="a word", **overrides):
    folder.mkdir(parents=True)
    recipe = load_recipe("bert-tiny", overrides)
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_run(folder, finished_run(text))
    return folder


class Reader(HTMLParser):
    """Tags, attributes that point elsewhere, and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.pointers, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.pointers += [v for k, v in attrs if k in ("src", "srcset", "href", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_file_with_everything_in_it(tmp_path):
    run = write_finished_run(tmp_path / "run")
    page = write_report([run]).read_text()
    reader = Reader(page)
    assert reader.pointers and all(p.startswith("data:image/png;base64,") for p in reader.pointers)
    pictures = [base64.b64decode(p.partition(",")[2]) for p in reader.pointers]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert (run / "curves.png").read_bytes() == pictures[-1]
    assert not {"script", "link", "iframe"} & {*reader.tags}
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    for shown in (
        "25.79",
        "3.25",
        "2 min 51 s",
        "12,346",
        "1,234",
        "99.1%",
        "open",
        "31%",
        "2.13.0",
    ):
        assert shown in reader.text
    assert "hidden_size" in reader.text


def test_what_comes_from_the_run_is_text_and_not_markup(tmp_path):
    run = write_finished_run(tmp_path / "run", HOSTILE, language=HOSTILE)
    reader = Reader(write_report([run]).read_text())
    assert "script" not in reader.tags and "a" not in reader.tags
    assert reader.text.count("<script>alert(1)</script>") == 2


def test_no_path_of_the_machine_is_shown(tmp_path):
    run = write_finished_run(tmp_path / "run", corpus=str(tmp_path / "secret" / "corpus.txt"))
    page = write_report([run]).read_text()
    assert "corpus.txt" in page
    assert "secret" not in page and str(tmp_path) not in page


def test_several_runs_of_one_name_stay_apart(tmp_path):
    runs = [write_finished_run(tmp_path / part / "run") for part in ("a", "b")]
    page = write_report(runs, tmp_path / "both.html").read_text()
    assert "run (1)" in page and "run (2)" in page
    assert not (runs[0] / "report.html").exists()


@pytest.mark.parametrize("missing", ["metrics.json", "run.json", "recipe.yaml"])
def test_a_folder_without_a_finished_run_is_refused_by_name(missing, tmp_path):
    run = write_finished_run(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        write_report([run])


@pytest.mark.parametrize("content", ["{", "[]", "\x00\xff"])
def test_a_torn_run_is_refused(content, tmp_path):
    run = write_finished_run(tmp_path / "run")
    (run / "run.json").write_text(content)
    with pytest.raises(ValueError, match="no run that can be read"):
        write_report([run])


def test_a_run_comes_back_as_it_was_written(tmp_path):
    folder = write_finished_run(tmp_path / "run")
    again, run = read_run(folder), finished_run()
    assert (again.name, again.metrics, again.data) == ("run", run.metrics, run.data)
    assert again.history == run.history and again.examples == run.examples
    assert finished_steps(folder) == 50 and finished_steps(tmp_path) == 0


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    write_run(
        tmp_path, Run("run", {"eval_loss": float("nan"), "steps": 1}, {}, [{"loss": math.inf}])
    )
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"eval_loss": None, "steps": 1}


def test_curves_are_drawn_of_what_there_is(tmp_path):
    assert not curves({"run": []}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    odd = [
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": 3.0},
        {"loss": 1.0},
        {"step": "x"},
    ]
    assert curves({"run": odd}, tmp_path / "one.png")
    steps, values = series(odd, "loss")
    assert (steps.tolist(), values.tolist()) == ([2], [3.0])


@pytest.mark.parametrize("length", [0, 1, 2, 5, 100])
def test_smoothing_keeps_constants_and_lines_and_lessens_noise(length):
    flat = np.full(length, 3.0)
    np.testing.assert_allclose(smoothed(flat), flat, rtol=1e-12)  # a weighted mean of equals
    line = np.arange(float(length))
    half = max(2, round(0.06 * length))
    inner = slice(half, length - half)
    np.testing.assert_allclose(smoothed(line)[inner], line[inner], atol=1e-9)  # no lag
    if length == 100:
        noise = np.random.default_rng(0).normal(size=length)
        assert smoothed(noise).std() < 0.6 * noise.std()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (59.4, "59.4 s"), (60, "1 min 0 s"), (171.2, "2 min 51 s"), (11100, "3 h 5 min")],
)
def test_durations_are_said_as_people_say_them(value, text):
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (3.14159, "3.142"), (12345.6, "12,346"), (True, "True"), ("x", "x")],
)
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("embedded", "embedded"),
        ("owner/name", "owner/name"),
        ("texts/mine.txt", "texts/mine.txt"),
        ("/home/me/mine.txt", "mine.txt"),
        ("~/mine.txt", "mine.txt"),
        ("../../mine", "mine"),
        ("C:\\Users\\me\\mine.txt", "mine.txt"),
    ],
)
def test_paths_are_cut_where_they_tell_of_the_machine(value, text):
    assert shown_value("corpus", value) == text


class TestTheFolder:
    def test_a_new_or_empty_one_is_claimed(self, tmp_path):
        assert claim(tmp_path / "a" / "b").is_dir()
        assert claim(tmp_path / "a" / "b") == tmp_path / "a" / "b"

    def test_one_that_holds_something_is_refused_unless_resumed(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ValueError, match=r"not empty \(notes.txt\).*--resume"):
            claim(tmp_path)
        assert claim(tmp_path, resume=True) == tmp_path
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("below", ["file", "file/below", "/proc/nothing/here"])
    def test_one_that_cannot_be_written_is_refused(self, below, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="cannot be written"):
            claim(tmp_path / below)

    def test_a_changed_recipe_is_refused_on_resume(self, tmp_path):
        before = {"seed": 1, "max_steps": 10, "license": None}
        write_text(tmp_path / "recipe.yaml", "seed: 1\nmax_steps: 10\nlicense:\n")
        check_unchanged(tmp_path, before | {"max_steps": 20, "new_key": 3}, ["max_steps"])
        with pytest.raises(ValueError, match=r"seed: was 1, now 2.*--output_dir"):
            check_unchanged(tmp_path, before | {"seed": 2}, ["max_steps"])

    def test_a_file_is_written_whole_or_not_at_all(self, tmp_path):
        write_text(tmp_path / "a.txt", "old")
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / "a.txt", "new \ud800")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert len(re.findall("a.txt", " ".join(p.name for p in tmp_path.iterdir()))) == 1
