import base64
from html.parser import HTMLParser

import pytest

from hf_tfopt.report import write_report
from tests.run.finished import HOSTILE, write_finished_run


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
