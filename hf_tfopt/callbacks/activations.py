"""What the layers give to one another: its size and its tails."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.callbacks.blocks import side_by_side
from hf_tfopt.callbacks.layer_modules import (
    counted_in,
    counted_positions,
    embeddings_of,
    first_tensor,
    hidden_states,
    layer_modules,
)
from hf_tfopt.callbacks.optional import OptionalMonitor
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.measures import Moments, joined, moments


class ActivationMonitor(OptionalMonitor):
    """Moments of the states between the blocks.

    Over all micro-batches of a measured step, all positions that are no padding (where the batch
    tells) and all features; summed in fp32 whatever the model's dtype, and joined in fp64. The
    embeddings' output is the first layer's input. Layers that share their weights are one block.

    | name | what |
    |---|---|
    | `activation_mean/<block>` | mean |
    | `activation_std/<block>` | standard deviation |
    | `activation_absmax/<block>` | largest absolute value |
    | `activation_kurtosis/<block>` | E[(x - mean)^4] / std^4: 3 if normal, more with outliers |
    | `activation_zeros/<block>` | share of zeros |

    The forward passes of gradient checkpointing's recomputation do not count.
    With several processes each measures its own examples; what is logged is the first one's.

    Cost per measured step: some eight passes over the output of each block; nothing is read back
    until the log.

    Args:
        every: the number of steps from one measured step to the next; None: the logged
            steps, at least 50 apart.

    Raises:
        ValueError: in `begin`: compiled models, whose hooks do not run; selective checkpointing,
            which would take the monitor's operations for the model's; a model without layers.

    Paper: none.
    """

    gap = 50  # of logged steps

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._layers: dict[str, nn.Module] = {}
        self._counted: dict[str, Tensor] | None = None  # None: no forward pass of the training
        self._begun: set[str] = set()  # the layers that have run in this forward pass
        self._moments: dict[str, list[Tensor]] = {}

    def begin(self, training: Training) -> None:
        """Find the layers."""
        _check(training)
        self._layers = layer_modules(training.model)
        if not self._layers:
            raise ValueError(
                f"ActivationMonitor finds no layers in {type(training.model).__name__}: lists of "
                "modules that hold linear maps; leave it out"
            )

    def release(self) -> None:
        """Nothing is measured, and nothing of the model is held."""
        super().release()
        self._layers, self._begun, self._moments = {}, set(), {}

    def watch(self, training: Training) -> None:
        """Hooks on the model, to know when it runs for the training, and on each layer."""
        self._moments = {}
        model = training.model
        self._hooks += [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]
        for label, layer in self._layers.items():
            hook = partial(self._see_states, label)
            self._hooks.append(layer.register_forward_hook(hook, with_kwargs=True))

    def scalars(self, training: Training) -> Scalars:
        """The numbers of the last measured step, of all its micro-batches together."""
        found = _read(self._moments)
        logged: dict[str, float | Tensor] = {}
        for block, numbers in found.items():
            logged[f"activation_mean/{block}"] = numbers.mean
            logged[f"activation_std/{block}"] = numbers.std
            logged[f"activation_absmax/{block}"] = numbers.absmax
            logged[f"activation_kurtosis/{block}"] = numbers.kurtosis
            logged[f"activation_zeros/{block}"] = numbers.zeros
        self._moments = {}
        return logged

    def unhook(self) -> None:
        """Remove every hook, and look at nothing."""
        super().unhook()
        self._leave()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and self._counted is None:
            self._counted, self._begun = counted_positions(model, kwargs), set()

    def _leave(self, *_: Any) -> None:
        self._counted = None

    def _see_states(
        self, label: str, _layer: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if self._counted is None:  # an evaluation, a probe, or checkpointing's second pass
            return
        embeddings = embeddings_of(label)
        if embeddings is not None and label not in self._begun:
            self._add(embeddings, label, hidden_states(args, kwargs))
        self._begun.add(label)
        self._add(label, label, first_tensor(output))

    @torch.no_grad()
    def _add(self, block: str, label: str, states: Tensor | None) -> None:
        if states is None or not states.numel() or self._counted is None:
            return
        counted = counted_in(self._counted, label, tuple(states.shape[:-1]))
        counted = None if counted is None else counted.to(states.device)
        with torch.autocast(states.device.type, enabled=False):
            self._moments.setdefault(block, []).append(moments(states, counted))


def _check(training: Training) -> None:
    args = training.args
    if args.torch_compile:
        raise ValueError(
            "ActivationMonitor sees nothing with torch_compile=True: compiled layers run no hooks; "
            "leave it out, or turn torch_compile off"
        )
    if "context_fn" in (args.gradient_checkpointing_kwargs or {}):
        raise ValueError(
            "ActivationMonitor would disturb selective checkpointing ('context_fn' in "
            "activation_checkpointing_kwargs); leave one of the two out"
        )


def _read(found: dict[str, list[Tensor]]) -> dict[str, Moments]:
    """The moments of each block, of all micro-batches together; read back at once."""
    if not found:
        return {}
    rows = side_by_side([row for parts in found.values() for row in parts]).tolist()
    read: dict[str, Moments] = {}
    for block, parts in found.items():
        own, rows = rows[: len(parts)], rows[len(parts) :]
        whole = Moments(0, 0, 0, 0, 0, 0, 0)
        for row in own:
            whole = joined(whole, Moments(*row))
        if whole.number:
            read[block] = whole
    return read
