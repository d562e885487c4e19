"""The three commands end to end, on the smallest run that there is."""

import dataclasses
import json
import random

import pytest
import torch
from torch import nn

from hf_tfopt.cli import main
from hf_tfopt.lab.experiment import Experiment
from hf_tfopt.lab.range_run import paired
from hf_tfopt.lab.settings import read_request
from hf_tfopt.lab.witness import Witness, check_alike, digest

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "max_length": 32,
    "vocab_size": 100,
    "eval_fraction": 0.1,
    "batch_size": 4,
    "dropout": 0.1,  # so that the random state counts
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    choose = random.Random(0)
    words = ["the", "cat", "reader", "river", "opens", "paints", "a", "old", "garden", "letter"]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(" ".join(choose.choices(words, k=20)) + "." for _ in range(80)))
    return path


@pytest.fixture
def words(corpus, tmp_path):
    def made(*first, **keys):
        chosen = TINY | {"corpus": corpus, "output_dir": tmp_path / "lab"} | keys
        return ["lab", *first, "bert-tiny", *(f"--{key}={value}" for key, value in chosen.items())]

    return made


@pytest.fixture
def lab(words, tmp_path, capsys):
    def run(*first, **keys):
        main(words(*first, **keys))
        return capsys.readouterr().out, tmp_path / "lab"

    return run


def assert_alike(content, num_runs, num_updates):
    """Every run began with the same weights, and saw the same batches in the same order."""
    witnesses = content["witnesses"]
    assert len(witnesses) == num_runs
    assert all(witness == witnesses[0] for witness in witnesses)
    assert len({*witnesses[0]["batches"]}) == num_updates, "each batch is another"


def test_optimizers(lab):
    told, folder = lab("optimizers", "adamw", "muon", "sgd=1e30", max_steps=4, rates=2)
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.json", "comparison.png"]
    content = json.loads((folder / "comparison.json").read_text())
    first, second, last = content["ranking"]
    assert {first["setting"], second["setting"]} == {"adamw", "muon"}
    assert first["loss"] < second["loss"]
    # 1e30 times any gradient is far outside fp32
    assert (last["setting"], last["loss"]) == ("sgd", None)
    trials = content["trials"]
    finished = [trial for trial in trials if trial["setting"] != "sgd"]
    assert_alike({"witnesses": content["witnesses"][:2]}, 2, 4)
    starts = {witness["start"] for witness in content["witnesses"]}
    assert len(starts) == 1 and len(content["witnesses"]) == len(trials) == 6
    losses = {entry["loss"] for trial in trials for entry in trial["history"][:1]}
    assert len(losses) == 1, "one first batch, one first loss"
    assert len({trial["loss"] for trial in finished}) == 4
    assert all(entry["step_seconds"] > 0 for entry in content["ranking"])
    for trial in trials:
        assert f"{trial['rate']:g}: " in told
    assert "every rate diverged" in told and "(checked)" in told


def test_schedules(lab):
    told, folder = lab("schedules", "constant", "linear", optimizer="adamw", max_steps=4, rates=2)
    content = json.loads((folder / "comparison.json").read_text())
    assert_alike(content, 4, 4)
    assert {entry["setting"] for entry in content["ranking"]} == {"constant", "linear"}
    assert content["sides"]["linear"] == {"schedule": "linear", "decay_fraction": None}
    rates = {}
    for trial in content["trials"]:
        logged = [entry["learning_rate"] for entry in trial["history"] if "loss" in entry]
        rates[trial["setting"]] = [rate / trial["rate"] for rate in logged]
    assert rates["constant"] == pytest.approx([1.0] * 4)
    assert rates["linear"] == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])  # one update of warm-up
    assert "constant" in told and "linear" in told


def test_lr_range(lab):
    told, folder = lab("lr-range", optimizer="adamw", max_steps=16, lowest=1e-4, highest=10.0)
    assert sorted(path.name for path in folder.iterdir()) == ["lr_range.json", "lr_range.png"]
    content = json.loads((folder / "lr_range.json").read_text())
    reading = content["reading"]
    assert_alike(content, 2, len(reading["losses"]))  # the second run kept the first weights
    assert 10 <= len(reading["losses"]) == len(reading["rates"]) <= 16
    assert reading["rates"][0] == pytest.approx(1e-4)
    assert "recommend" in told.lower() and f"{reading['rates'][-1]:.3g}" in told


def test_another_seed_is_noticed(words):
    """The check that all runs were given the same can fail: by the batches, by the weights."""
    request = read_request(words("optimizers", "adamw", "sgd", max_steps=2)[1:])
    experiment = Experiment(request.recipe)
    side = request.sides["adamw"]
    experiment.train(side, bar=_Bar())
    experiment.train(side, bar=_Bar())
    check_alike(experiment.witnesses)
    assert experiment.witnesses[0] == experiment.witnesses[1]
    experiment.train(dataclasses.replace(side, masking_probability=0.9), bar=_Bar())
    with pytest.raises(RuntimeError, match="same batches"):
        check_alike(experiment.witnesses)
    del experiment.witnesses[-1]
    experiment.weights["cls.predictions.transform.dense.weight"] *= 1.001
    experiment.train(side, bar=_Bar())
    with pytest.raises(RuntimeError, match="same weights"):
        check_alike(experiment.witnesses)


class _Bar:
    """A progress bar that shows nothing."""

    def update(self):
        pass

    def set_postfix_str(self, text):
        pass


def test_what_batches_differ_by_in_themselves_is_taken_out():
    assert paired([3.0, 5.0, 1.0], [2.0, 4.0, 1.5, 0.5]) == [3.0, 3.0, 1.5]


def test_a_run_that_was_stopped_is_held_to_what_it_saw():
    whole, stopped = Witness("w", ["1", "2", "3"]), Witness("w", ["1", "2"])
    check_alike([whole, stopped])
    check_alike([])
    with pytest.raises(RuntimeError, match="same batches"):
        check_alike([whole, Witness("w", ["1", "3"])])


def test_a_digest_tells_values_types_and_shapes_apart():
    weight = nn.Linear(2, 2).weight
    others = [weight + 1e-7, weight.bfloat16(), weight.flatten(), weight.T, weight[:1], 3, "3"]
    assert len({digest([other]) for other in [weight, *others]}) == len(others) + 1
    assert digest([weight]) == digest([weight.detach().clone()])
    assert digest([torch.tensor(1.0)]) != digest([torch.tensor(-1.0)])


@pytest.mark.parametrize(
    ("first", "keys", "told"),
    [
        (("optimizers", "adamw", "sgd"), {"model": "brt"}, "did you mean 'bert'?"),
        (("optimizers", "adamw", "sgd"), {"max_length": 64}, "max_length"),
        (("schedules", "cosine", "linear"), {"corpus": "nowhere.txt"}, "nowhere.txt"),
        (("schedules", "cosine", "linear"), {"warmup_steps": 90}, "warmup_steps"),
        (("lr-range",), {"lowest": 2.0, "highest": 1.0}, "lowest 2, highest 1"),
        (("lr-range",), {"max_steps": 9}, "needs 10 updates or more, got 9"),
    ],
)
def test_what_cannot_be_is_told_before_training(first, keys, told, words, capsys, monkeypatch):
    monkeypatch.setattr(Experiment, "train", _trains)
    with pytest.raises(SystemExit) as end:
        main(words(*first, **keys))
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error


def _trains(*args, **kwargs):
    raise AssertionError("it trained")


def test_a_folder_that_holds_something_is_refused_and_left_alone(words, tmp_path, capsys):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(words("optimizers", "adamw", "sgd"))
    assert "is not empty (notes.txt" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_refused(words, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(words("lr-range", output_dir=tmp_path / "file" / "below"))
    assert "cannot be written to" in capsys.readouterr().err
