"""Slow, obvious twins of what is measured inside a model."""

import math
from typing import Any

import torch
from torch import Tensor


def naive_moments(values: Tensor) -> dict[str, float]:
    """Of all the values, in fp64."""
    x = values.double().flatten()
    mean = x.mean()
    variance = ((x - mean) ** 2).mean()
    return {
        "mean": mean.item(),
        "std": variance.sqrt().item(),
        "absmax": x.abs().max().item(),
        "kurtosis": (((x - mean) ** 4).mean() / variance**2).item(),
        "zeros": (x == 0).double().mean().item(),
    }


def naive_attention(
    maps: Tensor, is_token: Tensor, is_causal: bool = False, is_key: Tensor | None = None
) -> dict[str, Any]:
    """Entropy as a share and largest weight of each head [heads], query after query.

    Args:
        maps: weights [batch, heads, queries, keys].
        is_token: [batch, length], of queries and keys.
        is_causal: keys behind the query are not seen.
        is_key: [batch, length], if the keys are others.
    """
    is_key = is_token if is_key is None else is_key
    entropy: list[float] = []
    maximum: list[float] = []
    for head in range(maps.shape[1]):
        shares: list[float] = []
        largest: list[float] = []
        for row in range(maps.shape[0]):
            for query in range(maps.shape[2]):
                keys = [
                    key
                    for key in range(maps.shape[3])
                    if is_key[row, key] and (key <= query or not is_causal)
                ]
                if not is_token[row, query] or len(keys) < 2:
                    continue
                weights = [maps[row, head, query, key].item() for key in keys]
                total = -sum(w * math.log(w) for w in weights if w > 0)
                shares.append(total / math.log(len(keys)))
                largest.append(max(weights))
        entropy.append(sum(shares) / len(shares))
        maximum.append(sum(largest) / len(largest))
    return {"entropy": entropy, "maximum": maximum}


def padded_batch(batch: dict[str, Tensor], lengths: list[int]) -> dict[str, Tensor]:
    """The batch with all but the first tokens of each row as padding."""
    width = batch["input_ids"].shape[1]
    is_token = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {
        "input_ids": torch.where(is_token, batch["input_ids"], 0),
        "attention_mask": is_token.long(),
        "labels": torch.where(is_token, batch["input_ids"], -100),
    }


def read_by_decoder(is_token: Tensor) -> Tensor:
    """Where a decoder reads a token: its first is the start, then come the labels."""
    return torch.cat([torch.ones_like(is_token[:, :1]), is_token[:, :-1]], dim=1)
