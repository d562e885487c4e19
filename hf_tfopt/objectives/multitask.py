"""Several tasks at once: one loss term for each, weighed by hand or by what the model learns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.cross_entropy import cross_entropy
from hf_tfopt.losses.elementwise import binary_cross_entropy, squared_error
from hf_tfopt.losses.multitask import uncertainty_weighted
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum, Terms, summed
from hf_tfopt.objectives.base import Objective
from hf_tfopt.registry import check_name
from hf_tfopt.surgery.multitask import MultitaskModel, MultitaskOutput
from hf_tfopt.surgery.multitask_config import CLASS_PROBLEMS, Balance

LOSSES = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": squared_error,
    "token_classification": cross_entropy,
}
TARGETS = ("labels", "label_values")


class Multitask(Objective):
    """The losses of a `MultitaskModel`'s tasks, each a term of its own: `sum_i w_i * L_i`.

    L_i is cross-entropy, binary cross-entropy or squared error, as the task's problem says: the
    mean over the task's labels in the whole accumulated, distributed batch, so that it does not
    matter how many rows of which task a process or a micro-batch happens to get. A task without
    labels in the batch adds nothing.

    Args:
        weights: by task, at least 0; 1 where not given. Evaluation adds the losses plainly.

    Raises:
        ValueError: a weight below 0 or of an unknown task, or another model.

    Paper: Caruana 1997, "Multitask Learning"; no difference.
    """

    targets = TARGETS
    balance: Balance | None = None

    def __init__(self, weights: Mapping[str, float] | None = None):
        self.fixed_weights = dict(weights or {})
        for name, weight in self.fixed_weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of task {name!r} is {weight}; it must be at least 0")
        self.tasks: dict[str, dict[str, Any]] = {}

    @property
    def weights(self) -> Mapping[str, float]:
        """Those given."""
        return self.fixed_weights

    def bind(self, module: nn.Module) -> None:
        """Let the model hold what weighs its tasks, before there is an optimizer."""
        if not isinstance(module, MultitaskModel):
            raise ValueError(
                f"{type(self).__name__} trains a MultitaskModel, not a {type(module).__name__}: "
                "make one with MultitaskModel.from_encoder(model, tasks)"
            )
        self.tasks = module.config.tasks
        for name in self.fixed_weights:
            check_name("task", name, self.tasks)
        module.hold_balance(self.balance)

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Refuse batches that do not say whose the rows are."""
        if "task" not in batch and len(self.tasks) > 1:
            raise ValueError(
                f"the batch does not say the task of its rows, only {', '.join(batch)}: mix the "
                "datasets (tfo.mix) and make the batches with a MultitaskCollator"
            )

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Each task's number of labels: rows, tokens, or rows times outputs."""
        return {name: self._has_label(batch, name).sum() for name in self.tasks}

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """One term for each task, by its name; in evaluation `<task>_accuracy` too, for classes.

        The outputs are the logits of each task for all rows, NaN for those of other tasks.
        """
        outputs = self.outputs(model, batch)
        plain = self.plain_terms(module, batch, outputs)
        if model.training:
            return self.weighed(module, plain, outputs), None
        terms = {**plain, **self._accuracies(module, batch, outputs)}
        return terms, {"logits": self._for_all_rows(module, batch, outputs)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """The loss is the sum of the tasks' alone; their accuracies are terms too."""
        return {"loss": summed({name: means[name] for name in self.tasks})}

    def weighed(self, module: Any, plain: Terms, outputs: MultitaskOutput) -> Terms:
        """The terms to train on; here the trainer multiplies by the weights."""
        return plain

    def outputs(self, model: Any, batch: Mapping[str, Any]) -> MultitaskOutput:
        """What the model makes of the batch without its labels."""
        inputs = {name: value for name, value in batch.items() if name not in self.targets}
        return model(**inputs)

    def plain_terms(
        self, module: Any, batch: Mapping[str, Any], outputs: MultitaskOutput
    ) -> dict[str, LossSum]:
        """Each task's own loss of its own rows."""
        labelled = self._labelled(module, batch, outputs)
        return {
            name: LOSSES[self.tasks[name]["problem"]](logits, labels)
            for name, (logits, labels) in labelled.items()
        }

    def _accuracies(
        self, module: Any, batch: Mapping[str, Any], outputs: MultitaskOutput
    ) -> dict[str, LossSum]:
        """The right answers among a task's rows or tokens, and how many had one to give."""
        terms: dict[str, LossSum] = {}
        for name, (logits, labels) in self._labelled(module, batch, outputs).items():
            if self.tasks[name]["problem"] in CLASS_PROBLEMS:
                right = logits.argmax(dim=-1) == labels  # never so where the label is -100
                count = (labels != IGNORE_INDEX).sum()
                terms[f"{name}_accuracy"] = LossSum(right.sum(), count)
        return terms

    def _labelled(
        self, module: Any, batch: Mapping[str, Any], outputs: MultitaskOutput
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Each task's logits and labels, of its own rows."""
        assert outputs.logits is not None
        rows, length = self._rows(module, batch, outputs), _length(batch)
        columns = [batch.get(target) for target in self.targets]
        return {
            name: (logits, module.labels_of(name, rows[name], length, *columns))
            for name, logits in outputs.logits.items()
        }

    def _rows(
        self, module: Any, batch: Mapping[str, Any], outputs: MultitaskOutput
    ) -> dict[str, Tensor]:
        assert outputs.logits is not None
        first = batch.get("input_ids", batch.get("inputs_embeds"))
        return module.rows_of(batch.get("task"), first)

    def _for_all_rows(
        self, module: Any, batch: Mapping[str, Any], outputs: MultitaskOutput
    ) -> dict[str, Tensor]:
        """Logits of the same first dimension for every task, as metrics gather them."""
        assert outputs.logits is not None
        rows = self._rows(module, batch, outputs)
        number = sum(len(own) for own in rows.values())
        return {
            name: logits.new_full((number, *logits.shape[1:]), float("nan")).index_copy(
                0, rows[name], logits
            )
            for name, logits in outputs.logits.items()
        }

    def _has_label(self, batch: Mapping[str, Any], name: str) -> Tensor:
        """Where the labels or label_values of a batch are targets of this task."""
        task = self.tasks[name]
        is_class = task["problem"] in CLASS_PROBLEMS
        column = batch.get("labels" if is_class else "label_values")
        if column is None:
            return torch.zeros((), dtype=torch.bool, device=next(iter(batch.values())).device)
        width = column.shape[1] if task["problem"] == "token_classification" else task["num_labels"]
        if task["problem"] == "single_label_classification":
            width = 1
        own = column[:, :width]
        known = own != IGNORE_INDEX if is_class else ~own.isnan()
        if "task" not in batch:
            return known
        return known & (batch["task"] == list(self.tasks).index(name)).unsqueeze(1)


class UncertaintyWeighting(Multitask):
    """Tasks weighed by their noise, which is learnt: `sum_i exp(-s_i) L_i + s_i / 2`.

    For a regression it is `exp(-s_i) / 2 L_i + s_i / 2`. The s_i = log σ_i², one for each task and
    0 at first, are the model's parameter `log_variances`: saved with it and trained by the same
    optimizer, in a group without weight decay if that is `tfo.optimizer(...)`. They move slowly at
    the learning rate of a fine-tuning: `tfo.optimizer(..., multipliers={"log_variances": 100})`.

    Logs each task's plain loss by its name, what is trained as `<task>_weighted`, and the factor
    of the loss as `<task>_weight`. Evaluation is plain. An adapter of peft that is saved alone
    does not have the s_i.

    Args:
        weights: by task, what the above is multiplied by; 1 where not given.

    Raises:
        ValueError: as of `Multitask`.

    Paper: Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics" (https://arxiv.org/abs/1705.07115), equations 7 and 10. Differs:
    as `losses.multitask.uncertainty_weighted` says.
    """

    balance = "uncertainty"

    @property
    def weights(self) -> Mapping[str, float]:
        """Those given, and 0 for what is only logged."""
        given = {f"{name}_weighted": weight for name, weight in self.fixed_weights.items()}
        return {**logged_only(self.tasks), **given}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those of the plain terms, also for the weighted ones."""
        return with_weighted(super().counts(batch))

    def weighed(self, module: Any, plain: Terms, outputs: MultitaskOutput) -> Terms:
        """Plain, weighted, and the weights."""
        assert outputs.log_variances is not None, "bind() comes first"
        weighted: dict[str, LossSum] = {}
        factors: list[Tensor] = []
        for (name, term), s in zip(plain.items(), outputs.log_variances, strict=True):
            is_regression = self.tasks[name]["problem"] == "regression"
            weighted[name] = uncertainty_weighted(term, s, is_regression)
            factors.append(torch.exp(-s) * (0.5 if is_regression else 1.0))
        return logged(plain, weighted, torch.stack(factors))


def logged(plain: Terms, weighted: Terms, factors: Tensor) -> dict[str, LossSum]:
    """The terms of a micro-batch: the plain losses, what is trained, and the factors in use."""
    one = torch.ones((), device=factors.device)
    terms: dict[str, LossSum] = {}
    for number, name in enumerate(plain):
        terms[name] = LossSum(plain[name].sum.detach(), plain[name].count)
        terms[f"{name}_weighted"] = weighted[name]
        terms[f"{name}_weight"] = LossSum(factors[number].detach(), one)
    return terms


def logged_only(tasks: Mapping[str, Any]) -> dict[str, float]:
    """The trainer's factors: 0 for the plain losses and the weights that `logged` adds."""
    return {name + suffix: 0.0 for name in tasks for suffix in ("", "_weight")}


def with_weighted(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The counts of the terms that `logged` makes."""
    one = torch.ones(())
    return {
        key: value
        for name, count in counts.items()
        for key, value in (
            (name, count),
            (f"{name}_weighted", count),
            (f"{name}_weight", one.to(count.device)),
        )
    }


def _length(batch: Mapping[str, Any]) -> int:
    first = batch.get("input_ids", batch.get("inputs_embeds"))
    return first.shape[1]  # pyright: ignore[reportOptionalMemberAccess]
