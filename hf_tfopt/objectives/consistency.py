"""Consistency training: a model shall say the same of an example, whatever its dropout."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_tfopt.losses.reduction import LossSum, Terms
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.paired_outputs import (
    comparable,
    compare,
    num_compared,
    symmetric_divergence,
)
from hf_tfopt.objectives.wrapping import Wrapping, check_positive

logger = logging.getLogger(__name__)

# Logits of the same rows in one batch differ by rounding alone: fp32 sums in another order.
ROUNDING = 1e-5
# So many batches must agree: the dropout of a fresh adapter, which adds 0, shows after a step.
NUM_LOOKS = 5


class Consistency(Wrapping):
    """The wrapped objective's terms and one more, `consistency`: how far two outputs are apart.

    Args:
        objective: `LanguageModeling` (compared at the labelled tokens) or `Classification` (for
            whole examples all are compared, labelled or not).
        weight: of the term, above 0.

    Raises:
        ValueError: another objective, or a weight out of its range.
    """

    def __init__(self, objective: Objective, weight: float):
        super().__init__(objective)
        self.compared = comparable(objective, type(self).__name__)
        self.weight = weight
        self._has_told = False

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Prepare the wrapped objective; tell once that its saving of logits is given up."""
        super().prepare(model, batch)
        plan = self.compared.plan if isinstance(self.compared, LanguageModeling) else None
        if plan is not None and plan.head is not None and not self._has_told:
            self._has_told = True
            logger.info(
                "%s compares logits: in training those of the labelled tokens, [tokens, "
                "vocabulary], are kept, which LanguageModeling by itself never makes all at once",
                type(self).__name__,
            )

    @property
    def weights(self) -> Mapping[str, float]:
        """The wrapped objective's, and `weight`."""
        return {**self.objective.weights, "consistency": self.weight}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The wrapped objective's, and the number of outputs that are compared."""
        counts = super().counts(batch)
        return {**counts, "consistency": num_compared(self.compared, batch)}


class RDrop(Consistency):
    """R-Drop: every example twice, with different dropout, and the two outputs brought together.

    Minimises `(L(p1) + L(p2)) / 2 + alpha * (KL(p1 || p2) + KL(p2 || p1)) / 2`, where L is the
    wrapped objective's loss; the terms are its own (the mean over both) and `consistency`, half the
    two divergences. For several labels at once each class is a distribution of its own; for
    numbers `consistency` is half the squared distance.

    Cost: one forward and backward pass over twice the rows: twice the time and the memory. Of a
    language model the logits [labelled tokens, vocabulary] of both halves are kept.

    Args:
        objective: what to train: `LanguageModeling` or `Classification`.
        alpha: weight of the term, above 0; the paper takes 0.1 to 5.

    Raises:
        ValueError: another objective, alpha out of its range, or a batch that cannot be repeated.

    Paper: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks",
    https://arxiv.org/abs/2106.14448, equations 1 to 3. Differs: equation 2 adds the two losses; we
    take their mean, as the authors' code does, so that a learning rate keeps its meaning.
    """

    def __init__(self, objective: Objective, alpha: float = 1.0):
        check_positive(alpha=alpha)
        super().__init__(objective, weight=alpha)
        self._num_looks = 0

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """Both halves' terms in one pass; in evaluation the wrapped objective's."""
        if not model.training:
            return super().terms(model, module, batch, with_outputs)
        divergence = symmetric_divergence(self.compared)

        def use(logits: Tensor) -> Terms:
            first, second = logits.chunk(2)
            self._look(first, second)
            apart = divergence(first, second)
            return {"consistency": LossSum(apart.sum / 2, apart.count)}

        both = compare(self.compared, model, module, batch, use, num_copies=2, num_labelled=2)
        return {
            name: term if name == "consistency" else LossSum(term.sum / 2, term.count / 2)
            for name, term in both.items()
        }, None

    def _look(self, first: Tensor, second: Tensor) -> None:
        """At the first batches: whether the two differ at all."""
        if self._num_looks >= NUM_LOOKS or not first.numel():
            return
        self._num_looks += 1
        apart = (first - second).detach().abs().max()
        if bool(apart > ROUNDING * first.detach().abs().max()):
            self._num_looks = NUM_LOOKS
        elif self._num_looks == NUM_LOOKS:
            logger.warning(
                "R-Drop has no effect: both passes give the same. The model has no dropout (look "
                "at the dropout settings of its config); its training costs twice as much"
            )
