"""Would the stock Trainer scale a model's loss wrongly, and by how much?"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LossScaling:
    """What `check_loss_scaling` found.

    Args:
        model: the model's class.
        is_trusted: the host believes that the model divides its loss by `num_items_in_batch`
            (its forward takes `**kwargs`) and so does not divide by the accumulation steps.
        is_divided: the model really does divide by it.
        factor: loss and gradients of the stock Trainer over the right ones.
    """

    model: str
    is_trusted: bool
    is_divided: bool
    factor: float

    @property
    def is_right(self) -> bool:
        """Whether the stock Trainer scales this model's loss rightly."""
        return self.factor == 1.0

    def __str__(self) -> str:
        if self.is_right:
            return f"{self.model}: the stock Trainer scales its loss rightly"
        return (
            f"{self.model}: the stock Trainer makes its loss and gradients {self.factor:g} times "
            "too large (it ignores num_items_in_batch); use TfoptTrainer or tfo.attach(trainer)"
        )


@torch.no_grad()
def check_loss_scaling(
    model: nn.Module,
    batch: Mapping[str, Tensor] | None = None,
    *,
    gradient_accumulation_steps: int = 4,
    num_processes: int = 1,
) -> LossScaling:
    """Measure whether the stock Trainer would scale `model`'s loss wrongly.

    The host (5.23) takes `**kwargs` in a model's forward as the promise to divide the loss by
    `num_items_in_batch`. Where the loss does not change with that number, the promise is not kept
    and the factor is `gradient_accumulation_steps * num_processes`.

    Args:
        model: with a head that gives a loss.
        batch: inputs with labels; a small one is made up if not given.
        gradient_accumulation_steps: of the training in question.
        num_processes: of the training in question.

    Raises:
        ValueError: the model gives no loss for the batch.

    Paper: none; see issue 47688 of transformers.
    """
    was_training = model.training
    model.eval()
    try:
        batch = _made_up_batch(model) if batch is None else batch
        # Without labels in the batch the host counts nothing and divides as it should.
        is_trusted = _is_trusted(model) and "labels" in batch
        is_divided = is_trusted and _loss_follows_items(model, batch)
    finally:
        model.train(was_training)
    is_wrong = is_trusted and not is_divided
    factor = float(gradient_accumulation_steps * num_processes) if is_wrong else 1.0
    return LossScaling(type(model).__name__, is_trusted, is_divided, factor)


def _is_trusted(model: Any) -> bool:
    """As `Trainer.__init__` decides it (transformers 5.23, trainer.py, "Model introspection")."""
    if hasattr(model, "accepts_loss_kwargs"):
        return bool(model.accepts_loss_kwargs)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


def _loss_follows_items(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether doubling `num_items_in_batch` halves the loss."""
    losses = []
    for num_items in (8, 16):
        output = model(**batch, num_items_in_batch=torch.tensor(num_items))
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if loss is None:
            raise ValueError(
                f"{type(model).__name__} gave no loss for a batch of {', '.join(batch)}; "
                "pass a batch with the labels it needs"
            )
        losses.append(float(loss))
    return abs(losses[1] - losses[0] / 2) < 1e-3 * abs(losses[0])


def _made_up_batch(model: Any) -> dict[str, Tensor]:
    """Two rows of eight tokens with labels of the shape that the head's name asks for."""
    config = model.config
    name = type(model).__name__
    ids = torch.arange(16).reshape(2, 8) % min(config.get_text_config().vocab_size, 16)
    ids = ids.to(next(model.parameters()).device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    row = torch.zeros(2, dtype=torch.long, device=ids.device)
    if "SequenceClassification" in name:
        row[1] = config.num_labels - 1
        return {**batch, "labels": row}
    if "TokenClassification" in name:
        return {**batch, "labels": ids % config.num_labels}
    if "QuestionAnswering" in name:
        return {**batch, "start_positions": row, "end_positions": row + 1}
    if "NextSentence" in name:
        return {**batch, "labels": row}
    if "PreTraining" in name:
        return {**batch, "labels": ids, "next_sentence_label": row}
    return {**batch, "labels": ids}
