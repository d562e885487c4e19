"""How long gradients are, before and after clipping."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.blocks import Groups, by_block, by_role
from hf_tfopt.callbacks.readings import Numbers, ReadingMonitor, fitting
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.optimizers.sharding import whole

# Without the host's norm a clipped one is known by its length: the bound, to the rounding of bf16.
ROUNDING = 2**-7


class GradientMonitor(ReadingMonitor):
    """Norms of the gradients by block and by role, before clipping, and of all after it.

    Equals, for the parameters of a group, `torch.cat([p.grad.flatten() for p in group]).norm()` at
    the end of the backward pass. The host has clipped before a callback is asked: what is found
    then is made longer by `‖g‖ before / ‖g‖ after`, where the gradients were clipped. Under a stock
    Trainer without `tfo.attach`, the norm before is only known of steps that are logged: of others
    that were clipped `grad_norm/` and `grad_norm_role/` are left out.

    | name | what |
    |---|---|
    | `grad_norm/<block>` | of the last measured step, before clipping |
    | `grad_norm_role/<role>` | the same gradients by what they are of: attention, norm ... |
    | `grad_norm_after` | of all gradients of the model, as the optimizer got them |
    | `clip_share` | the share of the steps measured since the last log that the host clipped |

    Costs one pass over the gradients in a measured step, and a second one only where something has
    changed them after the host's clipping, or may have: sharded ones do not tell.

    Args:
        every: the number of steps from one measured step to the next; None: the steps whose loss
            the host logs (so that `clip_share` is 0 or 1).

    Raises:
        ValueError: `every` below 1; before training, DeepSpeed or FSDP1.

    Paper: none.
    """

    needs_gradients = True

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._groups: Groups | None = None
        self._norms: Tensor | None = None
        self._versions: list[tuple[Tensor | None, int]] = []
        self._heard: Tensor | float | None = None
        self._logged: float | None = None

    def begin(self, training: Training) -> None:
        """Hear of the norms before clipping."""
        super().begin(training)
        self.hear_norms(self._hear)

    def _hear(self, norm: Tensor | float | None) -> None:
        self._heard = norm if self._is_due else None

    def release(self) -> None:
        """Nothing is measured, and nothing of the model is held."""
        super().release()
        self._groups = self._norms = self._heard = self._logged = None
        self._versions = []

    def measure_gradients(self, training: Training) -> None:
        """The norms after the host's clipping."""
        self._groups = fitting(self._groups, training.model, by_block_and_role)
        self._norms = self._groups.norms(self._groups.gradients())
        self._versions = versions(self._groups.gradients())

    def measure_update(self, training: Training) -> None:
        """The norm of what the optimizer was given."""
        assert self._groups is not None and self._norms is not None
        after = self._norms
        if not are_same(self._versions, versions(self._groups.gradients())):
            after = self._groups.norms(self._groups.gradients())
        vectors: dict[str, Tensor | float] = {"norms": self._norms, "after": after.norm()}
        if self._heard is not None:
            heard = self._heard
            vectors["before"] = whole(heard) if isinstance(heard, Tensor) else heard
        self.take(training, self._groups.names, vectors)
        self._norms, self._heard, self._versions = None, None, []

    def read(self, training: Training, step: int, names: Sequence[str], numbers: Numbers) -> None:
        """Keep the last norms, and count what was clipped."""
        kept, bound = self.remembered, training.args.max_grad_norm or math.inf
        total = math.hypot(*numbers["norms"])
        before = numbers["before"][0] if "before" in numbers else None
        is_clipped = total >= bound * (1 - ROUNDING) if before is None else before > bound
        kept["num_measured"] = kept.get("num_measured", 0) + 1
        kept["num_clipped"] = kept.get("num_clipped", 0) + is_clipped
        kept["last"] = {
            "step": step,
            "norms": dict(zip(names, numbers["norms"], strict=True)),
            "after": numbers["after"][0],
            "is_clipped": is_clipped,
            "before": before,
        }

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the norm that is logged."""
        self._logged = (logs or {}).get("grad_norm")
        super().on_log(args, state, control, logs=logs, **kwargs)

    def report(self, training: Training) -> Scalars:
        """The last measured norms; how many steps were clipped."""
        last = self.remembered.pop("last", None)
        if last is None:
            return {}
        found = {
            "grad_norm_after": last["after"],
            "clip_share": self.remembered.pop("num_clipped") / self.remembered.pop("num_measured"),
        }
        before = last["before"]
        if before is None and last["step"] == training.state.global_step:
            before = self._logged
        scale = scale_before_clipping(last["norms"].values(), last["is_clipped"], before)
        if scale is None:
            return found
        return {**found, **by_name(last["norms"], scale)}


def scale_before_clipping(norms: Any, is_clipped: bool, before: float | None) -> float | None:
    """By what the norms were longer before the host clipped; None: not known.

    Args:
        norms: of all groups, after.
        is_clipped: whether the host clipped.
        before: the norm of all gradients before, if known.
    """
    total = math.hypot(*norms)
    if not is_clipped or total == 0:
        return 1.0
    return None if before is None else before / total


def by_name(norms: dict[str, float], scale: float) -> dict[str, float]:
    """The norms of blocks and of roles, from those of "block|role"."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        block, role = name.split("|")
        for key in (f"grad_norm/{block}", f"grad_norm_role/{role}"):
            squares[key] = squares.get(key, 0.0) + norm**2
    return {key: scale * math.sqrt(square) for key, square in squares.items()}


def by_block_and_role(model: nn.Module) -> Groups:
    """Groups "encoder.0|attention" ...: with one pass over all, the norms of both."""
    blocks, roles = by_block(model), by_role(model)
    members = list(zip(blocks.members, roles.members, strict=True))
    pairs = sorted(set(members))
    names = tuple(f"{blocks.names[block]}|{roles.names[role]}" for block, role in pairs)
    numbers = {pair: number for number, pair in enumerate(pairs)}
    return Groups(names, blocks.parameters, tuple(numbers[member] for member in members))


def versions(tensors: Sequence[Tensor | None]) -> list[tuple[Tensor | None, int]]:
    """The tensors and how often each was written to."""
    return [(tensor, 0 if tensor is None else tensor._version) for tensor in tensors]


def are_same(
    earlier: list[tuple[Tensor | None, int]], later: list[tuple[Tensor | None, int]]
) -> bool:
    """Whether the same tensors have not been written to in between.

    A DTensor does not count what is written to its shard, or by torch's functions of lists: False.
    """
    return all(
        old is new and old_version == new_version and not isinstance(new, DTensor)
        for (old, old_version), (new, new_version) in zip(earlier, later, strict=True)
    )
