"""Which layer of a student is compared with which layer of its teacher."""

from collections.abc import Iterable, Mapping
from typing import cast

from hf_tfopt.registry import check_name

LayerMap = Mapping[int, int]  # the student's layer -> the teacher's, both counted from 0
StackMaps = Mapping[str, LayerMap | None]  # "encoder" or "decoder" -> its map; None: the default


def uniform_map(num_student: int, num_teacher: int) -> dict[int, int]:
    """Layer i of S to layer (i + 1) L / S - 1 of L, rounded: evenly spread, the last to the last.

    Paper: Jiao et al. 2020, "TinyBERT", https://arxiv.org/abs/1909.10351, section 3.1.
    """
    step = num_teacher / num_student
    return {i: max(0, int((i + 1) * step + 0.5) - 1) for i in range(num_student)}


def last_map(num_student: int, num_teacher: int) -> dict[int, int]:
    """The last layer to the last."""
    return {num_student - 1: num_teacher - 1}


def checked_map(
    layers: LayerMap | None, default: LayerMap, num_layers: tuple[int, int], lowest: int = 0
) -> dict[int, int]:
    """The map, if both models have its layers.

    Args:
        layers: {student's layer: teacher's layer}, or none.
        default: what it is then.
        num_layers: of student and teacher.
        lowest: the smallest number that means something.

    Raises:
        ValueError: a layer that one of them does not have, or an empty map.
    """
    layers = default if layers is None else layers
    if not layers:
        raise ValueError("layers is an empty map; leave it out to have all layers compared")
    sides = (("student", layers.keys()), ("teacher", layers.values()))
    for (who, numbers), length in zip(sides, num_layers, strict=True):
        for number in numbers:
            if not lowest <= number < length:
                raise ValueError(
                    f"layers={dict(layers)}: layer {number} is none of the {who}'s, which are "
                    f"{lowest} to {length - 1} (the map is from the student's to the teacher's)"
                )
    return dict(layers)


def maps_of_stacks(
    layers: LayerMap | StackMaps | None, stacks: Iterable[str], model: str
) -> dict[str, LayerMap | None]:
    """The map of each stack that is compared; None is the feature's own choice.

    Args:
        layers: of a model with one stack a map, of others {stack: its map}; None: all by default.
        stacks: their names, one or several.
        model: the name of its class, for errors.

    Raises:
        ValueError: a stack that is not there; stacks named of a model with one, or not of others.
    """
    stacks = list(stacks)
    if layers is None:
        return dict.fromkeys(stacks)
    named = {part: given for part, given in layers.items() if isinstance(part, str)}
    if len(stacks) == 1:
        if named:
            raise ValueError(
                f"layers={dict(layers)} names stacks of layers, and {model} has one: give its map "
                "alone, as in layers={0: 1}, from the student's numbers to the teacher's"
            )
        return {stacks[0]: cast(LayerMap, layers)}
    for part in named:
        check_name("stack of layers", part, stacks)
    maps = {k: v for k, v in named.items() if v is None or isinstance(v, Mapping)}
    if len(maps) != len(layers) or not maps:
        raise ValueError(
            f"layers={dict(layers)}, but {model} has {' and '.join(stacks)}: say of which, as in "
            f"layers={{{stacks[0]!r}: {{0: 1}}, {stacks[1]!r}: {{1: 3}}}}; one that is left out is "
            "not compared, and None instead of a map is the default"
        )
    return maps
