"""How the loss reaches the head of a given model: measured on one example, not guessed.

What a model does around its output embedding (scales, caps, biases, transposes) is measured once.
A plan is made only if it reproduces the model's own logits and its own loss, so that no model is
silently trained on the wrong one.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_tfopt.losses.cross_entropy import cross_entropy
from hf_tfopt.losses.head import (
    HeadPlan,
    LogitTail,
    logits_of,
    only_rows,
    replaced_forward,
    shift,
    take_rows,
)
from hf_tfopt.losses.reduction import IGNORE_INDEX, divide

LOW_PRECISION_TOLERANCE = 5e-2  # bf16 keeps 8 bits, and a head sums hundreds of products
TOLERANCE = 1e-4  # fp32 sums in another order


def plan_head(model: nn.Module, batch: Mapping[str, Any], labels: Tensor) -> HeadPlan:
    """Find the most economical plan that reproduces the model's own loss on one example.

    Args:
        model: without wrappers; it is put into evaluation mode for three or four forward passes of
            one example without gradients, and back.
        batch: the model's inputs without labels, on its device.
        labels: [B, T] with at least one label.

    Raises:
        ValueError: the model's own loss is not the cross-entropy of its logits.
    """
    example, row_labels = _one_example(batch, labels)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = logits_of(model(**example))
            is_shifted = _is_shifted(model, example, row_labels, logits)
            plan = HeadPlan(None, None, is_shifted=is_shifted, num_classes=logits.shape[-1])
            targets = shift(row_labels) if plan.is_shifted else row_labels
            expected = logits.reshape(-1, logits.shape[-1])[targets.reshape(-1) != IGNORE_INDEX]
            for body in (*_bodies(model), None):
                for head in (_output_embedding(model), None):
                    found = _verified(
                        replace(plan, body=body, head=head), model, example, targets, expected
                    )
                    if found is not None:
                        return found
    finally:
        model.train(was_training)
    return plan


def _verified(
    plan: HeadPlan, model: nn.Module, example: Mapping[str, Any], targets: Tensor, expected: Tensor
) -> HeadPlan | None:
    """The plan with its tail measured, if it gives the labelled positions' expected logits."""
    index = targets.reshape(-1).ne(IGNORE_INDEX).nonzero().squeeze(-1)
    head: Any = None if plan.head is None else model.get_submodule(plan.head)
    probe = _probe(expected)
    seen: list[Tensor] = []
    is_rounded: list[bool] = []  # whether autocast, which wraps the model's forward, is on inside

    def record(hidden: Tensor) -> Tensor:
        seen.append(hidden if plan.body is not None else take_rows(hidden, index))
        return probe

    def look(_module: nn.Module, _inputs: Any) -> None:
        is_rounded.append(torch.is_autocast_enabled(expected.device.type))

    with ExitStack() as stack:
        if plan.body is not None:
            body = model.get_submodule(plan.body)
            stack.enter_context(only_rows(body, index))
            stack.callback(body.register_forward_pre_hook(look).remove)
        if head is not None:
            stack.enter_context(replaced_forward(head, record))
            stack.callback(head.register_forward_pre_hook(look).remove)
        try:
            logits = logits_of(model(**example))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return None  # the model does something else with these rows
    tolerance = LOW_PRECISION_TOLERANCE if any(is_rounded) else _tolerance(expected)
    if head is None:
        rows = logits.reshape(-1, logits.shape[-1])
        rows = rows if plan.body is not None else rows.index_select(0, index)
        return plan if _same(rows, expected, tolerance) else None
    if len(seen) != 1 or logits.shape != probe.shape:
        return None
    tail = _measured_tail(probe[0], logits[0], getattr(model, "config", None))
    if tail is None:
        return None
    # Under autocast the states come in its type, and the head's product was rounded to it.
    hidden = seen[0].flatten(0, -2)
    bias = None if head.bias is None else head.bias.float()
    plain = F.linear(hidden.float(), head.weight.float(), bias)
    tolerance = max(_tolerance(hidden), tolerance)
    return replace(plan, tail=tail) if _same(tail(plain), expected, tolerance) else None


def _probe(expected: Tensor) -> Tensor:
    """[1, 4, V] logits that tell a scale, a bias and a cap apart: zeros, tiny, huge, ordinary."""
    num_classes = expected.shape[-1]
    ramp = torch.linspace(-1, 1, num_classes, device=expected.device)
    rows = torch.stack([ramp * 0, ramp * 0 + 2**-6, ramp * 0 + 2**14, 6 * ramp])
    return rows.unsqueeze(0).to(expected.dtype)


def _measured_tail(probe: Tensor, answer: Tensor, config: Any) -> LogitTail | None:
    """Fit `cap(scale * z + bias)` to what the model made of the probe; None if that is not it."""
    is_exact = answer.dtype in (torch.float32, torch.float64)
    probe, answer = probe.float(), answer.float()
    offset = answer[0]
    scale = _exact(float((answer[1] - offset).double().mean() / probe[1, 0]), config, is_exact)
    softcap = None
    if scale is not None and not torch.allclose(answer[2], probe[2] * scale + offset, rtol=1e-2):
        softcap = _exact(float(answer[2].mean()), config, is_exact)
    if scale is None or (softcap is not None and softcap <= 0):
        return None
    tail = LogitTail(scale, softcap, offset if bool(offset.any()) else None)
    return tail if torch.allclose(tail(probe), answer, rtol=1e-2, atol=1e-2) else None


def _exact(measured: float, config: Any, is_exact: bool) -> float | None:
    """The number behind a measured one: 1, or a setting of the config or its inverse.

    Where none is near, the measured number itself, unless it was read off low precision.
    """
    settings = [1.0]
    for setting in vars(config).values() if config is not None else ():
        if isinstance(setting, int | float) and not isinstance(setting, bool) and setting:
            settings += [float(setting), 1 / float(setting)]
    near = min(settings, key=lambda setting: abs(setting - measured))
    if abs(near - measured) <= 1e-2 * abs(measured):
        return near
    return measured if is_exact else None


def _is_shifted(
    model: nn.Module, example: Mapping[str, Any], labels: Tensor, logits: Tensor
) -> bool:
    """Whether the model trains position i on label i + 1, checked against its own loss."""
    own = _own_loss(model, example, labels)
    if own is None:  # a head with several losses gives none for one label alone
        return False
    # A label at the first position alone is a target only where labels are not shifted.
    first = torch.full_like(labels, IGNORE_INDEX)
    first[:, 0] = labels[labels.ne(IGNORE_INDEX)][0]
    is_shifted = not _near(_own_loss(model, example, first), _mean_loss(logits, first), logits)
    expected = _mean_loss(logits, shift(labels) if is_shifted else labels)
    if not _near(own, expected, logits):
        raise ValueError(
            f"the loss of {type(model).__name__} is {own:.5f}, but the cross-entropy of its logits "
            f"is {expected:.5f}: it has terms that this objective does not know. "
            "Train it with objective=None, on its own loss"
        )
    return is_shifted


def _own_loss(model: nn.Module, example: Mapping[str, Any], labels: Tensor) -> float | None:
    own = model(**example, labels=labels)
    loss = own.get("loss") if isinstance(own, Mapping) else None
    return None if loss is None else float(loss)


def _mean_loss(logits: Tensor, targets: Tensor) -> float:
    term = cross_entropy(logits, targets)
    return float(divide(term.sum, term.count))


def _near(own: float | None, ours: float, logits: Tensor) -> bool:
    return own is not None and abs(own - ours) <= _tolerance(logits) * max(1.0, abs(ours))


def _one_example(batch: Mapping[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The example with most labels, cut from every tensor of the batch."""
    if "cu_seq_lens_q" in batch:
        return _one_segment(batch, labels)
    best = int(labels.ne(IGNORE_INDEX).sum(-1).argmax())
    size = labels.shape[0]

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(item) for key, item in value.items()}
        is_column = isinstance(value, Tensor) and value.dim() and value.shape[0] == size
        return value[best : best + 1] if is_column else value

    return {name: cut(value) for name, value in batch.items()}, labels[best : best + 1]


def _one_segment(batch: Mapping[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The same where examples lie end to end, without padding: [B, T] read as one row."""
    ends = batch["cu_seq_lens_q"]
    targets = labels.reshape(1, -1)
    before = F.pad(targets.ne(IGNORE_INDEX).cumsum(-1)[0], (1, 0))
    best = int((before[ends[1:]] - before[ends[:-1]]).argmax())
    start, end = int(ends[best]), int(ends[best + 1])
    alone = torch.tensor([0, end - start], dtype=ends.dtype, device=ends.device)
    lengths = {"max_length_q": end - start, "max_length_k": end - start}
    example = {**batch, "cu_seq_lens_q": alone, "cu_seq_lens_k": alone, **lengths}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.shape == labels.shape:
            example[name] = value.reshape(1, -1)[:, start:end]
    return example, targets[:, start:end]


def _bodies(model: Any) -> list[str]:
    """Names of the modules whose first output may feed the head."""
    names = {id(module): name for name, module in model.named_modules()}
    candidates = [getattr(model, "base_model", None)]
    if hasattr(model, "get_decoder"):
        candidates.append(model.get_decoder())
    return [names[id(body)] for body in candidates if names.get(id(body))]


def _output_embedding(model: Any) -> str | None:
    """Name of the output embedding where it is a plain linear layer (no LoRA, no 4-bit weight)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def _same(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Equal up to the rounding of their type, relative to the largest logit."""
    if ours.shape != theirs.shape:
        return False
    spread = theirs.float().abs().max().clamp(min=1e-3)
    largest = (ours.float() - theirs.float()).abs().max()
    return bool(largest <= tolerance * spread)


def _tolerance(tensor: Tensor) -> float:
    is_exact = tensor.dtype in (torch.float32, torch.float64)
    return TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE
