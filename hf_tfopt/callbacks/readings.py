"""Monitors whose numbers stay on the device until a log or a checkpoint needs them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.blocks import Groups
from hf_tfopt.callbacks.optional import OptionalMonitor
from hf_tfopt.callbacks.training import Scalars, Training, training_of

# Private in the host (5.23, trainer.py:2781), which calls it in every step; a test watches it.
NORM_BEFORE_CLIPPING = "_get_grad_norm"
# Read back: the numbers of each vector, by its name.
Numbers = Mapping[str, Sequence[float]]


class Reading(NamedTuple):
    """What one step was measured to be: vectors on their devices, and what their entries are."""

    step: int
    names: tuple[str, ...]
    vectors: Mapping[str, Tensor]


class ReadingMonitor(OptionalMonitor):
    """Takes vectors in the measured steps, and reads all of them back together.

    `read` gets them as plain numbers, step by step, before a log, before a checkpoint and at the
    end of an epoch, and keeps in `remembered` what is to be logged; `report` gives that and forgets
    it.
    """

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._taken: list[Reading] = []

    def read(self, training: Training, step: int, names: Sequence[str], numbers: Numbers) -> None:
        """The numbers of one measured step."""
        raise NotImplementedError

    def report(self, training: Training) -> Scalars:
        """What to log of all that was read since the last log."""
        raise NotImplementedError

    def release(self) -> None:
        """Nothing is taken."""
        super().release()
        self._taken = []

    def hear_norms(self, hear: Callable[[Tensor | float | None], None]) -> None:
        """In `begin`: be told the gradients' norm before clipping, in every step.

        The host hands it to no callback; under a stock Trainer it is not heard.
        """
        if self.trainer is not None:
            self.listen(self.trainer, NORM_BEFORE_CLIPPING, after=hear)

    def take(
        self, training: Training, names: Sequence[str], vectors: Mapping[str, Tensor | float]
    ) -> None:
        """Keep what was measured in the step that runs, until it is read."""
        tensors = {name: torch.as_tensor(vector) for name, vector in vectors.items()}
        self._taken.append(Reading(training.state.global_step + 1, tuple(names), tensors))

    def settle(self, training: Training) -> None:
        """Read back all that was taken."""
        taken, self._taken = self._taken, []
        vectors = [vector for reading in taken for vector in reading.vectors.values()]
        if not vectors:
            return
        place = next((v.device for v in vectors if v.device.type != "cpu"), vectors[0].device)
        flat = [vector.detach().reshape(-1).to(place, torch.float64) for vector in vectors]
        numbers = iter(torch.cat(flat).tolist())
        for reading in taken:
            found = {
                name: list(islice(numbers, vector.numel()))
                for name, vector in reading.vectors.items()
            }
            self.read(training, reading.step, reading.names, found)

    def stepped(self, training: Training) -> None:
        """What a checkpoint is to have must be in `remembered` before it is written."""
        super().stepped(training)
        if training.control.should_save:
            self.settle(training)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As `stepped`, where checkpoints are written after an epoch."""
        self.settle(training_of(args, state, control, kwargs))

    def scalars(self, training: Training) -> Scalars:
        """What there is to log."""
        self.settle(training)
        return self.report(training)


def fitting(groups: Groups | None, model: nn.Module, make: Callable[[nn.Module], Groups]) -> Groups:
    """The same groups, while the model trains the same parameters; else new ones."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if groups is None or list(map(id, trained)) != list(map(id, groups.parameters)):
        return make(model)
    return groups
