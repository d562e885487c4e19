"""Training on the worst perturbation of the input embeddings: FGM, PGD and FreeLB.

| objective | passes with the parameters' gradient | minimises |
|---|---|---|
| `FGM` | clean, perturbed | L(0) + w L(ε g / ‖g‖) |
| `PGD` | clean, perturbed | L(0) + w L(δ of `steps` ascents) |
| `FreeLB` | one for each step | the mean of L over the perturbations on the way |

L(δ) is the wrapped objective's loss with δ added to the embeddings; g is its gradient by δ. Norms
are those of an example: over its tokens (special ones, too; not padding) and their features. All
passes over a batch draw the same dropout (Zhu et al. 2020, section 3.3).
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_tfopt.losses.keyed_noise import uniform_noise
from hf_tfopt.losses.perturbation import direction, projected
from hf_tfopt.losses.reduction import Terms, combine
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.perturbed_embeddings import (
    OnEmbeddings,
    Perturbation,
    ascent,
    refuse_compiled,
    zeros,
)
from hf_tfopt.objectives.wrapping import check_positive, check_steps

PREFIX = "adversarial_"
_Item = TypeVar("_Item")


class _Adversarial(OnEmbeddings):
    """What the three have in common: perturbed terms and one step up the loss."""

    def __init__(self, objective: Objective, epsilon: float, steps: int, step_size: float):
        super().__init__(objective)
        check_positive(epsilon=epsilon, step_size=step_size)
        check_steps(steps)
        self.epsilon = epsilon
        self.steps = steps
        self.step_size = step_size
        self.names: tuple[str, ...] = ()  # of the wrapped objective's terms

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Prepare the wrapped objective; refuse a batch without token ids."""
        super().prepare(model, batch)
        self.names = tuple(self.objective.counts(batch))

    def _prefixed_weights(self, factor: float) -> dict[str, float]:
        inner = self.objective.weights
        return {PREFIX + name: factor * inner.get(name, 1.0) for name in self.names}

    def _perturbed_terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], at: Perturbation
    ) -> Terms:
        with at.added():
            return self.terms(model, module, batch, False)[0]

    def _climbed(self, at: Perturbation, gradient: Tensor) -> Tensor:
        """`Π(δ + α g / ‖g‖)`, with Π onto the ball of radius ε."""
        moved = at.delta + self.step_size * direction(gradient, at.examples)
        return projected(moved.detach(), at.examples, self.epsilon)


class PGD(_Adversarial):
    """Projected gradient descent: the clean loss and that of several steps up, inside a ball.

    Minimises `L(0) + weight * L(δ_K)`, where `δ_0 = 0` and
    `δ_{t+1} = Π(δ_t + step_size * g_t / ‖g_t‖)`, Π onto `‖δ‖ <= epsilon`. The terms are the wrapped
    objective's, and each once more as `adversarial_<name>`. An example whose gradient is 0, or
    overflows, is not moved.

    Cost: steps + 1 forward and backward passes, instead of one of each; steps - 1 of the backward
    passes form no gradients of parameters. No more than one graph is in memory. With more than one
    step not with reentrant checkpoints of activations.

    Args:
        objective: what to train.
        epsilon: radius of the ball, above 0: the norm of an example's perturbation at most.
        steps: ascents, at least 1.
        step_size: of one ascent, above 0.
        weight: of the perturbed loss, above 0.

    Raises:
        ValueError: an option out of its range, or a model without token embeddings.

    Paper: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    https://arxiv.org/abs/1706.06083, section 2.1. Differs: on embeddings, in an L2 ball for each
    example; from 0 rather than at random, so that the clean pass has the first gradient for
    nothing; and the clean loss is trained, too.
    """

    num_passes = 2

    def __init__(
        self,
        objective: Objective,
        epsilon: float = 0.1,
        steps: int = 3,
        step_size: float = 0.03,
        weight: float = 1.0,
    ):
        super().__init__(objective, epsilon, steps, step_size)
        check_positive(weight=weight)
        self.weight = weight

    @property
    def weights(self) -> Mapping[str, float]:
        """The wrapped objective's, and times `weight` for the perturbed terms."""
        return {**self.objective.weights, **self._prefixed_weights(self.weight)}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those of the wrapped objective, twice."""
        clean = super().counts(batch)
        return {**clean, **_prefixed(clean)}

    def passes(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any]
    ) -> Iterator[Terms]:
        """The clean pass, whose gradient leads up, and the perturbed one."""
        refuse_compiled(model)
        at = Perturbation(module, batch, zeros)
        yield self._perturbed_terms(model, module, batch, at)
        gradient = at.gradient
        for step in range(self.steps):
            if step:
                gradient = ascent(model, at, lambda: self._loss(model, module, batch))
            at.move(self._climbed(at, gradient), is_last=step == self.steps - 1)
        yield _prefixed(self._perturbed_terms(model, module, batch, at))

    def _loss(self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        terms = self.terms(model, module, batch, False)[0]
        counts = {name: self.batch_counts.get(name, term.count) for name, term in terms.items()}
        # A factor cancels; this one keeps the gradients of half precision from vanishing.
        scale = torch.stack([count.float() for count in counts.values()]).max()
        return scale * combine(terms, counts, self.objective.weights)


class FGM(PGD):
    """Fast gradient method: the clean loss and that of one step of length ε up.

    Minimises `L(0) + weight * L(epsilon * g / ‖g‖)`, with g the gradient of L(0) by the embeddings
    of an example. The terms are the wrapped objective's, and each once more as
    `adversarial_<name>`. An example whose gradient is 0, or overflows, is not perturbed.

    Cost: 2 forward and 2 backward passes, instead of one of each.

    Args:
        objective: what to train.
        epsilon: the norm of an example's perturbation, above 0.
        weight: of the perturbed loss, above 0.

    Raises:
        ValueError: an option out of its range, or a model without token embeddings.

    Paper: Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text
    Classification", https://arxiv.org/abs/1605.07725, equations 5 and 6. Differs: the embeddings
    are not normalised first.
    """

    def __init__(self, objective: Objective, epsilon: float = 0.1, weight: float = 1.0):
        super().__init__(objective, epsilon, steps=1, step_size=epsilon, weight=weight)


class FreeLB(_Adversarial):
    """Free large-batch training: the mean loss over the perturbations on the way up.

    Minimises `1/K * sum_{t < K} L(δ_t)` for K = steps, with δ_0 uniform in
    `(-epsilon, epsilon) / sqrt(numbers in an example's embeddings)` and
    `δ_{t+1} = Π(δ_t + step_size * g_t / ‖g_t‖)`, Π onto `‖δ‖ <= epsilon`. Every pass gives both
    g_t and the parameters' gradient. δ_0 is a function of (seed, step, the example's tokens). The
    terms are the wrapped objective's, named `adversarial_<name>`; there is no clean pass.

    Cost: steps forward and backward passes, instead of one of each; one graph in memory.

    Args:
        objective: what to train.
        epsilon: radius of the ball, above 0: the norm of an example's perturbation at most.
        steps: passes, at least 1.
        step_size: of one ascent, above 0.
        seed: of δ_0.

    Raises:
        ValueError: an option out of its range, or a model without token embeddings.

    Paper: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language
    Understanding", https://arxiv.org/abs/1909.11764, algorithm 1, and section 3.3 for dropout. No
    difference.
    """

    def __init__(
        self,
        objective: Objective,
        epsilon: float = 0.1,
        steps: int = 3,
        step_size: float = 0.03,
        seed: int = 0,
    ):
        super().__init__(objective, epsilon, steps, step_size)
        self.num_passes = steps
        self.seed = seed

    @property
    def weights(self) -> Mapping[str, float]:
        """The wrapped objective's over K."""
        return self._prefixed_weights(1 / self.steps)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those of the wrapped objective."""
        return _prefixed(super().counts(batch))

    def passes(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any]
    ) -> Iterator[Terms]:
        """K passes, each from where the gradient of the one before led."""
        refuse_compiled(model)
        at = Perturbation(module, batch, self._start)
        for step in range(self.steps):
            yield _prefixed(self._perturbed_terms(model, module, batch, at))
            if step < self.steps - 1:
                at.move(self._climbed(at, at.gradient), is_last=step == self.steps - 2)

    def _start(self, empty: Tensor, at: Perturbation) -> Tensor:
        width = empty.shape[-1]
        noise = uniform_noise(at.ids, at.examples, width, self.seed, self.step).to(empty)
        size = self.epsilon / (at.examples.num_real * width).clamp(min=1).sqrt()
        return noise * at.examples.at_positions(size).view(*at.ids.shape, 1)


def _prefixed(named: Mapping[str, _Item]) -> dict[str, _Item]:
    return {PREFIX + name: item for name, item in named.items()}
