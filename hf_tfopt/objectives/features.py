"""What a student may learn from inside its teacher: hidden states, attention maps, relations.

Each is compared within one stack of layers. An encoder-decoder (T5, BART) has two, of which each is
a term of its own, named after it: `hidden_states_encoder` and `hidden_states_decoder`, both with
the feature's weight, the one a mean over the encoder's tokens, the other over the decoder's. There
`layers` is {"encoder": map, "decoder": map}; what is left out is not compared, and None in place of
a map is the default. A decoder's attention is that to itself, not the one to the encoder.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_tfopt.losses.features import (
    attention_distance,
    cosine_distance,
    hidden_state_distance,
    relation_divergence,
)
from hf_tfopt.losses.reduction import LossSum
from hf_tfopt.objectives.attention_vectors import attention_makers
from hf_tfopt.objectives.layer_pairs import (
    LayerMap,
    StackMaps,
    checked_map,
    last_map,
    uniform_map,
)
from hf_tfopt.objectives.projection import check_width, width_of
from hf_tfopt.objectives.shown import Shown, attentions_of, has_two_stacks, num_heads_of


class Feature(Protocol):
    """One term; `name` is what it is logged as, `weight` its factor in the loss."""

    name: str
    weight: float
    wanted: tuple[str, ...]  # what the models are asked to put out
    layers: LayerMap | StackMaps | None

    def pairs(self, layers: LayerMap | None, num_layers: tuple[int, int]) -> LayerMap:
        """The layers of a stack to compare: as given, or the default for so many layers."""
        ...

    def check(self, student: Any, teacher: Any, part: str) -> None:
        """Refuse models whose stacks of that name cannot be compared so."""
        ...

    def distance(
        self, student: Shown, teacher: Shown, part: str, pair: tuple[int, int], is_token: Tensor
    ) -> LossSum:
        """Of one pair of layers."""
        ...


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states after some layers: mean squared difference, summed over the layers.

    Where the widths differ, a `FeatureProjection` of the student stands between.

    Args:
        weight: factor of the term `hidden_states`.
        layers: {student's layer: teacher's layer}, counted from 0; -1 is the embeddings' output.
            None: layer i of S to layer (i + 1) L / S - 1 of L. Of an encoder-decoder {"encoder":
            such a map, "decoder": another}.

    Paper: Jiao et al. 2020, "TinyBERT", https://arxiv.org/abs/1909.10351, equations 8 and 9.
    """

    weight: float = 1.0
    layers: LayerMap | StackMaps | None = None
    name = "hidden_states"
    wanted = ("output_hidden_states",)

    def pairs(self, layers: LayerMap | None, num_layers: tuple[int, int]) -> LayerMap:
        """As given, or evenly spread."""
        return checked_map(layers, uniform_map(*num_layers), num_layers, lowest=-1)

    def check(self, student: Any, teacher: Any, part: str) -> None:
        """The widths are the same, or there is a projection."""
        check_width(student, width_of(teacher))

    def distance(
        self, student: Shown, teacher: Shown, part: str, pair: tuple[int, int], is_token: Tensor
    ) -> LossSum:
        """After one layer."""
        ours = student.states(part, pair[0], is_token)
        return hidden_state_distance(ours, teacher.states(part, pair[1], is_token), is_token)


@dataclass(frozen=True)
class CosineStates:
    """The direction of the last hidden states: 1 - cos.

    Args:
        weight: factor of the term `cosine`.
        layers: {student's layer: teacher's layer}, counted from 0; None: the last of both. By
            stack as in `HiddenStates`.

    Paper: Sanh et al. 2019, "DistilBERT", https://arxiv.org/abs/1910.01108, section 2.
    """

    weight: float = 1.0
    layers: LayerMap | StackMaps | None = None
    name = "cosine"
    wanted = ("output_hidden_states",)

    def pairs(self, layers: LayerMap | None, num_layers: tuple[int, int]) -> LayerMap:
        """As given, or the last layers."""
        return checked_map(layers, last_map(*num_layers), num_layers)

    def check(self, student: Any, teacher: Any, part: str) -> None:
        """The widths are the same, or there is a projection."""
        check_width(student, width_of(teacher))

    def distance(
        self, student: Shown, teacher: Shown, part: str, pair: tuple[int, int], is_token: Tensor
    ) -> LossSum:
        """After one layer."""
        ours = student.states(part, pair[0], is_token)
        return cosine_distance(ours, teacher.states(part, pair[1], is_token), is_token)


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps: mean squared difference, summed over the layers.

    Both models need the implementation "eager" (the others keep no maps) and as many heads.

    Args:
        weight: factor of the term `attention_maps`.
        layers: {student's layer: teacher's layer}, counted from 0; None: as in `HiddenStates`.

    Paper: Jiao et al. 2020, "TinyBERT", https://arxiv.org/abs/1909.10351, equation 7. Differs: as
    `losses.features.attention_distance` says.
    """

    weight: float = 1.0
    layers: LayerMap | StackMaps | None = None
    name = "attention_maps"
    wanted = ("output_attentions",)

    def pairs(self, layers: LayerMap | None, num_layers: tuple[int, int]) -> LayerMap:
        """As given, or evenly spread."""
        return checked_map(layers, uniform_map(*num_layers), num_layers)

    def check(self, student: Any, teacher: Any, part: str) -> None:
        """Both give maps, of as many heads."""
        heads = [num_heads_of(model, part) for model in (student, teacher)]
        if heads[0] != heads[1]:
            where = f" in the {part}" if has_two_stacks(student) else ""
            raise ValueError(
                f"the student has {heads[0]} attention heads and the teacher {heads[1]}{where}: "
                "their maps cannot be compared; Relations() need no equal number"
            )
        for who, model in (("student", student), ("teacher", teacher)):
            for how in attentions_of(model, part):
                if how != "eager":
                    raise ValueError(
                        f"the {who}'s attention {how!r} keeps no maps: load it with "
                        "attn_implementation='eager', or call "
                        "model.set_attn_implementation('eager')"
                    )

    def distance(
        self, student: Shown, teacher: Shown, part: str, pair: tuple[int, int], is_token: Tensor
    ) -> LossSum:
        """Of one layer."""
        ours = student.map(part, pair[0], is_token)
        return attention_distance(ours, teacher.map(part, pair[1], is_token), is_token)


@dataclass(frozen=True)
class Relations:
    """Relations among queries, among keys and among values of one layer: KL, the three summed.

    Needs neither equal widths nor equal heads, and works with any attention implementation. Of
    models that turn queries and keys by their position (RoPE), what they are before.

    Args:
        weight: factor of the term `relations`.
        layers: {student's layer: teacher's layer}, counted from 0; None: the last of both. (The
            paper takes an upper middle layer of large teachers.) By stack as in `HiddenStates`.
        num_heads: relation heads, a divisor of all widths; None: the student's attention heads.

    Paper: Wang et al. 2021, "MiniLMv2", https://arxiv.org/abs/2012.15828, section 3.
    """

    weight: float = 1.0
    layers: LayerMap | StackMaps | None = None
    num_heads: int | None = None
    name = "relations"
    wanted = ()

    def pairs(self, layers: LayerMap | None, num_layers: tuple[int, int]) -> LayerMap:
        """As given, or the last layers."""
        return checked_map(layers, last_map(*num_layers), num_layers)

    def check(self, student: Any, teacher: Any, part: str) -> None:
        """Both have queries, keys and values that are found."""
        for model in (student, teacher):
            attention_makers(model, part, 0)

    def distance(
        self, student: Shown, teacher: Shown, part: str, pair: tuple[int, int], is_token: Tensor
    ) -> LossSum:
        """Of one layer."""
        num_heads = self.num_heads or num_heads_of(student.model, part)
        both = [
            shown.vectors(part, layer, is_token)
            for shown, layer in zip((student, teacher), pair, strict=True)
        ]
        terms: list[LossSum] = []
        for ours, theirs in zip(*both, strict=True):
            if not ours.requires_grad:
                raise ValueError(
                    "the student's queries have no gradient: with gradient checkpointing, set "
                    "gradient_checkpointing_kwargs={'use_reentrant': False}"
                )
            for width in (ours.shape[-1], theirs.shape[-1]):
                if width % num_heads:
                    raise ValueError(
                        f"num_heads is {num_heads}, no divisor of a width of {width}; give "
                        "Relations(num_heads=...) one of all widths"
                    )
            terms.append(relation_divergence(ours, theirs, is_token, num_heads))
        return LossSum(torch.stack([term.sum for term in terms]).sum(), is_token.sum())
