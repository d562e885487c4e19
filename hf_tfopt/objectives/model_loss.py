"""Any head's own loss, made exact: the mean it takes is measured, and undone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum, Terms
from hf_tfopt.objectives.base import Objective
from hf_tfopt.registry import check_name
from hf_tfopt.surgery.packed_heads import STARTS

# What a loss may be a mean over: (number of items of each example in the labels [B, ...]).
MEANS = ("labels", "shifted labels", "examples", "tokens")
TOLERANCE, LOW_PRECISION_TOLERANCE = 2e-5, 5e-2  # a mean of fp32 numbers; of bf16 ones


class ModelLoss(Objective):
    """The loss that the model itself computes, exact however the batch is cut.

    Equals `model(**batch).loss` over the whole batch. A head that takes the mean over its batch
    (question answering, multiple choice, several hundred others) is trained by the host with means
    of means, or with gradients too large. Here the mean is multiplied by the number of items it was
    taken over, and divided once by that of the whole batch. Over which items is measured on the
    first batch: its loss is compared with those of its examples alone.

    Args:
        mean: what the loss is the mean of, a name of `MEANS` ("tokens": of the attention mask);
            None: measured.

    Raises:
        ValueError: an unknown mean; while preparing, a model that gives no loss, examples end to
            end in one row, or a loss that is no mean over examples, labels or tokens.

    Paper: none; see issue 47688 of transformers.
    """

    def __init__(self, mean: str | None = None):
        self._given = None if mean is None else check_name("mean", mean, MEANS)
        self.mean = self._given

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Find what the model's loss is a mean over."""
        name = type(model).__name__
        if STARTS in batch:
            raise ValueError(
                f"ModelLoss() takes each row for an example, but {name} is given packed ones to "
                "classify: train Classification(), or pad them: "
                "ClassificationCollator(tokenizer, is_packed=False)"
            )
        self.targets = tuple(key for key in batch if _is_target(key))
        self.mean = self._given
        if self.mean is not None:
            return
        if "cu_seq_lens_q" in batch:
            raise ValueError(
                f"what the loss of {name} is a mean over can only be measured on a padded batch; "
                "this one has examples end to end. Say it: ModelLoss(mean='labels')"
            )
        size = max(2, _num_examples(batch))  # one alone is measured beside itself
        example = _uneven(batch if _num_examples(batch) > 1 else _rows(batch, [0, 0]))
        training, _ = model.training, model.eval()
        try:
            with torch.no_grad():
                whole = _loss(model, example)
                alone = [_loss(model, _rows(example, [row])) for row in range(size)]
        finally:
            model.train(training)
        self.mean = _mean_of(whole, torch.stack(alone), example, name)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The number of items that the model's loss is the mean of."""
        assert self.mean is not None, "prepare() comes first"
        return {"model_loss": _items(batch, self.mean).sum()}

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """One term, `model_loss`: the model's mean times the number of its items."""
        outputs: Any = None
        if not model.training:
            # Rows without targets fill up the last batch of several processes: no loss of theirs,
            # and some heads take the label -100 for a place in the text.
            known = _known(batch, self.targets)
            if len(known) < _num_examples(batch):
                outputs = model(**batch) if with_outputs else None
                batch = _rows(batch, known)
        count = self.counts(batch)["model_loss"]
        if _num_examples(batch) == 0:
            return {"model_loss": LossSum(count.float(), count)}, outputs
        found = model(**batch)
        loss = _loss_of(found, type(module).__name__)
        # A mean over nothing is NaN, and its sum 0.
        total = torch.where(count > 0, loss, 0.0) * count
        return {"model_loss": LossSum(total, count)}, found if outputs is None else outputs


def _is_target(name: str) -> bool:
    is_place = name.endswith("_positions")
    return is_place or (("label" in name or "target" in name) and not name.endswith("_mask"))


def _num_examples(batch: Mapping[str, Any]) -> int:
    return next(v.shape[0] for v in batch.values() if isinstance(v, Tensor) and v.dim())


def _rows(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The batch's examples at `rows`; what is not a column stays."""
    size = _num_examples(batch)
    return {
        name: value[list(rows)]
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == size
        else value
        for name, value in batch.items()
    }


def _known(batch: Mapping[str, Any], targets: Sequence[str]) -> list[int]:
    """The rows that have any target."""
    size = _num_examples(batch)
    present = [_is_given(batch[name]).reshape(size, -1).any(1) for name in targets if name in batch]
    if not present:
        return list(range(size))
    return torch.stack(present).any(0).nonzero().flatten().tolist()


def _is_given(labels: Tensor) -> Tensor:
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE_INDEX


def _uneven(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with one label left in its first row, so that labels and examples differ."""
    labels = batch.get("labels")
    if labels is None or labels.dim() != 2 or labels.is_floating_point():
        return dict(batch)
    labels = labels.clone()
    given = (labels[0] != IGNORE_INDEX).nonzero().flatten()
    labels[0, given[:-1]] = IGNORE_INDEX
    return {**batch, "labels": labels}


def _items(batch: Mapping[str, Any], mean: str) -> Tensor:
    """The items [B] of each example that a mean is over."""
    labels = batch.get("labels")
    if mean == "tokens":
        return batch["attention_mask"].flatten(1).sum(1)
    if mean == "examples" or labels is None:
        anything = next(v for v in batch.values() if isinstance(v, Tensor) and v.dim())
        return torch.ones(_num_examples(batch), dtype=torch.long, device=anything.device)
    labels = labels[:, 1:] if mean == "shifted labels" else labels
    given = _is_given(labels)
    return given.long() if given.dim() == 1 else given.flatten(1).sum(1)


def _mean_of(whole: Tensor, alone: Tensor, batch: Mapping[str, Any], name: str) -> str:
    is_exact = whole.dtype in (torch.float32, torch.float64)
    tolerance = TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE
    labels = batch.get("labels")
    for mean in MEANS:
        if "labels" in mean and (labels is None or (mean != "labels" and labels.dim() < 2)):
            continue
        if mean == "tokens" and "attention_mask" not in batch:
            continue
        items = _items(batch, mean).to(alone)
        expected = float((torch.where(items > 0, alone, 0.0) * items).sum() / items.sum())
        if abs(expected - float(whole)) <= tolerance * max(1.0, abs(expected)):
            return mean
    shown = ", ".join(f"{value:.5f}" for value in alone.tolist()[:4])
    raise ValueError(
        f"the loss of {name} is no mean over its examples, labels or tokens ({float(whole):.5f} "
        f"for a batch; its examples alone: {shown}): "
        "it cannot be made independent of the batch's cut. Train it with objective=None"
    )


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    return _loss_of(model(**batch), type(model).__name__)


def _loss_of(outputs: Any, name: str) -> Tensor:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if loss is None:
        raise ValueError(f"{name} gave no loss for the batch: does it have the labels it needs?")
    return loss
