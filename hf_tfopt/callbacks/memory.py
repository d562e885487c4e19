"""What the memory of a training is used for."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hf_tfopt.callbacks.base import Monitor
from hf_tfopt.callbacks.tensor_bytes import (
    MIB,
    gradients_of,
    num_bytes,
    plain_tensors,
    state_of,
    weights_of,
)
from hf_tfopt.callbacks.training import Scalars, Training


class MemoryMonitor(Monitor):
    """The memory of the logging process, by what it holds; its shards, where tensors are sharded.

    | name | what |
    |---|---|
    | `memory/parameters` | MiB of the model's parameters and buffers |
    | `memory/gradients` | MiB of the gradients before the update |
    | `memory/optimizer` | MiB of the tensors in the optimizer's state |
    | `memory/activations` | MiB that a forward pass leaves for its backward pass; the largest |
    | `memory/peak` | the most MiB: of a GPU since the last log, of the process on a CPU |

    The first three are sums of the tensors' sizes. Activations on a GPU are what is allocated more
    when a backward pass begins than when its micro-batch began. On a CPU, which does not tell what
    is allocated, they are the storages that autograd has saved, without the parameters' own, and
    without those that hooks of the model's own put elsewhere. They need `attach` or `TfoptTrainer`.
    The CPU's peak is that of the process since it began, with all its libraries. A GPU's is reset
    at each log (`torch.cuda.reset_peak_memory_stats`), unless `skip_memory_metrics=False`, where
    the host reads it. Peaks have in them what monitors hold for a while: `GradientFlow` a copy of
    the trained weights, `ActivationMonitor` up to 64 MiB.
    DeepSpeed and FSDP1 hide some of the gradients and of the state, which are then missing here.

    Costs, in measured steps, a look at every parameter, and on a CPU at every tensor that is saved.

    Args:
        every: steps from one measured step to the next; None: the logged steps, at
            least 50 apart.

    Raises:
        ValueError: `every` below 1.

    Paper: none.
    """

    gap = 50  # of logged steps

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._found: dict[str, float] = {}
        self._activations: int | None = None
        self._saved: SavedBytes | AllocatedBytes | None = None
        self._device = torch.device("cpu")
        self._may_reset = False

    def release(self) -> None:
        """Nothing is measured."""
        super().release()
        self._found, self._activations, self._saved = {}, None, None

    def begin(self, training: Training) -> None:
        """Listen to forward and backward passes."""
        self._device = training.args.device
        # the host's own report reads the peak at the end of training
        self._may_reset = training.args.skip_memory_metrics
        trainer = self.trainer
        if trainer is not None and self._device.type in ("cpu", "cuda"):
            self.listen(trainer, "training_step", within=self._micro_batch)
            self.listen(trainer.accelerator, "backward", before=self._before, after=self._after)

    def measure_gradients(self, training: Training) -> None:
        """All gradients are there."""
        self._found["memory/parameters"] = num_bytes(weights_of(training.model)) / MIB
        self._found["memory/gradients"] = num_bytes(gradients_of(training.model)) / MIB

    def measure_update(self, training: Training) -> None:
        """The first update has made the state."""
        self._found["memory/optimizer"] = num_bytes(state_of(training.optimizer)) / MIB

    def scalars(self, training: Training) -> Scalars:
        """As of the last measured step; the largest of what varies."""
        found, self._found = self._found, {}
        if self._activations is not None:
            found["memory/activations"] = self._activations / MIB
            self._activations = None
        peak = peak_bytes(self._device, self._may_reset)
        return found if peak is None else {**found, "memory/peak": peak / MIB}

    @contextmanager
    def _micro_batch(self) -> Generator[None]:
        if not self._is_due:
            yield
            return
        is_on_gpu = self._device.type == "cuda"
        saved = AllocatedBytes(self._device) if is_on_gpu else SavedBytes(self.trainer.model)
        self._saved = saved
        with saved:
            yield
        self._saved = None

    def _before(self, arguments: Sequence[Any]) -> None:
        if self._saved is not None:
            self._activations = max(self._activations or 0, self._saved.num_bytes())

    def _after(self, result: Any) -> None:
        if self._saved is not None:  # an objective may make another pass
            self._saved.restart()


class SavedBytes(saved_tensors_hooks):
    """For its length, counts what autograd saves for the backward pass, on any device.

    Each storage counts once and whole; those of the model's parameters do not.
    """

    def __init__(self, model: nn.Module):
        super().__init__(self._pack, lambda tensor: tensor)
        parts = (part for p in weights_of(model) for part in plain_tensors(p))
        self._known = {part.untyped_storage().data_ptr() for part in parts}
        self._sizes: dict[int, int] = {}

    def num_bytes(self) -> int:
        """Of what has been saved."""
        return sum(self._sizes.values())

    def restart(self) -> None:
        """Count from nothing."""
        self._sizes.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        for part in plain_tensors(tensor):
            storage = part.untyped_storage()
            address = storage.data_ptr()
            if address not in self._known:
                self._sizes[address] = storage.nbytes()
        return tensor


class AllocatedBytes:
    """Counts what a GPU's allocator has handed out since the beginning."""

    def __init__(self, device: torch.device):
        self._device = device
        self.restart()

    def __enter__(self) -> "AllocatedBytes":
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def num_bytes(self) -> int:
        """More than at the beginning."""
        return torch.cuda.memory_allocated(self._device) - self._start

    def restart(self) -> None:
        """Count from what is held now."""
        self._start = torch.cuda.memory_allocated(self._device)


def peak_bytes(device: torch.device, may_reset: bool = True) -> int | None:
    """A GPU's tensors at most since it was last asked; elsewhere the process's resident memory.

    Args:
        device: of the training.
        may_reset: False: since the process began on a GPU, too.

    Returns:
        None where the system does not tell.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        if may_reset:
            torch.cuda.reset_peak_memory_stats(device)
        return peak
    return _resident_peak()


def _resident_peak() -> int | None:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage may tell of the process that started this one
        lines = status.read_text().splitlines()
        return next((1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM")), None)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
