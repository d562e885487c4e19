"""How long the weights are, and what LAMB makes of it."""

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from hf_tfopt.callbacks.blocks import Groups, by_block
from hf_tfopt.callbacks.readings import Numbers, ReadingMonitor, fitting
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.optimizers.sharding import whole


class WeightMonitor(ReadingMonitor):
    """Norms of the trained weights by block after an update, and trust ratios where there are any.

    Equals, for the parameters of a block, `torch.cat([p.flatten() for p in block]).norm()`. The
    trust ratio of a block is the median of its tensors of two dimensions and more, which a few
    extreme ones do not move; those of vectors are 1 unless LAMB is told to adapt them.

    | name | what |
    |---|---|
    | `weight_norm/<block>` | of the last measured step |
    | `trust_ratio/<block>` | φ = ‖θ‖ / ‖u‖ of the last update, with LAMB alone |

    Costs one pass over the weights in a measured step.

    Args:
        every: the number of steps from one measured step to the next; None: the steps whose loss
            the host logs.

    Raises:
        ValueError: `every` below 1; before training, DeepSpeed's ZeRO-3 or FSDP1, under which no
            process has a parameter as a tensor of its own.

    Paper: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
        https://arxiv.org/abs/1904.00962, algorithm 2 (φ).
    """

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._groups: Groups | None = None

    def release(self) -> None:
        """Nothing of the model is held."""
        super().release()
        self._groups = None

    def begin(self, training: Training) -> None:
        """Refuse weights that are in no tensor of their own."""
        super().begin(training)
        for parameter in training.model.parameters():
            if hasattr(parameter, "ds_numel") or type(parameter).__name__ == "FlatParameter":
                raise ValueError(
                    "WeightMonitor needs each parameter as a tensor of its own, but an engine has "
                    "joined or scattered them (DeepSpeed ZeRO-3, FSDP1): use DDP, FSDP2 or ZeRO-2, "
                    "or leave it out"
                )

    def measure_update(self, training: Training) -> None:
        """The norms right after the update."""
        groups = self._groups = fitting(self._groups, training.model, by_block)
        vectors: dict[str, Tensor] = {
            "norms": groups.norms([p.detach() for p in groups.parameters])
        }
        state = getattr(training.optimizer, "state", {})
        for number, block in enumerate(groups.names):
            ratios = [
                whole(state[parameter]["trust_ratio"]).reshape(())
                for parameter, member in zip(groups.parameters, groups.members, strict=True)
                if member == number
                and parameter.ndim > 1
                and "trust_ratio" in state.get(parameter, {})
            ]
            if ratios:
                vectors[f"trust_ratio/{block}"] = torch.stack(ratios)
        self.take(training, groups.names, vectors)

    def read(self, training: Training, step: int, names: Sequence[str], numbers: Numbers) -> None:
        """Keep the last."""
        norms = zip(names, numbers["norms"], strict=True)
        ratios = {name: median(found) for name, found in numbers.items() if name != "norms"}
        self.remembered["last"] = {f"weight_norm/{block}": norm for block, norm in norms} | ratios

    def report(self, training: Training) -> Scalars:
        """The last that were measured."""
        return self.remembered.pop("last", {})
