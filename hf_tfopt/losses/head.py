"""The loss at the head: hidden states in, loss out, and no logits in between.

For the length of one forward pass the model's body hands only the labelled positions to its head,
and the output embedding returns the loss of those positions instead of logits. Both happen inside
the module's own forward, so DDP, FSDP2 and activation checkpointing see nothing unusual.

`losses.head_plan` finds out how this goes for a given model.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_tfopt.losses.cross_entropy import cross_entropy, linear_cross_entropy
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum


@dataclass(frozen=True)
class LogitTail:
    """What a model does to its logits after the output embedding: `cap(scale * z + bias)`.

    `cap(z) = softcap * tanh(z / softcap)`; Gemma caps, Cohere and Granite scale, BART adds a bias.
    """

    scale: float = 1.0
    softcap: float | None = None
    bias: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [..., V] of the output embedding -> logits of the model."""
        logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass(frozen=True)
class HeadPlan:
    """How the labelled positions of one model reach its loss, by module names.

    Args:
        body: the module whose first output feeds the head; it then gives labelled positions only.
            None: the head sees every position.
        head: the output embedding, replaced by the loss; None: it returns logits as ever.
        tail: what the model does to the logits afterwards.
        is_shifted: position i is trained on the label of position i + 1 (causal models).
    """

    body: str | None
    head: str | None
    tail: LogitTail = LogitTail()
    is_shifted: bool = False


def shift(labels: Tensor) -> Tensor:
    """Targets of a causal model: position i gets the label of i + 1, the last one none."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def forward_with_loss(
    plan: HeadPlan,
    module: nn.Module,
    call: Callable[[], Any],
    targets: Tensor,
    label_smoothing: float = 0.0,
) -> LossSum:
    """One forward pass whose result is the loss of the labelled positions.

    Equals `cross_entropy(logits_of(call()), targets, label_smoothing)`.

    Args:
        plan: from `plan_head`.
        module: the model, without DDP or other wrappers.
        call: runs the (wrapped) model, without labels.
        targets: [B, T], already shifted for causal models.
        label_smoothing: ε in [0, 1).
    """
    flat = targets.reshape(-1)
    index = flat.ne(IGNORE_INDEX).nonzero().squeeze(-1)
    picked = flat.index_select(0, index)
    caught: list[LossSum] = []

    def loss_instead_of_logits(hidden: Tensor) -> Tensor:
        if plan.body is None:
            hidden = take_rows(hidden, index)
        linear = module.get_submodule(plan.head or "")
        caught.append(
            linear_cross_entropy(
                hidden.reshape(-1, hidden.shape[-1]),
                linear.weight,  # pyright: ignore[reportArgumentType]
                picked,
                _bias(linear, plan.tail),
                label_smoothing,
                logit_scale=plan.tail.scale,
                softcap=plan.tail.softcap,
            )
        )
        return caught[-1].sum.reshape(1, 1, 1)

    with ExitStack() as stack:
        if plan.body is not None:
            stack.enter_context(only_rows(module.get_submodule(plan.body), index))
        if plan.head is not None:
            head = module.get_submodule(plan.head)
            stack.enter_context(replaced_forward(head, loss_instead_of_logits))
        logits = logits_of(call())
    if plan.head is None:
        rows = logits.reshape(-1, logits.shape[-1])
        rows = rows if plan.body is not None else rows.index_select(0, index)
        return cross_entropy(rows, picked, label_smoothing)
    # The value comes from the head, exact whatever the model did to it afterwards; the output takes
    # part with weight 0 so that DDP and FSDP2, which watch the module's outputs, see the backward.
    return caught[-1]._replace(sum=caught[-1].sum + 0.0 * logits.reshape(-1)[0])


def logits_of(outputs: Any) -> Tensor:
    """The language-modelling logits among a model's outputs (`prediction_logits` in BERT's)."""
    if not isinstance(outputs, Mapping):
        return outputs[0]
    for name in ("logits", "prediction_logits"):
        if name in outputs:
            return outputs[name]
    raise ValueError(f"the model returned no logits, only {', '.join(outputs)}")


@contextmanager
def only_rows(body: nn.Module, index: Tensor) -> Generator[None]:
    """`body` gives [1, n, H], the rows at `index`, in place of its first output [B, T, H]."""

    def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return take_rows(outputs, index)
        if isinstance(outputs, tuple):
            return (take_rows(outputs[0], index), *outputs[1:])
        first = next(iter(outputs))
        outputs[first] = take_rows(outputs[first], index)
        return outputs

    handle = body.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
    """`module.forward` for the length of a block; the module's own hooks (FSDP2's) still run."""
    shadowed = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if shadowed is None:
            del module.forward
        else:
            module.forward = shadowed


def take_rows(hidden: Tensor, index: Tensor) -> Tensor:
    """The rows at `index` of hidden states [B, T, H] read as [B * T, H], as [1, n, H]."""
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, index).unsqueeze(0)


def _bias(linear: nn.Module, tail: LogitTail) -> Tensor | None:
    """The bias inside the cap: the layer's own, scaled like its product, plus the tail's."""
    bias = getattr(linear, "bias", None)
    if bias is None:
        return tail.bias
    bias = bias * tail.scale if tail.scale != 1.0 else bias
    return bias if tail.bias is None else bias + tail.bias
