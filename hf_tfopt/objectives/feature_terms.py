"""The feature terms of one student and its teacher, together."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum
from hf_tfopt.objectives.attention_vectors import watch_attention_vectors
from hf_tfopt.objectives.features import Feature
from hf_tfopt.objectives.layer_pairs import LayerMap, maps_of_stacks
from hf_tfopt.objectives.shown import Shown
from hf_tfopt.surgery.layer_stacks import layer_stacks


class _Term(NamedTuple):
    """What is compared in one term: a feature of some layers of one stack."""

    feature: Feature
    part: str
    pairs: LayerMap


class Features:
    """What a student learns from inside its teacher, each feature of each stack a term of its own.

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
        self._terms: dict[str, _Term] = {}
        self._is_written = False

    @property
    def weights(self) -> dict[str, float]:
        """Each term's, known when the model is."""
        return {name: term.feature.weight for name, term in self._terms.items()}

    def prepare(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> None:
        """Refuse what cannot be compared, and find which layers are."""
        if not self.features:
            return
        stacks, others = layer_stacks(student), layer_stacks(teacher)
        kinds = [type(model).__name__ for model in (student, teacher)]
        if stacks.keys() != others.keys():
            raise ValueError(
                f"the student is {kinds[0]} and the teacher {kinds[1]}: one has an encoder and a "
                "decoder, the other one stack of layers, and their features cannot be compared"
            )
        _check_every_layer_runs(student)
        embedding = getattr(student, "get_output_embeddings", lambda: None)()
        self._is_written = embedding is not None
        self._terms = {}
        for feature in self.features:
            for part, layers in maps_of_stacks(feature.layers, stacks, kinds[0]).items():
                feature.check(student, teacher, part)
                pairs = feature.pairs(layers, (stacks[part].length, others[part].length))
                name = feature.name if len(stacks) == 1 else f"{feature.name}_{part}"
                self._terms[name] = _Term(feature, part, pairs)
        self._tokens(batch)
        is_joined = "cu_seq_lens_q" in batch
        if is_joined and {"attention_maps", "relations"} & {each.name for each in self.features}:
            raise ValueError(
                "attention maps and relations are of one example each, and this batch has examples "
                "end to end: pad them, or take HiddenStates() and CosineStates()"
            )

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The number of tokens that are no padding, in each term's stack."""
        tokens = self._tokens(batch)
        return {name: tokens[term.part].sum() for name, term in self._terms.items()}

    @contextmanager
    def watch(self, model: nn.Module, is_teacher: bool) -> Generator[Shown]:
        """See what a model computes inside, for the length of a forward pass."""
        shown = Shown(model)
        with ExitStack() as stack:
            for feature, part, pairs in self._terms.values():
                for layer in set(pairs.values() if is_teacher else pairs):
                    if feature.name == "relations":
                        seen = watch_attention_vectors(model, part, layer)
                        shown.relations[part, layer] = stack.enter_context(seen)
            yield shown

    def terms(self, student: Shown, teacher: Shown, batch: Mapping[str, Any]) -> dict[str, LossSum]:
        """Each feature's distances, summed over the layers of a stack."""
        tokens = self._tokens(batch)
        found: dict[str, LossSum] = {}
        for name, (feature, part, pairs) in self._terms.items():
            is_token = tokens[part]
            sums = [
                feature.distance(student, teacher, part, pair, is_token).sum
                for pair in pairs.items()
            ]
            found[name] = LossSum(torch.stack(sums).sum(), is_token.sum())
        return found

    def _tokens(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """By stack that is compared; without features none, as packed rows have other masks."""
        parts = {term.part for term in self._terms.values()}
        return {part: tokens_of(batch, part, self._is_written) for part in parts}


def tokens_of(batch: Mapping[str, Any], part: str = "encoder", is_written: bool = True) -> Tensor:
    """Which positions [B, T] of a batch are no padding.

    A decoder's are those of `decoder_attention_mask`. Without one they are the positions with a
    label: the decoder's input there is the label before, or the start token. In a classifier
    (BART's), whose decoder reads the encoder's input one place later, they are the encoder's.

    Args:
        batch: the model's inputs and labels.
        part: the stack, "encoder" (also of a model with one) or "decoder".
        is_written: whether the labels are what the decoder writes, and no classes.

    Raises:
        ValueError: a mask of another shape, or no tokens, as in a batch of images.
    """
    name = "attention_mask"
    if part == "decoder" and batch.get("decoder_attention_mask") is not None:
        name = "decoder_attention_mask"
    elif part == "decoder" and is_written:
        return batch["labels"] != IGNORE_INDEX
    mask = batch.get(name)
    if mask is None:
        tokens = batch.get("input_ids", batch.get("inputs_embeds"))
        if tokens is None:
            raise ValueError(
                f"the batch has no input_ids, only {', '.join(batch)}; features are compared token "
                "by token: leave features=... out for models of anything but text (of one that "
                "writes of what it hears or sees, compare the decoder: layers={'decoder': None})"
            )
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if mask.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; features need [examples, tokens]")
    return mask != 0


def _check_every_layer_runs(student: nn.Module) -> None:
    """Refuse layers that are left out at random: those after them would be taken for them."""
    for module in student.modules():
        chance = getattr(module, "layerdrop", 0.0)
        if isinstance(chance, float) and chance > 0:
            raise ValueError(
                f"the student leaves out layers at random ({type(module).__name__}.layerdrop is "
                f"{chance}), so that its layers cannot be told apart in training; make it with "
                "layerdrop (encoder_layerdrop and decoder_layerdrop) 0 in its config"
            )
