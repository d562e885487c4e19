"""A wrapping hands on everything that it does not change, in real trainings too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

import hf_tfopt as tfo
from hf_tfopt.losses.reduction import LossSum, combine
from hf_tfopt.objectives.adversarial import FGM, PGD, FreeLB
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.consistency import RDrop
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from tests.invariants.cases import Columns
from tests.models import batch_for, tiny
from tests.objectives.adversarial_models import SETTINGS, classes, classifier, trained
from tests.processes import TwoInterpreters


class Loud(Objective):
    """Writes down what it hears; its loss is that of the model times a weight."""

    targets = ("labels", "others")

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @property
    def weights(self) -> dict[str, float]:
        return {"loud": 0.25}

    def bind(self, module: nn.Module) -> None:
        self.heard.append("bind")

    def prepare(self, model: nn.Module, batch: Any) -> None:
        self.targets = ("labels", "more")

    def counts(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loud": torch.tensor(len(batch["labels"]))}

    def terms(self, model: nn.Module, module: nn.Module, batch: Any, with_outputs: bool) -> Any:
        self.heard.append(self.step)
        loss = model(**batch).loss
        return {"loud": LossSum(loss * len(batch["labels"]), self.counts(batch)["loud"])}, None

    def gradients_ready(self, module: nn.Module, mean: Any) -> None:
        self.heard.append("gradients")

    def metrics(self, means: Any) -> dict[str, float]:
        return {"volume": 2 * means["loud"]}


def test_everything_is_handed_on() -> None:
    inner, model = Loud(), classifier().train()
    outer = FGM(inner, weight=2.0)
    assert outer.targets == ("labels", "others")
    outer.bind(model)
    means = trained(outer, model, classes(), step=5)
    outer.gradients_ready(model, lambda tensor: tensor)
    assert inner.heard == ["bind", 5, 5, "gradients"]
    assert outer.targets == ("labels", "more")
    assert outer.weights == {"loud": 0.25, "adversarial_loud": 0.5}
    assert set(means) == {"loud", "adversarial_loud"}
    assert outer.metrics({"loud": 3.0}) == {"volume": 6.0}
    freelb = FreeLB(inner, steps=4)
    trained(freelb, model, classes())
    assert freelb.weights == {"adversarial_loud": 0.0625}


def trainer_of(kind: Any, folder: Path, **options: Any) -> Any:
    """A short training with dropout."""
    model = tiny("bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    arguments = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    return tfo.TfoptTrainer(
        model,
        TrainingArguments(str(folder), **arguments),
        train_dataset=Columns(batch_for(None, 16)),
        eval_dataset=Columns(batch_for(None, 5, seed=1)),
        objective=kind(LanguageModeling()),
    )


def logged(trainer: Any) -> list[dict[str, float]]:
    entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return [{key: entry[key] for key in entry if key != "epoch"} for entry in entries]


ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("kind", [FGM, PGD, FreeLB, RDrop, VirtualAdversarial, SMART])


@EACH
def test_a_stopped_run_goes_on_as_if_it_had_not(kind: type, tmp_path: Path) -> None:
    whole = trainer_of(kind, tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    rest = trainer_of(kind, tmp_path / "rest")
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert logged(rest) == logged(whole) and len(logged(whole)) == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


@EACH
def test_bfloat16_and_checkpoints_under_the_trainer(kind: type, tmp_path: Path) -> None:
    trainer = trainer_of(kind, tmp_path, bf16=True, activation_checkpointing=True, max_steps=2)
    trainer.train()
    assert all(0 < entry["grad_norm"] < 100 and 0 < entry["loss"] < 20 for entry in logged(trainer))
    scores = trainer.evaluate()
    assert {"eval_loss", "eval_perplexity"} <= scores.keys()
    assert not any("adversarial" in key or "consistency" in key for key in scores)


@EACH
@pytest.mark.parametrize("name", ["bert", "t5", "classes"])
def test_a_micro_batch_without_labels_adds_nothing(kind: type, name: str) -> None:
    setting = SETTINGS[name]
    model, batch = setting.model().train(), setting.batch()
    objective = kind(setting.objective())
    objective.prepare(model, batch)
    empty = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    counts = objective.counts(batch)
    for terms in objective.passes(model, model, empty):
        combine(terms, counts, objective.weights).backward()
        supervised = [term for name, term in terms.items() if "cross" in name]
        assert all(term.sum == 0 == term.count for term in supervised)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in found)
    # of whole examples the outputs are compared, labelled or not
    is_compared = name == "classes" and kind in (SMART, VirtualAdversarial)
    assert any(gradient.any() for gradient in found) == is_compared


@pytest.mark.invariant
def test_sharded_models_get_the_same_gradients(two_interpreters: TwoInterpreters) -> None:
    """Every objective, two processes, FSDP2."""
    assert "equal" in two_interpreters.run(Path(__file__).with_name("sharded.py")).stdout
