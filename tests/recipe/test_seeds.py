"""One run for each seed, in one process, and what they come to together."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.seeds import finished_metrics
from hf_tfopt.run.seed_summary import SeedSummary, mean_and_spread, median_seed, spread_rows
from tests.processes import TwoInterpreters
from tests.recipe.small_run import SmallRecipe, main
from tests.recipe.test_selection import flags, stopped, weights

ROOT = Path(__file__).parents[2]
SHORT = ("--max_steps", "3")


def test_mean_and_sample_standard_deviation() -> None:
    runs = [{"a": 1.0, "b": 2, "c": None, "d": 1.0}, {"a": 2.0, "b": 2, "c": 1.0}]
    found = mean_and_spread([*runs, {"a": 6.0, "b": 2, "c": 1.0}])
    assert found == {"a": 3.0, "a_std": math.sqrt(7.0), "b": 2.0, "b_std": 0.0, "num_seeds": 3}


def test_times_of_a_part_of_a_run_are_not_averaged() -> None:
    runs: list[dict[str, float]] = [
        {"a": 1.0, "train_seconds": 100.0, "energy_kwh": 0.1, "energy_kwh_cpu": 0.1},
        {"a": 3.0, "train_seconds": 10.0, "energy_kwh": 0.01, "resumed_from_step": 90},
    ]
    assert mean_and_spread(runs) == {"a": 2.0, "a_std": math.sqrt(2.0), "num_seeds": 2}


def test_the_median_is_no_better_than_it_is() -> None:
    """Of two in the middle the worse; what is no number is the worst."""
    scores = {5: {"x": 0.9}, 1: {"x": 0.7}, 2: {"x": 0.8}, 3: {"x": math.nan}}
    assert median_seed(scores, "x", True) == 1
    assert median_seed({seed: scores[seed] for seed in (5, 1, 2)}, "x", True) == 2
    assert median_seed({seed: scores[seed] for seed in (5, 1)}, "x", False) == 5
    assert median_seed({1: {}, 2: {"x": None}, 3: {"x": 1.0}}, "x", True) in (1, 2)


def test_rows_leave_out_what_is_of_the_machine() -> None:
    runs = {1: {"accuracy": 0.5, "steps": 3, "train_seconds": 1.0}}
    runs[2] = {"accuracy": 0.75, "steps": 3, "train_seconds": 2.0}
    assert spread_rows(SeedSummary(runs, "accuracy", 1)) == [
        ("accuracy", "0.625 ± 0.1768", "0.5 to 0.75")
    ]


@pytest.mark.parametrize(
    "words", [["--seeds", "1", "2", "3"], ["--seeds", "1,2,3"], ["--seeds=[1,2,3]"]]
)
def test_seeds_on_the_command_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("batch_size: 8\n")
    recipe, is_resumed = read_command(
        [*words, "--resume", str(tmp_path / "recipe.yaml")], SmallRecipe
    )
    assert (recipe.seeds, recipe.batch_size, is_resumed) == ([1, 2, 3], 8, True)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert read_command([str(tmp_path / "again.yaml")], SmallRecipe).recipe == recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1"], "must be at least two, each once"),
        (["1", "2", "1"], "must be at least two, each once"),
        (["1", "-2"], "must be whole numbers, 0 or above"),
        (["1", "2.5"], "must be whole numbers, 0 or above"),
        (["one"], "must be whole numbers"),
        ([], "--seeds needs a value"),
        (["1", "2", "--seed", "3"], "exclude each other"),
    ],
)
def test_what_seeds_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_command(["--seeds", *words], SmallRecipe)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "three"
    main(flags(out, *SHORT, "--seeds", "1", "2", "3"))
    return out


def test_each_seed_is_the_run_that_it_would_be_alone(three: Path, tmp_path: Path) -> None:
    """Nothing of the runs before it is left over in the process."""
    main(flags(tmp_path / "alone", *SHORT, "--seed", "3"))
    assert weights(three / "seed-3") == weights(tmp_path / "alone")
    assert weights(three / "seed-3") != weights(three / "seed-2")


def test_what_is_left_is_the_mean_and_the_median_seeds_model(three: Path) -> None:
    own = {
        seed: json.loads((three / f"seed-{seed}" / "metrics.json").read_text())
        for seed in (1, 2, 3)
    }
    metrics = json.loads((three / "metrics.json").read_text())
    assert metrics == mean_and_spread(list(own.values()))
    shown = sorted(own, key=lambda seed: own[seed]["eval_loss"])[1]
    assert weights(three) == weights(three / f"seed-{shown}")
    told = json.loads((three / "seeds.json").read_text())
    assert told["median_seed"] == shown
    assert told["seeds"] == {str(seed): found for seed, found in own.items()}
    card = (three / "README.md").read_text()
    assert "made 3 times, with the seeds 1, 2, 3" in card and f"of seed {shown}" in card
    report = (three / "report.html").read_text()
    assert all(f"seed-{seed}" in report for seed in own)
    assert not (three / "log.jsonl").exists()
    recipe, _ = read_command([str(three / "recipe.yaml")], SmallRecipe)
    assert recipe.seeds == [1, 2, 3] and recipe.output_dir == str(three)


@pytest.mark.invariant
def test_a_stopped_one_goes_on_with_the_seed_that_it_was_at(
    three: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(three, out)
    shutil.rmtree(out / "seed-3")
    shutil.rmtree(out / "seed-2")
    for left in ("metrics.json", "model.safetensors", "seeds.json"):
        (out / left).unlink()
    arguments = flags(out, *SHORT, "--seeds", "1", "2", "3", "--resume")
    stopped(arguments, 2)
    capsys.readouterr()
    main(arguments)
    said = capsys.readouterr().out
    assert said.count("Finished before") == 1 and "Going on from checkpoint-2" in said
    for name in ("", "seed-2", "seed-3"):
        assert weights(out / name) == weights(three / name), name
    main(flags(out, *SHORT, "--seeds", "1", "2", "3", "4", "--resume"))
    assert json.loads((out / "metrics.json").read_text())["num_seeds"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1", "2", "3"], "is not empty"),
        (["--seeds", "1", "2", "--resume"], r"\[3\] are not among those given"),
        (["--resume"], "seeds: was"),
        (["--seeds", "1", "2", "3", "--learning_rate", "0.1", "--resume"], "learning_rate: was"),
    ],
)
def test_another_run_is_not_mixed_in(words: list[str], message: str, three: Path) -> None:
    before = (three / "metrics.json").read_text()
    with pytest.raises(ValueError, match=message):
        main(flags(three, *SHORT, *words))
    assert (three / "metrics.json").read_text() == before


def test_more_patience_is_for_those_that_stopped(tmp_path: Path) -> None:
    """One seed has stopped at step 5, the other at its last one."""
    keys = {"output_dir": str(tmp_path), "select": "accuracy"}
    (tmp_path / "recipe.yaml").write_text(SmallRecipe(**keys, patience=3).to_yaml())
    told = {"steps": 5, "epochs": 1.25, "evaluations_without_gain": 3}
    for metrics, patience, is_finished in [
        (told, 3, True),
        (told, 2, True),
        (told, 4, False),
        (told, None, False),
        ({**told, "steps": 10}, 4, True),
        ({**told, "steps": 10, "evaluations_without_gain": 1}, 4, True),
    ]:
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        found = finished_metrics(SmallRecipe(**keys, patience=patience))
        assert (found == metrics) is is_finished, (metrics, patience)


def test_a_single_run_does_not_become_several(tmp_path: Path) -> None:
    main(flags(tmp_path / "one", *SHORT))
    with pytest.raises(ValueError, match="holds a single run"):
        main(flags(tmp_path / "one", *SHORT, "--seeds", "1", "2", "--resume"))


def test_two_processes_search_and_repeat_together(
    tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    out = tmp_path / "out"
    search = ["--search", "{learning_rate: [1e-4, 1e-2]}", "--search_trials", "2"]
    several = [*search, "--seeds", "1", "2", "--max_steps", "2"]
    program = ROOT / "tests/recipe/small_run.py"
    done = two_interpreters.run(program, *flags(out, *several))
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["num_seeds"], metrics["steps"]) == (2, 2)
    assert done.stdout.count("Trial      2 of 2") == 1
    trials = json.loads((out / "search" / "trials.json").read_text())["trials"]
    best = min(trials, key=lambda trial: trial["score"])["values"]["learning_rate"]
    for name in ("seed-1", "seed-2", "."):
        recipe, _ = read_command([str(out / name / "recipe.yaml")], SmallRecipe)
        assert recipe.learning_rate == best
