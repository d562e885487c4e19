"""What a run was given, so that runs can be held to having been given the same."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.trainer import TfoptTrainer


@dataclass
class Witness:
    """Digests of a run's first weights (and random state), and of each batch in its order."""

    start: str = ""
    batches: list[str] = field(default_factory=list[str])


def check_alike(witnesses: Sequence[Witness]) -> None:
    """Hold every run to what the others were given; one that was stopped saw fewer batches.

    Raises:
        RuntimeError: if two runs began with other weights, or had another batch at one place.
    """
    longest = max((witness.batches for witness in witnesses), key=len, default=[])
    for witness in witnesses:
        if witness.start != witnesses[0].start:
            raise RuntimeError("the runs did not begin with the same weights: nothing is compared")
        if witness.batches != longest[: len(witness.batches)]:
            raise RuntimeError("the runs did not see the same batches: nothing is compared")


def digest(values: Iterable[Any]) -> str:
    """Sixteen hexadecimal digits of tensors, by type, shape and bits, and of values, by text."""
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


class WitnessedTrainer(TfoptTrainer):
    """A TfoptTrainer that keeps a `Witness` of what it trains on."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.witness = Witness()

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The host's, after a look at the batch, and before the first at the weights too."""
        if not self.witness.batches:
            weights: Mapping[str, Tensor] = model.state_dict()
            self.witness.start = digest([*weights.values(), torch.get_rng_state()])
        self.witness.batches.append(digest(inputs[name] for name in sorted(inputs)))
        return super().training_step(model, inputs, num_items_in_batch)
