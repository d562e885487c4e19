"""Models, batches and the trainer's part, for the tests of objectives that perturb or compare."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import LanguageModeling
from tests.models import NO_DROPOUT, SIZES, batch_for, tiny

NUM_CLASSES = 3
# fp32 gradients through two or three passes, relative to the largest of a parameter.
TOLERANCE = 2e-5


class Setting(NamedTuple):
    """A model, its objective, and the rows of its logits that are compared."""

    model: Callable[[], Any]
    batch: Callable[[], dict[str, Tensor]]
    objective: Callable[[], Objective]
    items: Callable[[Tensor], Tensor]


def classifier(**options: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(**{**SIZES, **NO_DROPOUT, "num_labels": NUM_CLASSES, **options})
    return BertForSequenceClassification(config)


def padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with padding behind its second and third rows."""
    for row, length in ((1, 7), (2, 10)):
        batch["attention_mask"][row, length:] = 0
        batch["input_ids"][row, length:] = 0
        if batch["labels"].dim() == 2:
            batch["labels"][row, length:] = -100
    return batch


def classes() -> dict[str, Tensor]:
    batch = batch_for(None)
    return padded({**batch, "labels": batch["input_ids"].sum(1) % NUM_CLASSES})


def tokens() -> dict[str, Tensor]:
    return padded(batch_for(None))


def labelled(logits: Tensor) -> Tensor:
    return logits[tokens()["labels"] != -100]


def shifted(logits: Tensor) -> Tensor:
    return logits[:, :-1][tokens()["labels"][:, 1:] != -100]


SETTINGS = {
    "classes": Setting(classifier, classes, Classification, lambda logits: logits),
    "bert": Setting(lambda: tiny("bert"), tokens, LanguageModeling, labelled),
    "gpt2": Setting(lambda: tiny("gpt2"), tokens, LanguageModeling, shifted),
    "t5": Setting(lambda: tiny("t5"), tokens, LanguageModeling, labelled),
}


def trained(
    objective: Objective, model: nn.Module, batch: Mapping[str, Tensor], step: int = 0
) -> dict[str, Tensor]:
    """The terms' means of one step as the trainer takes it; gradients are left in the model."""
    objective.prepare(model, batch)
    objective.step = step
    counts = objective.counts(batch)
    objective.batch_counts = counts
    model.zero_grad()
    means: dict[str, list[Tensor]] = {}
    num_passes = 0
    for terms in objective.passes(model, model, batch):
        combine(terms, counts, objective.weights).backward()
        assert terms.keys() <= counts.keys()
        for name, term in terms.items():
            means.setdefault(name, []).append(term.sum.detach() / counts[name])
        num_passes += 1
    assert num_passes == objective.num_passes
    assert means.keys() == counts.keys()
    return {name: torch.stack(values).mean() for name, values in means.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())
