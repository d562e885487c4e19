"""Which layer of a student is compared with which layer of its teacher."""

from collections.abc import Mapping

LayerMap = Mapping[int, int]  # the student's layer -> the teacher's, both counted from 0


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
