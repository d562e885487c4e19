"""The best checkpoint is what a run ends with; a run that stops by itself does so anywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.killed import killed_after
from tests.recipe.small_run import main

SELECT = ("--select", "accuracy")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def flags(folder: Path, *more: str) -> list[str]:
    return [*more, "--output_dir", str(folder)]


def stopped(arguments: list[str], step: int) -> None:
    """A run whose process ends after so many steps."""
    with killed_after(step):
        main(arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped: best at step 2, and 3 evaluations later at its end."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    main(flags(out, *SELECT, "--patience", "3"))
    return out


def test_the_best_checkpoint_is_the_model(whole: Path) -> None:
    """Of two with the best number, the first; it is kept beside the newest, though only two are."""
    metrics = json.loads((whole / "metrics.json").read_text())
    assert (metrics["steps"], metrics["best_step"], metrics["best_accuracy"]) == (5, 2, 0.5)
    assert weights(whole) == weights(whole / "checkpoint-2") != weights(whole / "checkpoint-5")
    assert {path.name for path in whole.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}


@pytest.mark.invariant
@pytest.mark.parametrize("step", [1, 2, 4])
def test_stopped_and_gone_on_with_ends_at_the_same_step(
    step: int, whole: Path, tmp_path: Path
) -> None:
    """Also from another folder than it was begun in: the best is found where it lies now."""
    begun, out = tmp_path / "begun", tmp_path / "out"
    stopped(flags(begun, *SELECT, "--patience", "3"), step)
    begun.rename(out)
    metrics = main(flags(out, *SELECT, "--patience", "3", "--resume"))
    assert (metrics["steps"], metrics["best_step"]) == (5, 2)
    assert metrics["evaluations_without_gain"] == 3
    assert weights(out) == weights(whole)


@pytest.mark.invariant
def test_lost_after_its_last_checkpoint_it_trains_no_step_more(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for left in ("metrics.json", "model.safetensors", "run.json"):
        (out / left).unlink()
    metrics = main(flags(out, *SELECT, "--patience", "3", "--resume"))
    assert (metrics["steps"], metrics["resumed_from_step"]) == (5, 5)
    assert weights(out) == weights(whole)


def test_a_stopped_run_is_finished_until_it_may_lose_more(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with pytest.raises(ValueError, match="is finished: it stopped at step 5, after 3 evaluations"):
        main(flags(out, *SELECT, "--patience", "3", "--resume"))
    metrics = main(flags(out, *SELECT, "--patience", "4", "--resume"))
    assert (metrics["steps"], metrics["best_step"], metrics["best_accuracy"]) == (10, 6, 0.9)
    assert weights(out) == weights(out / "checkpoint-6")


def test_where_the_best_is_gone_the_best_of_the_rest_is_kept(tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "out"
    stopped(flags(out, *SELECT, "--max_steps", "5"), 3)
    shutil.rmtree(out / "checkpoint-2")
    metrics = main(flags(out, *SELECT, "--max_steps", "5", "--resume"))
    assert "checkpoint-2, the best checkpoint until now, is gone" in caplog.text
    assert (metrics["best_step"], metrics["best_accuracy"]) == (4, 0.5)
    assert weights(out) == weights(out / "checkpoint-4")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--select", "acuracy"], "did you mean 'accuracy'"),
        (["--select", "f1"], "known: accuracy, loss"),
        (["--patience", "2"], "patience: given, but it is read only with select"),
        ([*SELECT, "--save_steps", "2"], "leave it out, every evaluation is saved"),
        ([*SELECT, "--patience", "0"], "patience: got 0"),
    ],
)
def test_mistakes_are_told_before_training(keys: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main(flags(tmp_path / "out", *keys))
    assert not (tmp_path / "out").exists()
