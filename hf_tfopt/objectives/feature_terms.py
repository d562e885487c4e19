"""The feature terms of one student and its teacher, together."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.reduction import LossSum
from hf_tfopt.objectives.attention_vectors import watch_attention_vectors
from hf_tfopt.objectives.features import Feature, Shown
from hf_tfopt.objectives.layer_pairs import LayerMap
from hf_tfopt.surgery.layer_stacks import layer_stacks


class Features:
    """What a student learns from inside its teacher, each feature a term of its own.

    Args:
        features: of different kinds.

    Raises:
        ValueError: two of a kind, or a weight below 0.
    """

    def __init__(self, features: Sequence[Feature]):
        names = [feature.name for feature in features]
        if len(set(names)) != len(names):
            raise ValueError(f"features {names}: each kind once (its layers may be several)")
        for feature in features:
            if not 0 <= feature.weight < float("inf"):
                raise ValueError(f"the weight of {feature.name} is {feature.weight}; at least 0")
        self.features = tuple(features)
        self.wanted = {name: True for feature in features for name in feature.wanted}
        self.weights = {feature.name: feature.weight for feature in features}
        self._pairs: dict[str, LayerMap] = {}

    def prepare(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> None:
        """Refuse what cannot be compared, and find which layers are."""
        if not self.features:
            return
        if getattr(student.config, "is_encoder_decoder", False):
            raise ValueError("features are of models with one stack of layers, no encoder-decoder")
        lengths = [layer_stacks(model)["encoder"].length for model in (student, teacher)]
        for feature in self.features:
            feature.check(student, teacher)
            self._pairs[feature.name] = feature.pairs((lengths[0], lengths[1]))
        tokens_of(batch)
        is_joined = "cu_seq_lens_q" in batch
        if is_joined and self.weights.keys() & {"attention_maps", "relations"}:
            raise ValueError(
                "attention maps and relations are of one example each, and this batch has examples "
                "end to end: pad them, or take HiddenStates() and CosineStates()"
            )

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The number of tokens that are no padding, for each term."""
        return {name: tokens_of(batch).sum() for name in self.weights}

    @contextmanager
    def watch(self, model: nn.Module, is_teacher: bool) -> Generator[Shown]:
        """See what a model computes inside, for the length of a forward pass."""
        shown = Shown(model)
        pairs = self._pairs.get("relations", {})
        with ExitStack() as stack:
            for layer in set(pairs.values() if is_teacher else pairs):
                shown.relations[layer] = stack.enter_context(watch_attention_vectors(model, layer))
            yield shown

    def terms(self, student: Shown, teacher: Shown, batch: Mapping[str, Any]) -> dict[str, LossSum]:
        """Each feature's distances, summed over its layers."""
        if not self.features:  # packed rows have masks of another shape
            return {}
        is_token = tokens_of(batch)
        found: dict[str, LossSum] = {}
        for feature in self.features:
            pairs = self._pairs[feature.name].items()
            sums = [feature.distance(student, teacher, pair, is_token).sum for pair in pairs]
            found[feature.name] = LossSum(torch.stack(sums).sum(), is_token.sum())
        return found


def tokens_of(batch: Mapping[str, Any]) -> Tensor:
    """Which positions [B, T] of a batch are no padding.

    Raises:
        ValueError: a mask of another shape, or no tokens, as in a batch of images.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        tokens = batch.get("input_ids", batch.get("inputs_embeds"))
        if tokens is None:
            raise ValueError(
                f"the batch has no input_ids, only {', '.join(batch)}; features are compared token "
                "by token: leave features=... out for models of anything but text"
            )
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if mask.dim() != 2:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; features need [examples, tokens]"
        )
    return mask != 0
