"""Consistency under the worst perturbation of the embeddings: VAT and SMART.

| objective | ball | start | divergence |
|---|---|---|---|
| `VirtualAdversarial` | L2, its surface | ξ d, at random | KL(p(0) ‖ p(δ)), p(0) fixed |
| `SMART` | L∞ | N(0, σ²) | KL(p(0) ‖ p(δ)) + KL(p(δ) ‖ p(0)) |

p(δ) is what the model gives with δ added to its input embeddings. No labels are needed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.keyed_noise import normal_noise
from hf_tfopt.losses.perturbation import direction
from hf_tfopt.losses.reduction import LossSum, Terms
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.consistency import Consistency
from hf_tfopt.objectives.paired_outputs import (
    Divergence,
    compare,
    divergence_from,
    symmetric_divergence,
)
from hf_tfopt.objectives.perturbed_embeddings import (
    OnEmbeddings,
    Perturbation,
    ascent,
    refuse_compiled,
)
from hf_tfopt.objectives.wrapping import check_positive, check_steps


class _PerturbedConsistency(OnEmbeddings, Consistency):
    """Clean and perturbed in one pass, after the perturbation was looked for."""

    def __init__(self, objective: Objective, weight: float, steps: int, seed: int):
        check_positive(weight=weight)
        check_steps(steps)
        super().__init__(objective, weight)
        self.steps = steps
        self.seed = seed

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """The clean half's terms and `consistency`; in evaluation the wrapped objective's."""
        if not model.training:
            return super().terms(model, module, batch, with_outputs)
        refuse_compiled(model)
        divergence = self._divergence()
        at = self._worst(model, module, batch, divergence)

        def use(logits: Tensor) -> Terms:
            return {"consistency": divergence(*logits.chunk(2))}

        with at.added():
            terms = compare(self.compared, model, module, batch, use, num_copies=2, num_labelled=1)
        return terms, None

    def _worst(
        self,
        model: nn.Module,
        module: nn.Module,
        batch: Mapping[str, Any],
        divergence: Divergence,
    ) -> Perturbation:
        """The perturbation after `steps` ascents on the divergence from the clean output."""
        at = Perturbation(module, batch, self._start)
        seen: list[Tensor] = []

        def keep(logits: Tensor) -> Terms:
            seen.append(logits)
            return {"consistency": LossSum(logits.new_zeros(()), logits.new_zeros(()))}

        with torch.no_grad():
            compare(self.compared, model, module, batch, keep)
        # autocast keeps its copies of the weights; before pytorch/pytorch#165068 without gradient
        torch.clear_autocast_cache()

        def loss() -> Tensor:
            found = compare(
                self.compared,
                model,
                module,
                batch,
                lambda logits: {"consistency": divergence(seen[0], logits)},
            )
            return found["consistency"].sum

        for step in range(self.steps):
            is_last = step == self.steps - 1
            gradient = ascent(model, at, loss)
            at.move(self._climbed(at, gradient, is_last), is_last)
        return at

    def _noise(self, empty: Tensor, at: Perturbation) -> Tensor:
        noise = normal_noise(at.ids, at.examples, empty.shape[-1], self.seed, self.step)
        return noise.to(empty)

    def _divergence(self) -> Divergence:
        raise NotImplementedError

    def _start(self, empty: Tensor, at: Perturbation) -> Tensor:
        raise NotImplementedError

    def _climbed(self, at: Perturbation, gradient: Tensor, is_last: bool) -> Tensor:
        raise NotImplementedError


class VirtualAdversarial(_PerturbedConsistency):
    """Virtual adversarial training: the model's output shall not change where it would most.

    Minimises `L + weight * KL(p(0) || p(epsilon * d))`, where L is the wrapped objective's clean
    loss, p(0) is taken as fixed, and d is the direction of each example in which the divergence
    grows most: from a random one, `steps` times `d = g / ‖g‖` with g the gradient of
    `KL(p(0) || p(xi * d))` (power iteration). The random direction is a function of (seed, step,
    the example's tokens). Examples with the label -100 are trained to be consistent, too; of
    language models only labelled tokens are compared. For numbers the divergence is the squared
    distance.

    Cost: steps + 3 forward and steps + 2 backward passes, instead of one of each: the last counts
    as two, with twice the rows and the memory; `steps` of the backward passes form no gradients of
    parameters. Of a language model the logits [labelled tokens, vocabulary] of both halves are
    kept. Not with reentrant checkpoints of activations.

    Args:
        objective: what to train: `LanguageModeling` or `Classification`.
        epsilon: the norm of an example's perturbation, above 0.
        steps: of the power iteration, at least 1.
        xi: the norm at which the divergence's gradient is taken, above 0.
        weight: of the divergence, above 0.
        seed: of the random directions.

    Raises:
        ValueError: an option out of its range, or a model without token embeddings.

    Paper: Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for Supervised
    and Semi-Supervised Learning", https://arxiv.org/abs/1704.03976, equations 5 and 6, algorithm 1.
    Differs: on embeddings, which are not normalised first (Miyato et al. 2017 do).
    """

    def __init__(
        self,
        objective: Objective,
        epsilon: float = 0.1,
        steps: int = 1,
        xi: float = 0.1,
        weight: float = 1.0,
        seed: int = 0,
    ):
        check_positive(epsilon=epsilon, xi=xi)
        super().__init__(objective, weight, steps, seed)
        self.epsilon = epsilon
        self.xi = xi

    def _divergence(self) -> Divergence:
        return divergence_from(self.compared)

    def _start(self, empty: Tensor, at: Perturbation) -> Tensor:
        return self.xi * direction(self._noise(empty, at), at.examples)

    def _climbed(self, at: Perturbation, gradient: Tensor, is_last: bool) -> Tensor:
        return (self.epsilon if is_last else self.xi) * direction(gradient, at.examples)


class SMART(_PerturbedConsistency):
    """SMART's smoothness: outputs shall not change under small perturbations of the embeddings.

    Minimises `L + weight * (KL(p(0) || p(δ)) + KL(p(δ) || p(0)))`, where L is the wrapped
    objective's clean loss and δ comes from `N(0, sigma²)` by `steps` times
    `δ = clip(δ + step_size * g / max|g|, -epsilon, epsilon)`, with g the gradient of the divergence
    by the example's embeddings. Both outputs are trained. The start is a function of (seed, step,
    the example's tokens). Examples with the label -100 are trained to be consistent, too; of
    language models only labelled tokens are compared. For numbers the divergence is the squared
    distance.

    Cost: as of `VirtualAdversarial`.

    Args:
        objective: what to train: `LanguageModeling` or `Classification`.
        epsilon: largest change of one number of an embedding, above 0. The paper takes 1e-5, which
            the rounding of bf16 swallows.
        steps: ascents, at least 1.
        step_size: of one ascent, above 0; the paper's is 100 times its epsilon, so that most
            numbers end at ± epsilon.
        sigma: standard deviation of the start, above 0; the paper's is its epsilon.
        weight: of the divergence, above 0; the paper takes 1, 3 or 5.
        seed: of the start.

    Raises:
        ValueError: an option out of its range, or a model without token embeddings.

    Paper: Jiang et al. 2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural
    Language Models through Principled Regularized Optimization", https://arxiv.org/abs/1911.03437,
    section 3.1. Differs: larger numbers by default; without the Bregman proximal term (section
    3.2), which keeps a moving average of the weights as a teacher.
    """

    def __init__(
        self,
        objective: Objective,
        epsilon: float = 1e-2,
        steps: int = 1,
        step_size: float = 1.0,
        sigma: float = 1e-2,
        weight: float = 1.0,
        seed: int = 0,
    ):
        check_positive(epsilon=epsilon, step_size=step_size, sigma=sigma)
        super().__init__(objective, weight, steps, seed)
        self.epsilon = epsilon
        self.step_size = step_size
        self.sigma = sigma

    def _divergence(self) -> Divergence:
        return symmetric_divergence(self.compared)

    def _start(self, empty: Tensor, at: Perturbation) -> Tensor:
        return self.sigma * self._noise(empty, at)

    def _climbed(self, at: Perturbation, gradient: Tensor, is_last: bool) -> Tensor:
        moved = at.delta + self.step_size * direction(gradient, at.examples, "inf")
        return moved.detach().clamp(-self.epsilon, self.epsilon)
