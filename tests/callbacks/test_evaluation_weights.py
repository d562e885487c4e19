"""Schedule-Free under the host's Trainer: what is saved, evaluated and resumed are the averages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import hf_tfopt as tfo
from hf_tfopt.callbacks.evaluation_weights import EvaluationWeights

BETA = 0.8


class Points(Dataset):
    """Points whose label is their largest coordinate."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(64, 5, generator=generator)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"points": self.points[index], "labels": self.points[index].argmax()}


class Classifier(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 5))

    def forward(self, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(points)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Averages(TrainerCallback):
    """x of every step, computed from y and z before anything changes over to it."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, Tensor]] = {}

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        assert all(group["train_mode"] for group in optimizer.param_groups)
        self.by_step[state.global_step + 1] = {
            name: (y - (1 - BETA) * optimizer.state[y]["z"]).detach() / BETA
            for name, y in model.named_parameters()
        }


def trainer(folder: Path, name: str = "schedule_free", **arguments: Any) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    betas = (BETA, 0.99)
    return Trainer(
        Classifier(),
        TrainingArguments(**{**settings, **arguments}),
        train_dataset=Points(),
        eval_dataset=Points(seed=1),
        optimizer_cls_and_kwargs=tfo.optimizer(name, lr=0.05, betas=betas, weight_decay=0.1),
        callbacks=[EvaluationWeights()],
    )


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def saved(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # both are one linear step from y and z, in fp32
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())


def test_checkpoints_and_the_model_after_training_hold_the_averages(tmp_path) -> None:
    run, averages = trainer(tmp_path, max_steps=11), Averages()
    run.add_callback(averages)
    run.train()
    for step in (3, 6, 9, 11):
        assert_close(saved(tmp_path / f"checkpoint-{step}"), averages.by_step[step])
    run.save_model(str(tmp_path / "final"))
    assert_close(saved(tmp_path / "final"), averages.by_step[11])
    trained = run.optimizer.optimizer.state  # and training points are something else
    assert any((x - trained[x]["z"]).abs().max() > 1e-2 for x in run.model.parameters())


def test_the_model_holds_the_averages_where_nothing_is_saved(tmp_path) -> None:
    for arguments in ({"max_steps": 11}, {"max_steps": -1, "num_train_epochs": 2}):
        run, averages = trainer(tmp_path, save_strategy="no", **arguments), Averages()
        run.add_callback(averages)
        run.train()
        assert_close(weights(run), averages.by_step[run.state.global_step])


def test_each_epochs_checkpoint_holds_the_averages(tmp_path) -> None:
    run = trainer(tmp_path, save_strategy="epoch", max_steps=-1, num_train_epochs=2)
    averages = Averages()
    run.add_callback(averages)
    run.train()
    for step in (8, 16):
        assert_close(saved(tmp_path / f"checkpoint-{step}"), averages.by_step[step])


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 5


def test_a_run_that_another_callback_ends_holds_the_averages(tmp_path) -> None:
    run, averages = trainer(tmp_path, save_strategy="no"), Averages()
    run.add_callback(averages)
    run.add_callback(Stop())  # after ours
    run.train()
    assert run.state.global_step == 5
    assert_close(weights(run), averages.by_step[5])


def test_a_best_model_loaded_at_the_end_outlasts_an_evaluation(tmp_path) -> None:
    run = trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worst: the first one
    )
    run.add_callback(Stop())  # with no evaluation
    run.train()
    assert run.state.global_step == 5
    assert run.state.best_global_step == 3
    best = saved(tmp_path / "checkpoint-3")
    assert_equal(weights(run), best)
    loss = run.evaluate()["eval_loss"]
    assert loss == pytest.approx(run.state.log_history[0]["eval_loss"])
    assert_equal(weights(run), best)


@pytest.mark.parametrize("evaluation", [{}, {"eval_strategy": "steps", "eval_steps": 2}])
def test_goes_on_bit_for_bit(evaluation, tmp_path) -> None:
    whole = trainer(tmp_path, **evaluation)
    whole.train()
    resumed = trainer(tmp_path, **evaluation)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_equal(weights(resumed), weights(whole))
    states = [run.optimizer.state_dict() for run in (resumed, whole)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for one, other in zip(*(state["state"].values() for state in states), strict=True):
        assert_equal(one, other)


def test_leaves_other_optimizers_alone(tmp_path) -> None:
    run = trainer(tmp_path, "adamw")
    run.train()
    other = trainer(tmp_path, "adamw")
    other.remove_callback(EvaluationWeights)
    other.train()
    assert_equal(weights(run), weights(other))


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "num_warnings"),
    [("linear", 0, 1), ("constant", 0, 0), ("constant_with_warmup", 3, 0), ("cosine", 4, 1)],
)
def test_warns_once_of_a_learning_rate_that_falls(
    schedule, warmup_steps, num_warnings, tmp_path, caplog
) -> None:
    run = trainer(
        tmp_path, save_strategy="no", lr_scheduler_type=schedule, warmup_steps=warmup_steps
    )
    run.train()
    said = [record for record in caplog.records if "learning rate falls" in record.getMessage()]
    assert len(said) == num_warnings


def test_weights_of_which_an_engine_trains_copies_are_refused(tmp_path) -> None:
    for name in ("schedule_free", "adamw"):
        run = trainer(tmp_path, name)
        optimizer = run.create_optimizer()
        flat = nn.Parameter(torch.ones(32))  # as ZeRO puts one in the place of a group's parameters
        group = next(g for g in optimizer.param_groups if len(g["params"]) > 1)
        group["params"] = [flat]
        begin = [run.args, run.state, run.control]
        if name == "adamw":
            EvaluationWeights().on_train_begin(*begin, optimizer=optimizer)
        else:
            with pytest.raises(ValueError, match="an engine trains joined copies"):
                EvaluationWeights().on_train_begin(*begin, optimizer=optimizer)
