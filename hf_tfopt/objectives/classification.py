"""Classification of sequences and tokens, several labels at once, and regression."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.cross_entropy import CrossEntropyForm, count_of, cross_entropy
from hf_tfopt.losses.elementwise import binary_cross_entropy, squared_error
from hf_tfopt.losses.head import logits_of
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum, Terms, divide
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.class_weights import ClassWeights
from hf_tfopt.registry import check_name

# The host's names (`config.problem_type`), and the term that each one trains.
PROBLEMS = {
    "single_label_classification": "cross_entropy",
    "multi_label_classification": "binary_cross_entropy",
    "regression": "squared_error",
}
# fp32 means of the same numbers in another order, and bf16 logits, which keep 8 bits
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 5e-2


class Classification(Objective):
    """Cross-entropy, binary cross-entropy or squared error of a model's logits and labels.

    Equals the loss of `BertForSequenceClassification`, `BertForTokenClassification` and their like:
    the mean over the labelled examples or tokens; over examples and classes for several labels at
    once; over examples and outputs for regression. Each is one sum and one count, so that it is
    exact however the batch is cut. Labels are -100 where there is no target, and NaN where one of
    several at once has none.

    Args:
        label_smoothing: ε in [0, 1), the ε / C form (ε / 2 for several labels at once); this and
            the next three while training only: evaluation is plain.
        class_weights: one for each class, at least 0; the count is then the sum of the labels'
            weights.
        focal_gamma: γ of the factor (1 - p)^γ, at least 0; not with label_smoothing.
        z_loss: factor of `logsumexp(logits)²`, at least 0; of single labels.
        problem: a name of `PROBLEMS`; None: the model's `config.problem_type`, or as the host
            decides: one output is regression, whole numbers are classes, fractions several labels.

    Raises:
        ValueError: an option out of its range or without a meaning for the problem; while
            preparing, labels that do not fit, or a model with another loss of its own.

    Paper: Devlin et al. 2019, "BERT", section 4.1; no difference in the loss itself. The options'
    papers are named in `losses.cross_entropy`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Tensor | None = None,
        focal_gamma: float = 0.0,
        z_loss: float = 0.0,
        problem: str | None = None,
    ):
        self.form = CrossEntropyForm(label_smoothing, z_loss, focal_gamma)
        self.class_weights = ClassWeights(class_weights)
        self._given = None if problem is None else check_name("problem", problem, PROBLEMS)
        self.problem = self._given
        self.num_labels = 0

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Find the problem, and compare with the model's own loss."""
        if "labels" not in batch:
            raise ValueError(f"the batch has no labels, only {', '.join(batch)}")
        config: Any = model.config
        with torch.no_grad():
            training, _ = model.training, model.eval()
            try:
                logits = logits_of(model(**_inputs(batch)))
                self.num_labels = logits.shape[-1]
                self.problem = self._given or _problem(config, batch["labels"])
                self._check_options(batch["labels"])
                own = _own_loss(model, batch)
            finally:
                model.train(training)
            term = self._term(logits, batch["labels"], is_plain=True)
        _check_same(type(model).__name__, own, divide(term.sum, term.count))
        if getattr(config, "problem_type", None) is None and logits.dim() == 2:
            config.problem_type = self.problem  # so that the saved model's own loss is this one

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The number of labels (elements, where examples have several), or their weights' sum."""
        assert self.problem is not None, "prepare() comes first"
        labels: Tensor = batch["labels"]
        weights = self.class_weights.on(labels.device)
        if labels.is_floating_point():
            self._check_numbers(labels)
            weights = torch.ones_like(labels) if weights is None else weights
            count = (weights.to(labels) * ~labels.isnan()).sum()
        elif self.problem == "regression":
            count = (labels != IGNORE_INDEX).sum()
        else:
            targets = labels[labels != IGNORE_INDEX]
            count = count_of(targets, weights)
        return {PROBLEMS[self.problem]: count}

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """One term, named after the loss of the problem."""
        assert self.problem is not None, "prepare() comes first"
        outputs = model(**_inputs(batch))
        term = self._term(logits_of(outputs), batch["labels"], is_plain=not model.training)
        return {PROBLEMS[self.problem]: term}, outputs

    def _term(self, logits: Tensor, labels: Tensor, is_plain: bool) -> LossSum:
        form = CrossEntropyForm() if is_plain else self.form
        weights = None if is_plain else self.class_weights.on(logits.device)
        if self.problem == "regression":
            return squared_error(logits, labels)
        if self.problem == "single_label_classification":
            return cross_entropy(logits, labels, class_weights=weights, **vars(form))
        return binary_cross_entropy(
            logits,
            labels,
            form.label_smoothing,
            class_weights=weights,
            focal_gamma=form.focal_gamma,
        )

    def _check_numbers(self, labels: Tensor) -> None:
        # On an accelerator a look at the values would cost a synchronisation.
        if labels.device.type == "cpu" and bool(labels.isinf().any()):
            raise ValueError("a label is infinite")
        if self.problem == "regression" and labels.device.type == "cpu" and labels.isnan().any():
            raise ValueError("a label is NaN; leave examples without a number out")

    def _check_options(self, labels: Tensor) -> None:
        """What means nothing for the problem, or does not fit the model's outputs."""
        if self.problem == "multi_label_classification" and not labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype}; several labels at once are fractions, 0.0 or 1.0 for "
                "each class (torch.float)"
            )
        if self.problem == "multi_label_classification" and self.form.z_loss:
            raise ValueError(
                f"z_loss is {self.form.z_loss}, but several labels at once have no softmax whose "
                "normaliser it would keep small; leave it out"
            )
        if self.problem == "regression" and (self.class_weights or self.form != CrossEntropyForm()):
            raise ValueError(
                "label_smoothing, class_weights, focal_gamma and z_loss are for classes; this is a "
                "regression (say problem='single_label_classification' if it is not)"
            )
        self.class_weights.check_number(self.num_labels, f"a model with {self.num_labels} classes")


def _problem(config: Any, labels: Tensor) -> str:
    """As the host's heads decide it (5.23, loss/loss_utils.py, ForSequenceClassificationLoss)."""
    if getattr(config, "problem_type", None):
        return check_name("config.problem_type", config.problem_type, PROBLEMS)
    if config.num_labels == 1:
        return "regression"
    is_class = not labels.is_floating_point()
    return "single_label_classification" if is_class else "multi_label_classification"


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor | None:
    outputs = model(**batch)
    return outputs.get("loss") if isinstance(outputs, Mapping) else None


def _check_same(name: str, own: Tensor | None, ours: Tensor) -> None:
    """Refuse to train another loss than the model's, silently."""
    if own is None:
        return
    is_exact = own.dtype in (torch.float32, torch.float64)
    tolerance = TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE
    if abs(float(own) - float(ours)) > tolerance * max(1.0, abs(float(ours))):
        raise ValueError(
            f"the loss of {name} is {float(own):.5f}, but that of its logits and labels is "
            f"{float(ours):.5f}: it has terms that this objective does not know. Train it with "
            "objective=ModelLoss(), or None, on its own loss"
        )
