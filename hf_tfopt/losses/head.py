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

from hf_tfopt.losses.cross_entropy import CrossEntropyForm, cross_entropy, linear_cross_entropy
from hf_tfopt.losses.reduction import IGNORE_INDEX, Terms


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
        if self.scale != 1.0:
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
        num_classes: V, the logits of a position; 0 where they were not measured.
    """

    body: str | None
    head: str | None
    tail: LogitTail = LogitTail()
    is_shifted: bool = False
    num_classes: int = 0


@dataclass(frozen=True)
class LinearHead:
    """An output embedding as a loss sees it: logits are `cap(scale * (h @ weight.T) + bias)`.

    Args:
        weight: [V, H].
        bias: [V], or none; inside the cap.
        scale: factor of the product.
        softcap: `cap(z) = softcap * tanh(z / softcap)`, or none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> logits [..., V]."""
        return LogitTail(self.scale, self.softcap, self.bias)(F.linear(hidden, self.weight))


UseRows = Callable[[Tensor, LinearHead | None], Terms]


def shift(labels: Tensor) -> Tensor:
    """Targets of a causal model: position i gets the label of i + 1, the last one none."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def forward_at_head(
    plan: HeadPlan,
    module: nn.Module,
    call: Callable[[], Any],
    index: Tensor,
    use: UseRows,
) -> tuple[Terms, Any]:
    """One forward pass that ends at the head: `use` gets the rows there in place of logits.

    `use(hidden, head)` is called with the hidden states [n, H] of the positions at `index` and the
    head, inside the head's own forward (FSDP2 has gathered its weight); or as `use(logits, None)`
    with their logits [n, V] where the plan has no head.

    Args:
        plan: from `plan_head`.
        module: the model, without DDP or other wrappers.
        call: runs the (wrapped) model, without labels.
        index: positions among [B * T].
        use: rows -> named loss sums.

    Returns:
        What `use` gave, and the model's outputs, whose logits mean nothing where there is a head.
    """
    caught: list[Terms] = []

    def terms_instead_of_logits(hidden: Tensor) -> Tensor:
        if plan.body is None:
            hidden = take_rows(hidden, index)
        linear: Any = module.get_submodule(plan.head or "")
        head = LinearHead(
            linear.weight, _bias(linear, plan.tail), plan.tail.scale, plan.tail.softcap
        )
        caught.append(use(hidden.reshape(-1, hidden.shape[-1]), head))
        return torch.stack([term.sum for term in caught[-1].values()]).sum().reshape(1, 1, 1)

    with ExitStack() as stack:
        if plan.body is not None:
            stack.enter_context(only_rows(module.get_submodule(plan.body), index))
        if plan.head is not None:
            head = module.get_submodule(plan.head)
            stack.enter_context(replaced_forward(head, terms_instead_of_logits))
        outputs = call()
    logits = logits_of(outputs)
    if plan.head is None:
        rows = logits.reshape(-1, logits.shape[-1])
        return use(rows if plan.body is not None else rows.index_select(0, index), None), outputs
    # The values come from the head, exact whatever the model did to them afterwards; the output
    # takes part with weight 0: DDP and FSDP2, which watch the module's outputs, see the backward.
    anchor = 0.0 * logits.reshape(-1)[0]
    return {n: term._replace(sum=term.sum + anchor) for n, term in caught[-1].items()}, outputs


def cross_entropy_at_head(
    targets: Tensor, form: CrossEntropyForm, class_weights: Tensor | None = None
) -> UseRows:
    """For `forward_at_head`: the one term `cross_entropy` of the rows' `targets` [n]."""

    def use(rows: Tensor, head: LinearHead | None) -> Terms:
        if head is None:
            term = cross_entropy(rows, targets, **vars(form), class_weights=class_weights)
            return {"cross_entropy": term}
        term = linear_cross_entropy(
            rows,
            head.weight,
            targets,
            head.bias,
            **vars(form),
            class_weights=class_weights,
            logit_scale=head.scale,
            softcap=head.softcap,
        )
        return {"cross_entropy": term}

    return use


def labelled_positions(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where targets [B, T] are, among [B * T], and what they are: two vectors [n]."""
    flat = targets.reshape(-1)
    index = flat.ne(IGNORE_INDEX).nonzero().squeeze(-1)
    return index, flat.index_select(0, index)


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
