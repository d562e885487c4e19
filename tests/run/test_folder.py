import json
import math

import pytest

from hf_tfopt.run.folder import (
    Run,
    check_unchanged,
    claim,
    finished_steps,
    read_run,
    write_run,
    write_text,
)
from tests.run.finished import finished_run, write_finished_run


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

    def test_what_drew_nothing_may_be_anything_on_resume(self, tmp_path):
        write_text(tmp_path / "recipe.yaml", "eval_fraction:\nsplit_seed: 0\n")
        check_unchanged(tmp_path, {"eval_fraction": 0.1, "split_seed": 0}, [])
        with pytest.raises(ValueError, match="split_seed: was 0, now 1"):
            check_unchanged(tmp_path, {"eval_fraction": 0.1, "split_seed": 1}, [])

    def test_rows_that_seed_has_drawn_are_not_trained_on_when_split_seed_draws(self, tmp_path):
        write_text(tmp_path / "recipe.yaml", "eval_fraction: 0.1\nseed: 3\n")
        check_unchanged(tmp_path, {"seed": 3, "split_seed": 3}, [])
        with pytest.raises(ValueError, match="split_seed: was 3, now 0"):
            check_unchanged(tmp_path, {"seed": 3, "split_seed": 0}, [])

    def test_a_file_is_written_whole_or_not_at_all(self, tmp_path):
        write_text(tmp_path / "a.txt", "old")
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / "a.txt", "new \ud800")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert len([*tmp_path.iterdir()]) == 1
