"""A search trains with what its trials ask for, goes on where it was, and ends with the best."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_tfopt.recipe.classification_keys import ClassificationRecipe
from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.search import best_trial
from hf_tfopt.recipe.search_space import Choices, Range, Trial, search_space, trial_recipe
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe
from tests.recipe import small_run
from tests.recipe.small_run import SmallRecipe, main
from tests.recipe.test_selection import flags, stopped, weights

pytest.importorskip("optuna")

SPACE = "{learning_rate: [1e-4, 1e-2], layer_decay: [0.5, 1.0], batch_size: [4, 8]}"
SEARCH = ("--max_steps", "2", "--search", SPACE, "--search_trials", "4")


def recipe_of(search: dict[str, Any], **keys: Any) -> SmallRecipe:
    return SmallRecipe(search=search, **keys)


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "search" / "trials.json").read_text())["trials"]


def test_what_each_key_may_be() -> None:
    search = {
        "learning_rate": ["1e-5", 2.0e-5],
        "weight_decay": [0, 0.1],
        "layer_decay": [0.5, 1.0],
        "max_grad_norm": [0.1, 5],
        "batch_size": [4, 8],
        "schedule": ["linear", "cosine"],
        "optimizer_options": [{"eps": 1e-6}, {}],
    }
    assert search_space(recipe_of(search)) == {
        "learning_rate": Range(1e-5, 2e-5, True),  # rates by their orders of magnitude
        "weight_decay": Range(0.0, 0.1, False),
        "layer_decay": Range(0.5, 1.0, False),
        "max_grad_norm": Range(0.1, 5.0, True),
        "batch_size": Choices((4, 8)),
        "schedule": Choices(("linear", "cosine")),
        "optimizer_options": Choices(({"eps": 1e-6}, {})),
    }


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, "search: got no key"),
        ({"lerning_rate": [1e-5, 1e-3]}, "did you mean 'learning_rate'"),
        ({"seed": [1, 2]}, "seed cannot be searched over"),
        ({"eval_fraction": [0.1, 0.2]}, r"unknown key \(search\)"),
        ({"learning_rate": 1e-3}, "must be a list of two values or more"),
        ({"learning_rate": [1e-3]}, "must be a list of two values or more"),
        ({"learning_rate": [1e-3, 1e-5]}, "must be the lower one first"),
        ({"weight_decay": [-1, 1e-3]}, "weight_decay: got -1.0, must be 0 or above"),
        ({"learning_rate": ["low", "high"]}, "got 'low', expected a number"),
        ({"batch_size": [16, 16]}, "must be different values"),
        ({"batch_size": [16, "many"]}, "expected a whole number"),
        ({"optimizer": ["adamw", "lambb"]}, "did you mean 'lamb'"),
        (
            {"schedule": ["linear", "warmup_stable_decay"], "decay_fraction": [0.1, 0.5]},
            "decay_fraction: given, but it is read only by the schedule warmup_stable_decay",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_at_once(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_space(recipe_of(search))


def test_all_trials_are_judged_on_the_same_rows() -> None:
    given = {"model": "x", "train": "y.csv", "search": {"train": ["y.csv", "z.csv"]}}
    with pytest.raises(ValueError, match=r"train: each trial would be judged on .*; give eval"):
        search_space(ClassificationRecipe(**given))
    assert search_space(ClassificationRecipe(**given, eval="w.csv"))
    given["search"] = {"split_seed": [1, 2]}
    with pytest.raises(ValueError, match="split_seed cannot be searched over"):
        search_space(ClassificationRecipe(**given))


def test_how_texts_are_generated_is_no_value_of_a_trial() -> None:
    """What was given so that they fit into the memory holds for every batch size."""
    recipe = Seq2SeqRecipe(train="y.csv", eval_batch_size=4, search={"batch_size": [8, 64]})
    assert trial_recipe(recipe, {"batch_size": 64}).eval_batch_size == 4
    for name in ("eval_samples", "test_samples", "eval_batch_size"):
        searched = dataclasses.replace(recipe, search={name: [8, 64]})
        with pytest.raises(ValueError, match=f"{name} cannot be searched over"):
            search_space(searched)


def test_trials_without_a_search_are_refused() -> None:
    with pytest.raises(ValueError, match="search_trials: given, but it is read only with search"):
        SmallRecipe(search_trials=3)


def test_a_value_sets_aside_what_hung_on_another() -> None:
    search = {"schedule": ["linear", "warmup_stable_decay"]}
    recipe = recipe_of(search, schedule="warmup_stable_decay", decay_fraction=0.3)
    assert trial_recipe(recipe, {"schedule": "linear"}).decay_fraction is None
    assert trial_recipe(recipe, {"schedule": "warmup_stable_decay"}).decay_fraction == 0.3


def test_what_is_asked_next_hangs_on_the_trials_alone() -> None:
    next_values = pytest.importorskip("hf_tfopt.recipe.next_trial").next_values
    space = {"learning_rate": Range(1e-5, 1e-1, True), "schedule": Choices(("linear", "cosine"))}
    trials = [
        Trial(next_values(space, [], seed, False), float(seed) if seed else None)
        for seed in range(8)
    ]
    assert len({trial.values["learning_rate"] for trial in trials}) == 8
    asked = next_values(space, trials, 0, False)
    assert asked == next_values(space, trials, 0, False)
    assert asked != next_values(space, trials, 1, False)
    assert space["learning_rate"].holds(asked["learning_rate"])


def test_it_comes_closer_to_the_best() -> None:
    """The score is the distance to a rate of 1e-3, in orders of magnitude."""
    next_values = pytest.importorskip("hf_tfopt.recipe.next_trial").next_values
    space, trials = {"learning_rate": Range(1e-6, 1.0, True)}, list[Trial]()
    for _ in range(24):
        values = next_values(space, trials, 0, False)
        distance = abs(float(torch.tensor(values["learning_rate"]).log10()) + 3)
        trials.append(Trial(values, distance))
    late = [trial.score or 0 for trial in trials[12:]]
    assert sum(late) / len(late) < 1.0, "at random it would be 1.5"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A whole search, and what each of its runs trained with."""
    out, used = tmp_path_factory.mktemp("search") / "found", list[dict[str, Any]]()

    def watched(prepared: Any) -> dict[str, float]:
        metrics = small_run.run(prepared)
        groups = prepared.trainer.optimizer.param_groups
        used.append(
            {
                "learning_rate": max(group["initial_lr"] for group in groups),
                "rates": len({group["initial_lr"] for group in groups}),
                "batch_size": prepared.trainer.args.per_device_train_batch_size,
            }
        )
        return metrics

    command = read_command(flags(out, *SEARCH), SmallRecipe)
    small_run.carry_out(command, small_run.prepare, watched)
    return out, used


def test_each_trial_trains_with_its_values(found: Any) -> None:
    out, used = found
    trials = trials_of(out)
    ran = [trials[int(path.name.split("-")[1]) - 1] for path in (out / "search").glob("trial-*")]
    ran.sort(key=lambda trial: trial["number"])
    assert len(trials) == 4 and len(used) == len(ran) + 1
    for trial, was in zip(ran, used, strict=False):
        assert was["learning_rate"] == pytest.approx(trial["values"]["learning_rate"])
        assert was["batch_size"] == trial["values"]["batch_size"]
        assert (was["rates"] > 1) == (trial["values"]["layer_decay"] < 1)
    own = {"learning_rate": 1e-3, "layer_decay": 1.0, "batch_size": 4}
    assert trials[0]["values"] == own, "the recipe's own come first"
    assert len({trial["values"]["learning_rate"] for trial in trials}) == 4


def test_the_final_run_is_that_with_the_best_values(found: Any, tmp_path: Path) -> None:
    out, used = found
    best = min(trials_of(out), key=lambda trial: trial["score"])
    assert used[-1]["learning_rate"] == pytest.approx(best["values"]["learning_rate"])
    assert json.loads((out / "metrics.json").read_text())["eval_loss"] == best["score"]
    recipe, _ = read_command([str(out / "recipe.yaml")], SmallRecipe)
    assert recipe.search is None and recipe.batch_size == best["values"]["batch_size"]
    main([str(out / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert weights(tmp_path / "again") == weights(out)
    assert not list((out / "search").rglob("*.safetensors")), "the trials' weights are dropped"
    assert (out / "search" / "trials.png").exists() and (out / "search" / "report.html").exists()


@pytest.mark.invariant
def test_a_stopped_search_goes_on_as_if_it_never_had(
    found: Any, tmp_path: Path, capsys: Any
) -> None:
    """Torn from the third trial; then with a finished trial that was not written down yet."""
    out, before = tmp_path / "out", found[0]
    shutil.copytree(before / "search", out / "search")
    for number in range(4, 5):
        shutil.rmtree(out / "search" / f"trial-{number}")
    told = json.loads((out / "search" / "trials.json").read_text())
    told["trials"] = told["trials"][:2]
    (out / "search" / "trials.json").write_text(json.dumps(told))
    stopped(flags(out, *SEARCH, "--resume"), 1)
    said = capsys.readouterr().out
    assert "Trial      3 of 4" in said and "Finished before" in said and "Trial      4" in said
    main(flags(out, *SEARCH, "--resume"))
    assert trials_of(out) == trials_of(before)
    assert weights(out) == weights(before)


def test_a_finished_search_is_not_mixed_with_another(found: Any) -> None:
    out = found[0]
    with pytest.raises(ValueError, match="is finished, with 2 steps"):
        main(flags(out, *SEARCH, "--resume"))
    with pytest.raises(ValueError, match="search: was"):
        main(flags(out, *SEARCH[:3], "{batch_size: [4, 8]}", "--resume"))
    with pytest.raises(ValueError, match="the run with the best values has begun"):
        main(flags(out, *SEARCH[:-1], "9", "--resume"))
    with pytest.raises(ValueError, match="is not empty"):
        main(flags(out, *SEARCH))


def test_it_selects_by_what_the_recipe_selects(tmp_path: Path) -> None:
    """Choices that were tried are not tried again."""
    out = tmp_path / "out"
    search = ["--search", "{batch_size: [4, 8]}", "--search_trials", "3"]
    main(flags(out, "--select", "accuracy", *search, "--max_steps", "2"))
    assert [trial["score"] for trial in trials_of(out)] == [0.5, 0.5, 0.5]
    assert len(list((out / "search").glob("trial-*"))) == 2


def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path, capsys: Any) -> None:
    """Only the first one does, as then all may fail; a resumed search asks no such values again."""

    def failing(*batch_sizes: int) -> Any:
        def run(prepared: Any) -> dict[str, float]:
            if prepared.recipe.batch_size in batch_sizes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return small_run.run(prepared)

        return run

    search = ["--search", "{batch_size: [4, 8]}", "--search_trials", "6", "--max_steps", "1"]
    command = read_command(flags(tmp_path / "first", *search), SmallRecipe)
    with pytest.raises(torch.OutOfMemoryError):
        small_run.carry_out(command, small_run.prepare, failing(4))
    command = read_command(flags(tmp_path / "out", *search), SmallRecipe)
    small_run.carry_out(command, small_run.prepare, failing(8))
    trials = trials_of(tmp_path / "out")
    assert {trial["values"]["batch_size"]: trial["failure"] for trial in trials} == {
        4: None,
        8: "OutOfMemoryError: CUDA out of memory",
    }
    assert all((trial["score"] is None) == bool(trial["failure"]) for trial in trials)
    assert capsys.readouterr().out.count("Failed     CUDA out of memory") == 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 1


def test_the_best_is_the_first_of_the_best() -> None:
    trials = [Trial({"x": n}, score) for n, score in enumerate([None, 2.0, 3.0, 3.0])]
    assert best_trial(trials, True) is trials[2] and best_trial(trials, False) is trials[1]
    with pytest.raises(ValueError, match="no trial came to a finite number"):
        best_trial(trials[:1], True)
