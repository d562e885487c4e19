"""Whether gradients and updates reach every block."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_tfopt.callbacks.blocks import Groups, by_block
from hf_tfopt.callbacks.readings import Numbers, ReadingMonitor, fitting
from hf_tfopt.callbacks.training import Scalars, Training


class GradientFlow(ReadingMonitor):
    """Gradients and updates of every block, in units of its weights; vanishing and dead blocks.

        gradient_to_weight = ‖g‖ / ‖θ‖;   update_to_weight = ‖θ_after - θ_before‖ / ‖θ_before‖

    with the norms of all trained parameters of a block as one vector, and g as the optimizer's step
    begins (clipped by the host, which changes no proportion between blocks). While all weights of a
    block are 0 its ratios are infinite, or no number.

    | name | what |
    |---|---|
    | `gradient_to_weight/<block>` | of the last measured step |
    | `update_to_weight/<block>` | of the last measured step; healthy is some 1e-3 |
    | `num_vanishing` | blocks with a gradient_to_weight below `vanishing` times the largest one |
    | `num_dead` | blocks without any gradient in the last `patience` measured steps |

    A block that vanishes or dies is an event, once in a run, and a warning.

    Costs one pass over the gradients and four over the weights in a measured step, and memory for
    one more copy of the trained weights while the optimizer steps.

    Args:
        every: the number of steps from one measured step to the next; None: the steps whose loss
            the host logs, at least 50 apart.
        vanishing: the share of the largest gradient_to_weight below which a gradient counts as
            vanishing, in [0, 1).
        patience: measured steps in a row without a gradient after which a block counts as dead, at
            least 1.

    Raises:
        ValueError: a number outside its range; before training, DeepSpeed or FSDP1.

    Paper: none.
    """

    needs_gradients = True
    gap = 50  # of logged steps

    def __init__(self, every: int | None = None, vanishing: float = 1e-5, patience: int = 3):
        super().__init__(every)
        if not 0 <= vanishing < 1:
            raise ValueError(f"vanishing is {vanishing}, a share; it must be in [0, 1)")
        if patience < 1:
            raise ValueError(f"patience is {patience}, a number of steps; it must be at least 1")
        self.vanishing = vanishing
        self.patience = patience
        self._groups: Groups | None = None
        self._before: list[Tensor] = []
        self._vectors: dict[str, Tensor] = {}

    def release(self) -> None:
        """Nothing is measured, and nothing of the model is held."""
        super().release()
        self._groups, self._before, self._vectors = None, [], {}

    def begin(self, training: Training) -> None:
        """Go on counting where it was."""
        super().begin(training)
        self.remembered.setdefault("num_quiet", {})
        self.remembered.setdefault("told", {"vanishing": [], "dead": []})

    def measure_gradients(self, training: Training) -> None:
        """Measure the gradients, and keep the weights as they are."""
        groups = self._groups = fitting(self._groups, training.model, by_block)
        self._before = [parameter.detach().clone() for parameter in groups.parameters]
        self._vectors = {
            "gradients": groups.norms(groups.gradients()),
            "weights": groups.norms(self._before),
        }

    @torch.no_grad()
    def measure_update(self, training: Training) -> None:
        """Measure what has changed, and let the kept weights go."""
        groups, before, self._before = self._groups, self._before, []
        assert groups is not None
        for old, new in zip(before, groups.parameters, strict=True):
            old.sub_(new)
        self.take(training, groups.names, {**self._vectors, "updates": groups.norms(before)})
        self._vectors = {}

    def read(self, training: Training, step: int, names: Sequence[str], numbers: Numbers) -> None:
        """Keep the last ratios, and count steps without a gradient."""
        gradients = dict(zip(names, numbers["gradients"], strict=True))
        ratios = to_weights(names, numbers["gradients"], numbers["weights"])
        moved = to_weights(names, numbers["updates"], numbers["weights"])
        quiet = self.remembered["num_quiet"]
        counts = {name: quiet.get(name, 0) + 1 if gradients[name] == 0 else 0 for name in names}
        self.remembered["num_quiet"] = {name: count for name, count in counts.items() if count}
        dead = [name for name, count in counts.items() if count >= self.patience]
        vanishing = vanishing_blocks(ratios, self.vanishing)
        self._tell(training, "dead", dead, f"no gradient in {self.patience} measured steps")
        share = f"less than {self.vanishing:g} of the largest ‖g‖ / ‖θ‖"
        self._tell(training, "vanishing", vanishing, share)
        self.remembered["last"] = {
            **{f"gradient_to_weight/{name}": ratio for name, ratio in ratios.items()},
            **{f"update_to_weight/{name}": ratio for name, ratio in moved.items()},
            "num_vanishing": len(vanishing),
            "num_dead": len(dead),
        }

    def _tell(self, training: Training, kind: str, blocks: Sequence[str], why: str) -> None:
        told = self.remembered["told"][kind]
        new = [block for block in blocks if block not in told]
        if new:
            told += new
            self.tell(training, f"{kind} gradient", f"{', '.join(new)}: {why}", blocks=new)

    def report(self, training: Training) -> Scalars:
        """The last that were measured."""
        return self.remembered.pop("last", {})


def to_weights(
    names: Sequence[str], norms: Sequence[float], weights: Sequence[float]
) -> dict[str, float]:
    """‖·‖ / ‖θ‖ of every block; where θ is 0, infinite or, for 0 / 0, no number."""
    ratios: dict[str, float] = {}
    for name, norm, weight in zip(names, norms, weights, strict=True):
        ratios[name] = norm / weight if weight else (math.inf if norm else math.nan)
    return ratios


def vanishing_blocks(ratios: Mapping[str, float], share: float) -> list[str]:
    """The blocks that have a gradient, but less of it than this share of the largest finite one."""
    largest = max((ratio for ratio in ratios.values() if math.isfinite(ratio)), default=0.0)
    return [name for name, ratio in ratios.items() if 0 < ratio < share * largest]
