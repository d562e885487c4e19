"""Where the words of a sentence look: attention maps, small enough for a run's file."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_tfopt.callbacks.attention_probe import probe
from hf_tfopt.callbacks.attention_watch import SeenAttention
from hf_tfopt.callbacks.layer_modules import layer_modules

# Some 7 characters for each number of a JSON file: 280 kB at most.
_MOST_NUMBERS = 40_000


def attention_maps(
    model: Any, tokenizer: Any, sentences: Sequence[str], max_tokens: int = 24
) -> list[dict[str, Any]]:
    """What each layer and head looks at in some sentences, each read alone in evaluation mode.

        softmax(query @ key.mT * scale + mask)

    as the layers compute it, under any attention implementation.

    Args:
        model: it is left as it was.
        tokenizer: the model's.
        sentences: short ones: what is beyond `max_tokens` is cut.
        max_tokens: of a sentence, special ones included.

    Returns:
        For each sentence {"sentence", "tokens": [T], "names" (of the layers), "num_heads",
        "layers": [layer][head][query][key]}, rounded to 3 digits; of an encoder-decoder the
        encoder. All maps together have at most 40,000 numbers: where the heads are too many, each
        layer has one map, the mean of its heads; where these are too many, sentences at the end are
        left out.

    Raises:
        ValueError: a sentence without tokens; a model whose attention is not seen.
    """
    layers = layer_modules(model)
    found: list[tuple[dict[str, Any], list[Tensor]]] = []
    for sentence in sentences:
        encoding = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=max_tokens)
        ids: Tensor = encoding["input_ids"]
        if not ids.numel():
            raise ValueError(f"the tokenizer makes no token of the sentence {sentence!r}")
        maps = _maps(model, layers, dict(encoding))
        told = {
            "sentence": sentence,
            "tokens": tokenizer.convert_ids_to_tokens(ids[0].tolist()),
            "names": list(maps),
            "num_heads": max(len(each) for each in maps.values()),
        }
        found.append((told, list(maps.values())))
    return [{**told, "layers": _rounded(maps)} for told, maps in _few_enough(found)]


def _maps(model: Any, layers: dict[str, nn.Module], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """[heads, queries, keys] of each layer of one sentence; a shared layer has one for each use."""
    is_pair = bool(getattr(model.config, "is_encoder_decoder", False))
    found: dict[str, Tensor] = {}

    def see(seen: SeenAttention) -> None:
        if is_pair and "decoder" in seen.layer:
            return
        weights = torch.cat([F.softmax(part, dim=-1)[0] for _, _, part in seen.parts], dim=1)
        used = sum(1 for name in found if name.split(" ")[0] == seen.layer)
        found[f"{seen.layer} ({used + 1})" if used else seen.layer] = weights.cpu()

    if is_pair:  # the decoder must have something to read, too
        inputs = {**inputs, "labels": inputs["input_ids"]}
    probe(model, inputs, layers, see)
    if not found:
        raise ValueError(
            f"the attention of {type(model).__name__} is not seen: it is none of torch's "
            "scaled_dot_product_attention, and no softmax over [batch, heads, queries, keys]"
        )
    return found


def _few_enough(
    found: list[tuple[dict[str, Any], list[Tensor]]],
) -> list[tuple[dict[str, Any], list[Tensor]]]:
    """All heads, else the mean of each layer's, else of the first sentences only."""
    if sum(each.numel() for _, maps in found for each in maps) > _MOST_NUMBERS:
        found = [(told, [m.mean(0, keepdim=True) for m in maps]) for told, maps in found]
    kept: list[tuple[dict[str, Any], list[Tensor]]] = []
    num_numbers = 0
    for told, maps in found:
        num_numbers += sum(each.numel() for each in maps)
        if kept and num_numbers > _MOST_NUMBERS:
            break
        kept.append((told, maps))
    return kept


def _rounded(maps: list[Tensor]) -> list[Any]:
    return [[[[round(w, 3) for w in row] for row in head] for head in m.tolist()] for m in maps]
