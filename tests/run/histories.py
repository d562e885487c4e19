"""Histories with every key that a monitor of ours logs, made up from a seed."""

import math
import random
from typing import Any


def block_names(num_layers: int) -> list[str]:
    """As `callbacks.blocks.by_block` has them, from the input to the output."""
    return ["embeddings", *(f"encoder.{n}" for n in range(num_layers)), "head"]


def full_history(
    last: int = 500,
    every: int = 5,
    layers: int = 4,
    heads: int = 4,
    seed: int = 0,
    lr: float = 1e-3,
) -> list[dict[str, Any]]:
    """A run with all monitors on, in which a few things happen."""
    draw = random.Random(seed)
    entries: list[dict[str, Any]] = []
    for step in range(every, last + 1, every):
        entries.append(_logged(step, last, layers, heads, draw, lr))
        if step % (20 * every) == 0:
            loss = 3 + 6 * math.exp(-4 * step / last)
            entries.append(
                {"step": step, "eval_loss": loss, "eval_perplexity": math.exp(loss)}
                | {"eval_accuracy": 1 / loss, "eval_f1": 1.1 / loss, "eval_runtime": 2.5}
                | {"eval_samples_per_second": 99.0}
            )
    return entries


def _logged(
    step: int, last: int, layers: int, heads: int, draw: random.Random, lr: float
) -> dict[str, Any]:
    part = step / last
    loss = 3 + 6 * math.exp(-4 * part) + draw.gauss(0, 0.12)
    rate = lr * min(1, step / (0.1 * last)) * (1 - 0.95 * part)
    blocks = block_names(layers)
    entry: dict[str, Any] = {
        "step": step,
        "epoch": part,
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": 0.6 * math.exp(draw.gauss(0, 0.35)) + 2 * math.exp(-9 * part),
        "perplexity": math.exp(loss),
        "clip_share": min(1, 0.1 + math.exp(-9 * part)),
        "num_vanishing": 0,
        "num_dead": 0,
        "noise_scale": 400 * (1 + 5 * part) * math.exp(draw.gauss(0, 0.3)),
        "gradient_signal": 0.01,
        "gradient_variance": 4.0,
        "loss_scale": 65536.0 if part < 0.5 else 32768.0,
        "num_skipped_updates": 0 if part < 0.5 else 1,
        "padding_share": 0.09 + draw.gauss(0, 0.01),
        "num_bad_steps": 0,
        "attention_entropy_heads": [
            [
                0.9 - 0.6 * part * (layer + 1) * (head + 1) / (layers * heads)
                for head in range(heads)
            ]
            for layer in range(layers)
        ],
    }
    entry["grad_norm_after"] = min(1.0, entry["grad_norm"])
    for number, name in enumerate(blocks):
        depth = number / (len(blocks) - 1)
        norm = 0.3 * math.exp(-2 * (1 - depth) * (1 - part) + draw.gauss(0, 0.2))
        entry |= {
            f"grad_norm/{name}": norm,
            f"gradient_to_weight/{name}": norm / 20,
            f"update_to_weight/{name}": rate * (1 + depth) * math.exp(draw.gauss(0, 0.1)),
            f"weight_norm/{name}": 20 + 6 * depth + 9 * part,
            f"trust_ratio/{name}": 1 + depth,
            f"activation_mean/{name}": draw.gauss(0, 0.1),
            f"activation_std/{name}": 0.5 + depth + 0.5 * part,
            f"activation_absmax/{name}": 3 * math.exp(2.5 * depth * part + draw.gauss(0, 0.1)),
            f"activation_kurtosis/{name}": 3 * math.exp(3 * depth * part + draw.gauss(0, 0.1)),
            f"activation_zeros/{name}": 0.0,
        }
    for layer in range(layers):
        name = f"encoder.{layer}"
        entropy = 0.92 - 0.5 * part * (1 - layer / layers) + draw.gauss(0, 0.008)
        entry |= {
            f"attention_entropy/{name}": entropy,
            f"attention_entropy_min/{name}": entropy * 0.6,
            f"attention_max/{name}": 1 - entropy / 2,
            f"attention_logit_max/{name}": 2 + 9 * part * (layer + 1) / layers,
        }
    for number, name in enumerate(blocks[::-1]):
        for kind in ("matrices", "vectors"):
            entry[f"lr/{name}.{kind}"] = rate * 0.8**number
            entry[f"weight_decay/{name}.{kind}"] = 0.01
    for name, norm in (("attention", 0.4), ("feed_forward", 0.5), ("norm", 0.05)):
        entry[f"grad_norm_role/{name}"] = norm * math.exp(draw.gauss(0, 0.15))
    parts = {"data": 0.004, "forward": 0.1, "backward": 0.2, "optimizer": 0.06, "callbacks": 0.002}
    entry |= {f"time/{name}": value * draw.uniform(0.95, 1.1) for name, value in parts.items()}
    entry |= {
        "time/step": 0.39 * draw.uniform(0.98, 1.05),
        "time/tokens_per_second": 12000 * draw.uniform(0.9, 1.05),
        "time/mfu": 0.31 * draw.uniform(0.95, 1.05),
        "time/remaining": 0.38 * (last - step),
        "memory/parameters": 21.5,
        "memory/gradients": 21.5,
        "memory/optimizer": 43.0,
        "memory/activations": 130 * draw.uniform(0.9, 1.1),
        "memory/peak": 240.0,
    }
    if step == round(0.3 * last):
        entry["loss"] = math.nan
        entry["events"] = [
            {"step": step, "kind": "skipped", "text": "loss is nan: the step was left out"},
            {"step": step - 1, "kind": "spike", "text": "loss 9.31 is 7.2 deviations above 3.9"},
        ]
    if step == round(0.7 * last):
        text = "attention of encoder.1 has collapsed: entropy 0.02"
        entry["events"] = [{"step": step, "kind": "attention collapse", "text": text}]
    return entry


def attention_of(sentence: str, layers: int = 4, heads: int = 4, seed: int = 0) -> dict[str, Any]:
    """What `run.attention_maps` gives for a sentence, with heads that look at different places."""
    draw, tokens = random.Random(seed), ["[CLS]", *sentence.split(), "[SEP]"]
    found = []
    for layer in range(layers):
        found.append([])
        for head in range(heads):
            rows = []
            for query in range(len(tokens)):
                weights = [
                    draw.random() ** 4
                    + (5 if key == (query + head - 1) % len(tokens) else 0) * layer
                    for key in range(len(tokens))
                ]
                rows.append([weight / sum(weights) for weight in weights])
            found[-1].append(rows)
    return {"sentence": sentence, "tokens": tokens, "layers": found}
