"""Averages of the weights: what is evaluated, saved, resumed and left after training."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

import hf_tfopt as tfo
from hf_tfopt.callbacks.averaged_weights import decay_after, is_averaged, mean, move_toward
from hf_tfopt.callbacks.weight_average import WeightAverage
from tests.callbacks.runs import trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.processes import TwoInterpreters
from tests.references.averaging import exponential_average, tail_average, window_average
from tests.test_trainer import arguments

SAVES = {"save_strategy": "steps", "save_steps": 2}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}


class Trail(TrainerCallback):
    """The weights that are trained, after every step."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append([p.detach().clone() for p in model.parameters()])


class Evaluated(TrainerCallback):
    """What the model holds in the last batch of each evaluation."""

    def __init__(self) -> None:
        self.weights: dict[int, list[Tensor]] = {}

    def on_prediction_step(self, args, state, control, model=None, **kwargs) -> None:
        self.weights[state.global_step] = [p.detach().clone() for p in model.parameters()]


AVERAGES = [
    (lambda: tfo.ExponentialAverage(0.3), lambda w: exponential_average(w, 0.3)),
    (lambda: tfo.ExponentialAverage(0.3, every=2), lambda w: exponential_average(w[1::2], 0.3)),
    (lambda: tfo.StochasticWeightAverage(0.5), lambda w: tail_average(w, 2)),
    (lambda: tfo.StochasticWeightAverage(1, every=2), lambda w: tail_average(w[2::2], 0)),
    (lambda: tfo.LatestWeightAverage(2, every=1), lambda w: window_average(w, 2)),
]


def assert_close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """fp32 averages of a few weights against fp64: some units in the last place."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


def assert_equal(found: Any, expected: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def weights_in(path: Path, names: Any) -> list[Tensor]:
    saved = load_file(path)
    return [saved[name] for name in names]


def names_of(trainer: Trainer) -> list[str]:
    return [name for name, _ in trainer.model.named_parameters()]


def test_the_formulas() -> None:
    assert [decay_after(n, 0.999) for n in (1, 8, 100)] == [2 / 11, 0.5, 101 / 110]
    assert decay_after(10**6, 0.999) == 0.999

    def steps(start: float, every: int) -> list[int]:
        return [step for step in range(1, 9) if is_averaged(step, start, every, max_steps=8)]

    assert steps(0, 1) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps(0, 3) == [3, 6]
    assert steps(0.75, 1) == steps(6, 1) == [7, 8]
    assert steps(1, 3) == [4, 7]
    assert steps(0.99, 1) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mean_of_equal_weights_is_those_weights(dtype: torch.dtype) -> None:
    seed = 5
    weights = [torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)]
    found = mean([weights, weights, weights])
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(found[0].to(dtype), weights[0])
    move_toward(found, weights, 0.37)
    assert torch.equal(found[0].to(dtype), weights[0])


@pytest.mark.parametrize("how", ["tfopt", "attach"])
@pytest.mark.parametrize(("make", "expected"), AVERAGES)
def test_evaluation_and_the_end_see_the_average_and_checkpoints_the_weights(
    make: Any, expected: Any, how: str, tmp_path: Path
) -> None:
    average = make()
    trainer = trainer_with(tmp_path, [average], how, **SAVES, **EVALUATES)
    trail, evaluated = Trail(), Evaluated()
    trainer.add_callback(trail)
    trainer.add_callback(evaluated)
    trainer.train()
    assert_close([p.detach() for p in trainer.model.parameters()], expected(trail.weights))
    names = names_of(trainer)
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        trained = trail.weights[step - 1]
        assert_equal(weights_in(folder / "model.safetensors", names), trained)
        if any(is_averaged(s, average.start, average.every, 4) for s in range(1, step + 1)):
            assert_close(evaluated.weights[step], expected(trail.weights[:step]))
            model = tfo.load_average(tiny("bert", seed=9), folder)
            assert_equal([p.detach() for p in model.parameters()], evaluated.weights[step])
        else:
            assert not (folder / "weight_average.safetensors").exists()
            assert_equal(evaluated.weights[step], trained)
    assert not {"eval", "train"} & set(vars(trainer.optimizer.optimizer))
    trainer.save_model(str(tmp_path / "final"))
    final = weights_in(tmp_path / "final" / "model.safetensors", names)
    assert_equal(final, [p.detach() for p in trainer.model.parameters()])
    trainer.evaluate()
    assert_equal(final, [p.detach() for p in trainer.model.parameters()])


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    """Evaluations, predictions and checkpoints in between included."""
    trails = []
    for callbacks in ([], [tfo.ExponentialAverage(0.3), tfo.LatestWeightAverage(2, every=1)]):
        trainer, trail = trainer_with(tmp_path, callbacks, **SAVES, **EVALUATES), Trail()
        trainer.add_callback(trail)
        trainer.train()
        trails.append([tensor for weights in trail.weights for tensor in weights])
    assert_equal(*trails)


class Asks(TrainerCallback):
    """Evaluates and predicts wherever the host lets it."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.losses: list[float] = []

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        self.losses.append(self.trainer.evaluate()["eval_loss"])
        self.trainer.predict(Rows(4, seed=2))

    on_pre_optimizer_step = on_substep_end


def test_an_evaluation_at_any_moment_sees_the_average_and_leaves_no_trace(tmp_path: Path) -> None:
    plain, trail = trainer_with(tmp_path), Trail()
    plain.add_callback(trail)
    plain.train()
    asked, other = trainer_with(tmp_path, [tfo.StochasticWeightAverage(0)]), Trail()
    asks = Asks(asked)
    asked.add_callback(asks)
    asked.add_callback(other)
    asked.train()
    for one, same in zip(trail.weights, other.weights, strict=True):
        assert_equal(one, same)
    model = tiny("bert")
    with torch.no_grad():
        for parameter, value in zip(
            model.parameters(), tail_average(trail.weights[:3], 0), strict=True
        ):
            parameter.copy_(value)
    expected = trainer_with(tmp_path, model=model).evaluate()["eval_loss"]
    assert asks.losses[-1] == pytest.approx(expected, rel=1e-5)


def test_several_evaluation_sets_are_all_of_the_average(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.ExponentialAverage(0.3)], **EVALUATES)
    trainer.eval_dataset = {"a": Rows(8, seed=1), "b": Rows(8, seed=1)}
    trainer.train()
    found = {k: v for entry in trainer.state.log_history for k, v in entry.items()}
    assert found["eval_a_loss"] == found["eval_b_loss"]


@pytest.mark.invariant
@pytest.mark.parametrize(("make", "expected"), AVERAGES)
def test_goes_on_bit_for_bit_from_any_step(make: Any, expected: Any, tmp_path: Path) -> None:
    whole = trainer_with(tmp_path, [make()], save_strategy="steps", save_steps=1)
    whole.train()
    for step in (1, 3):
        again = trainer_with(tmp_path / "again", [make()])
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_equal(again.model.state_dict().values(), whole.model.state_dict().values())


def test_a_stock_trainer_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    found = []
    for resume in (None, True):
        args = arguments(tmp_path, max_steps=4, **SAVES, seed=1)
        trainer = Trainer(
            tiny("bert"), args, train_dataset=Rows(40), callbacks=[tfo.ExponentialAverage(0.3)]
        )
        trainer.train(resume_from_checkpoint=resume)
        found.append(list(trainer.model.state_dict().values()))
        shutil.rmtree(tmp_path / "checkpoint-4")
    assert_equal(*found)


@pytest.mark.parametrize("how", ["tfopt", "stock"])
def test_an_evaluation_before_the_first_step_of_a_resumed_run_is_of_the_average(
    how: str, tmp_path: Path
) -> None:
    average = tfo.ExponentialAverage(0.3)
    trainer_with(tmp_path, [tfo.ExponentialAverage(0.3)], **SAVES).train()
    folder, evaluated = tmp_path / "checkpoint-2", Evaluated()
    options = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 9}
    if how == "tfopt":
        trainer = trainer_with(tmp_path / "again", [average], **options)
    else:
        args = arguments(tmp_path, max_steps=4, gradient_accumulation_steps=2, **options)
        data = {"train_dataset": Rows(32), "eval_dataset": Rows(8)}
        optimizer = tfo.optimizer("adamw", lr=1e-3, weight_decay=0.01)
        trainer = Trainer(
            tiny("bert"), args, **data, callbacks=[average], optimizer_cls_and_kwargs=optimizer
        )
    trainer.add_callback(evaluated)
    trainer.train(resume_from_checkpoint=str(folder))
    model = tfo.load_average(tiny("bert", seed=9), folder)
    assert_equal([p.detach() for p in model.parameters()], evaluated.weights[2])


class Break(TrainerCallback):
    """Breaks training off in an evaluation, once."""

    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == 2 and not hasattr(self, "has_broken"):
            self.has_broken = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["tfopt", "stock"])
def test_training_broken_off_in_an_evaluation_leaves_the_weights_that_are_trained(
    how: str, tmp_path: Path
) -> None:
    average = tfo.ExponentialAverage(0.3)
    if how == "tfopt":
        trainer = trainer_with(tmp_path, [average], **EVALUATES)
    else:
        args = arguments(tmp_path, max_steps=4, **EVALUATES)
        data = {"train_dataset": Rows(32), "eval_dataset": Rows(8)}
        trainer = Trainer(tiny("bert"), args, **data, callbacks=[average])
    trail = Trail()
    trainer.add_callback(trail)
    trainer.add_callback(Break())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    if how == "stock":  # which has no end; the next beginning is one
        average.release()
    assert_equal([p.detach() for p in trainer.model.parameters()], trail.weights[1])
    assert not {"eval", "train"} & set(vars(trainer.optimizer.optimizer))
    trainer.train()
    assert trainer.state.global_step == 4


def test_the_average_is_of_the_checkpoint_that_is_taken(tmp_path: Path) -> None:
    """Where the arguments name another, of another step; and of another run."""
    whole = trainer_with(tmp_path / "one", [tfo.ExponentialAverage(0.3)], **SAVES)
    whole.train()
    torch.manual_seed(5)
    other = trainer_with(tmp_path / "two", [tfo.ExponentialAverage(0.3)], **SAVES, seed=5)
    other.train()
    shutil.rmtree(tmp_path / "one" / "checkpoint-4")
    for named in (tmp_path / "two" / "checkpoint-4", tmp_path / "two" / "checkpoint-2"):
        again = trainer_with(
            tmp_path / "one", [tfo.ExponentialAverage(0.3)], resume_from_checkpoint=str(named)
        )
        again.train(resume_from_checkpoint=True)
        assert_equal(again.model.state_dict().values(), whole.model.state_dict().values())


def test_a_stock_trainer_passes_over_the_average_of_another_step(tmp_path: Path) -> None:
    found = []
    for resume in (None, True):
        args = arguments(tmp_path, max_steps=4, **SAVES)
        args.resume_from_checkpoint = None if resume is None else str(tmp_path / "other")
        callbacks = [tfo.ExponentialAverage(0.3)]
        trainer = Trainer(tiny("bert"), args, train_dataset=Rows(40), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        found.append(list(trainer.model.state_dict().values()))
        shutil.move(tmp_path / "checkpoint-4", tmp_path / ("other" if resume is None else "last"))
    assert_equal(*found)


def test_an_average_that_two_trainers_share_is_in_the_folder_of_the_one_that_trains(
    tmp_path: Path,
) -> None:
    average = tfo.ExponentialAverage(0.3)
    first = trainer_with(tmp_path / "one", [average], **SAVES)
    trainer_with(tmp_path / "two", [average], **SAVES)
    first.train()
    assert len(list((tmp_path / "one").glob("*/weight_average.safetensors"))) == 2
    assert not list((tmp_path / "two").glob("*"))


def test_an_average_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    trainer_with(tmp_path, [tfo.ExponentialAverage()], **SAVES).train()
    folder = tmp_path / "checkpoint-2"
    (folder / "weight_average.safetensors").unlink()
    again = trainer_with(tmp_path, [tfo.ExponentialAverage()], **SAVES)
    with pytest.raises(ValueError, match=r"average of 2 weights.*resume_from_checkpoint"):
        again.train(resume_from_checkpoint=str(folder))
    trainer_with(tmp_path, [], **SAVES).train(resume_from_checkpoint=str(folder))


def test_a_finished_run_taken_up_again_ends_with_the_average(tmp_path: Path) -> None:
    whole = trainer_with(tmp_path, [tfo.ExponentialAverage(0.3)], **SAVES)
    whole.train()
    again = trainer_with(tmp_path, [tfo.ExponentialAverage(0.3)], **SAVES)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert_equal(again.model.state_dict().values(), whole.model.state_dict().values())


@pytest.mark.parametrize("is_high_best", [True, False])
def test_the_best_model_is_the_average_that_was_evaluated(
    is_high_best: bool, tmp_path: Path
) -> None:
    options = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": is_high_best,
    }
    trainer = trainer_with(
        tmp_path, [tfo.StochasticWeightAverage(1)], **SAVES, **EVALUATES, **options
    )
    evaluated = Evaluated()
    trainer.add_callback(evaluated)
    trainer.train()
    best = trainer.state.best_global_step
    assert_equal([p.detach() for p in trainer.model.parameters()], evaluated.weights[best])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_a_best_model_from_before_the_average_is_what_it_was(tmp_path: Path, caplog: Any) -> None:
    trainer = trainer_with(
        tmp_path,
        [tfo.StochasticWeightAverage(2)],
        **SAVES,
        **EVALUATES,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
    )
    trail = Trail()
    trainer.add_callback(trail)
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert_equal([p.detach() for p in trainer.model.parameters()], trail.weights[1])


def test_saving_the_best_alone_keeps_its_average(tmp_path: Path) -> None:
    trainer = trainer_with(
        tmp_path,
        [tfo.ExponentialAverage(0.3)],
        save_strategy="best",
        metric_for_best_model="loss",
        **EVALUATES,
    )
    trainer.train()
    for folder in tmp_path.glob("checkpoint-*"):
        files = {path.name for path in folder.iterdir()}
        assert {"weight_average.safetensors", "model.safetensors", "trainer_state.json"} <= files


def test_each_epochs_checkpoint_has_the_average(tmp_path: Path) -> None:
    trainer = trainer_with(
        tmp_path,
        [tfo.ExponentialAverage(0.3)],
        save_strategy="epoch",
        max_steps=-1,
        num_train_epochs=2,
        num_rows=16,
    )
    trainer.train()
    for step in (2, 4):
        assert (tmp_path / f"checkpoint-{step}" / "weight_average.safetensors").is_file()
    assert not list(tmp_path.glob("**/.weight_average*"))


def test_of_two_the_first_is_evaluated_and_each_has_its_file(tmp_path: Path) -> None:
    averages = [tfo.LatestWeightAverage(2, every=1), tfo.ExponentialAverage(0.3)]
    trainer, trail = trainer_with(tmp_path, averages, **SAVES), Trail()
    trainer.add_callback(trail)
    trainer.train()
    last = trail.weights
    assert_close([p.detach() for p in trainer.model.parameters()], window_average(last, 2))
    file = "weight_average_2.safetensors"
    model = tfo.load_average(tiny("bert"), tmp_path / "checkpoint-4", file)
    assert_close([p.detach() for p in model.parameters()], exponential_average(last, 0.3))
    # the second alone goes on with its own
    again = trainer_with(tmp_path / "again", [tfo.ExponentialAverage(0.3)], **SAVES)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close([p.detach() for p in again.model.parameters()], exponential_average(last, 0.3))


def test_a_bf16_model_is_averaged_in_fp32(tmp_path: Path) -> None:
    model = tiny("bert").to(torch.bfloat16)
    trainer = trainer_with(tmp_path, [tfo.ExponentialAverage(0.3)], model=model, **SAVES)
    trail = Trail()
    trainer.add_callback(trail)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "weight_average.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    expected = exponential_average(trail.weights, 0.3)
    assert_close([saved[f"0/{name}"] for name in names_of(trainer)], expected)
    found = [p.detach() for p in trainer.model.parameters()]
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    # bf16 rounds to one part in 256
    assert_close(found, expected, tolerance=1 / 256)


def test_adapters_are_averaged_alone(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("bert"), peft.LoraConfig(r=2, target_modules=["query"]))
    trainer = trainer_with(tmp_path, [tfo.ExponentialAverage(0.3)], model=model, lr=0.1, **SAVES)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "weight_average.safetensors")
    assert saved and all("lora_" in name for name in saved)
    whole = [p.detach().clone() for p in model.parameters()]
    fresh = peft.get_peft_model(tiny("bert"), peft.LoraConfig(r=2, target_modules=["query"]))
    tfo.load_average(fresh, tmp_path / "checkpoint-4")
    assert_equal(whole, [p.detach() for p in fresh.parameters()])


def test_a_run_that_ends_before_the_average_begins_says_so(tmp_path: Path, caplog: Any) -> None:
    trainer, trail = trainer_with(tmp_path, [tfo.StochasticWeightAverage(100)]), Trail()
    trainer.add_callback(trail)
    trainer.train()
    assert "no average" in caplog.text
    assert_equal([p.detach() for p in trainer.model.parameters()], trail.weights[-1])


def test_what_averages_itself_is_refused(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.ExponentialAverage()])
    trainer.optimizer_cls_and_kwargs = tfo.optimizer("schedule_free", lr=1e-3)
    with pytest.raises(ValueError, match="an average of its own"):
        trainer.train()


def test_engines_that_join_weights_are_refused(tmp_path: Path) -> None:
    callback = tfo.LatestWeightAverage()
    trainer = trainer_with(tmp_path, [])
    trainer.create_optimizer()
    trainer.args.deepspeed_plugin = object()
    begin = [trainer.args, trainer.state, trainer.control]
    callback.on_train_begin(*begin)
    with pytest.raises(ValueError, match="DeepSpeed"):
        callback.on_epoch_begin(*begin, model=trainer.model, optimizer=trainer.optimizer)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tfo.ExponentialAverage(decay=1.0), "decay"),
        (lambda: tfo.ExponentialAverage(every=0), "every"),
        (lambda: tfo.StochasticWeightAverage(start=-0.1), "start"),
        (lambda: tfo.StochasticWeightAverage(start=1.5), "neither a share"),
        (lambda: tfo.StochasticWeightAverage(start=math.nan), "start"),
        (lambda: tfo.LatestWeightAverage(num=0), "num"),
    ],
)
def test_options_out_of_range(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_what_a_user_gets_wrong_when_loading(tmp_path: Path) -> None:
    trainer_with(tmp_path, [tfo.ExponentialAverage()], **SAVES).train()
    folder = tmp_path / "checkpoint-4"
    with pytest.raises(ValueError, match="averages in this folder: none"):
        tfo.load_average(tiny("bert"), tmp_path)
    with pytest.raises(ValueError, match=r"bert\.embeddings.*DistilBert"):
        tfo.load_average(tiny("distilbert"), folder)
    other = trainer_with(tmp_path, [tfo.ExponentialAverage()])
    other.model.bert.embeddings.requires_grad_(False)
    with pytest.raises(ValueError, match="in the file alone"):
        callback = next(c for c in other.callback_handler.callbacks if isinstance(c, WeightAverage))
        other.create_optimizer()
        callback._parameters = {
            name: p for name, p in other.model.named_parameters() if p.requires_grad
        }
        callback._read(folder / "weight_average.safetensors")


@pytest.mark.invariant
def test_two_processes_go_on_bit_for_bit_and_shards_are_saved_whole(
    tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    out = tmp_path / "out.json"
    two_interpreters.run(Path(__file__).with_name("averaged_run.py"), out, tmp_path)
    (whole, again), (other, other_again) = json.loads(out.read_text())
    # the resumed run has the losses of the first part from the checkpoint
    assert whole == again == other == other_again
