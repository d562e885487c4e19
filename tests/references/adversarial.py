"""Adversarial training the obvious way: `inputs_embeds`, autograd, and one example at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gradients = dict[str, Tensor]
Loss = Callable[[Tensor], Tensor]


def embeddings(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """What the model makes of its token ids; of the encoder's in a model that has one."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    return encoder.get_input_embeddings()(batch["input_ids"])


def outputs(model: Any, batch: Mapping[str, Tensor], delta: Tensor) -> Any:
    """The model's outputs, its loss among them, with delta added to its embeddings."""
    inputs = {name: value for name, value in batch.items() if name != "input_ids"}
    return model(inputs_embeds=embeddings(model, batch) + delta, **inputs)


def gradient_of(model: Any, loss: Tensor) -> Gradients:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def by_delta(loss: Loss, delta: Tensor) -> Tensor:
    leaf = delta.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def unit(gradient: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for row, keep in zip(gradient, mask, strict=True):
        real = row * keep.unsqueeze(-1)
        size = real.norm()
        rows.append(real / size if size > 0 else torch.zeros_like(real))
    return torch.stack(rows)


def into_ball(delta: Tensor, epsilon: float) -> Tensor:
    return torch.stack([row * min(1.0, epsilon / max(float(row.norm()), 1e-30)) for row in delta])


def fgm(model: Any, batch: Mapping[str, Tensor], epsilon: float, weight: float) -> Gradients:
    def loss(delta: Tensor) -> Tensor:
        return outputs(model, batch, delta).loss

    zero = torch.zeros_like(embeddings(model, batch))
    delta = epsilon * unit(by_delta(loss, zero), batch["attention_mask"])
    return gradient_of(model, loss(zero) + weight * loss(delta))


def pgd(
    model: Any,
    batch: Mapping[str, Tensor],
    epsilon: float,
    steps: int,
    step_size: float,
    weight: float,
) -> Gradients:
    def loss(delta: Tensor) -> Tensor:
        return outputs(model, batch, delta).loss

    zero = torch.zeros_like(embeddings(model, batch))
    delta = zero
    for _ in range(steps):
        up = unit(by_delta(loss, delta), batch["attention_mask"])
        delta = into_ball(delta + step_size * up, epsilon)
    return gradient_of(model, loss(zero) + weight * loss(delta))


def freelb(
    model: Any,
    batch: Mapping[str, Tensor],
    start: Tensor,
    epsilon: float,
    steps: int,
    step_size: float,
) -> Gradients:
    def loss(delta: Tensor) -> Tensor:
        return outputs(model, batch, delta).loss

    deltas = [start]
    for _ in range(steps - 1):
        up = unit(by_delta(loss, deltas[-1]), batch["attention_mask"])
        deltas.append(into_ball(deltas[-1] + step_size * up, epsilon))
    return gradient_of(model, torch.stack([loss(delta) for delta in deltas]).mean())


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) of each row."""
    return F.kl_div(F.log_softmax(q, -1), F.softmax(p, -1), reduction="none").sum(-1)


def symmetric(p: Tensor, q: Tensor) -> Tensor:
    return kl(p, q) + kl(q, p)


def vat(
    model: Any,
    batch: Mapping[str, Tensor],
    start: Tensor,
    items: Callable[[Tensor], Tensor],
    epsilon: float,
    steps: int,
    xi: float,
    weight: float,
) -> Gradients:
    """`items`: the model's logits -> the rows that are compared."""
    clean = outputs(model, batch, torch.zeros_like(start))
    fixed = items(clean.logits).detach()

    def divergence(delta: Tensor) -> Tensor:
        return kl(fixed, items(outputs(model, batch, delta).logits)).mean()

    mask = batch["attention_mask"]
    way = unit(start, mask)
    for _ in range(steps):
        way = unit(by_delta(divergence, xi * way), mask)
    return gradient_of(model, clean.loss + weight * divergence(epsilon * way))


def smart(
    model: Any,
    batch: Mapping[str, Tensor],
    start: Tensor,
    items: Callable[[Tensor], Tensor],
    epsilon: float,
    steps: int,
    step_size: float,
    weight: float,
) -> Gradients:
    clean = outputs(model, batch, torch.zeros_like(start))

    def divergence(of: Tensor, delta: Tensor) -> Tensor:
        return symmetric(of, items(outputs(model, batch, delta).logits)).mean()

    first = items(clean.logits)
    delta = start
    for _ in range(steps):
        up = by_delta(lambda leaf: divergence(first.detach(), leaf), delta)
        up = up * batch["attention_mask"].unsqueeze(-1)
        largest = torch.stack([row.abs().max() for row in up]).view(-1, 1, 1)
        delta = (delta + step_size * up / largest).clamp(-epsilon, epsilon)
    return gradient_of(model, clean.loss + weight * divergence(first, delta))


def r_drop(
    model: Any, batch: Mapping[str, Tensor], items: Callable[[Tensor], Tensor], alpha: float
) -> tuple[Tensor, Gradients]:
    """The loss too; the batch goes through the model twice at once, with dropout."""
    both = model(**{name: torch.cat([value, value]) for name, value in batch.items()})
    size = len(batch["input_ids"])
    first, second = items(both.logits[:size]), items(both.logits[size:])
    loss = both.loss + alpha * symmetric(first, second).mean() / 2
    return loss.detach(), gradient_of(model, loss)
