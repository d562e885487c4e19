"""What a masked model may also learn from: a trained one, its answers and what is inside it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_tfopt.objectives import FEATURES
from hf_tfopt.recipe.typed_values import POSITIVE, Check, key, listed, one_of
from hf_tfopt.registry import check_name

DIVERGENCES = ("kl", "reverse_kl", "jsd")
FROM_ZERO_TO_ONE = Check("from 0 to 1", lambda value: 0 <= value <= 1)
OF_TEACHER = ("temperature", "alpha", "divergence", "features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherKeys:
    """The teacher, and the layers of a trained model that a smaller one begins with."""

    layers: str | None = key(
        None, "only these layers of a trained model, counted from 0: 0,2,4; none: all"
    )
    teacher: str | None = key(
        None, "a trained masked model to learn from too, its folder or Hub name"
    )
    temperature: float | None = key(
        None, "teacher only: above 1 its less likely answers count more", POSITIVE
    )
    alpha: float | None = key(None, "teacher only: its share of the loss", FROM_ZERO_TO_ONE)
    divergence: str | None = key(
        None, "teacher only: from its answers to the model's", one_of(*DIVERGENCES)
    )
    features: Mapping[str, Any] | None = key(
        None, "teacher only: what else to learn from inside it: {cosine: {weight: 0.1}}"
    )

    def layer_numbers(self) -> list[int] | None:
        """The layers to keep; None: all."""
        return None if self.layers is None else listed_numbers("layers", self.layers)

    def check_teacher(self) -> None:
        """Refuse layers and features that cannot be.

        Raises:
            ValueError: layers that are no list of numbers, or a feature that nobody has.
        """
        self.layer_numbers()
        for name in self.features or {}:
            check_name("feature", name, FEATURES)


def listed_numbers(name: str, text: str) -> list[int]:
    """The numbers of a key such as `0,2,4`.

    Raises:
        ValueError: not a list of whole numbers.
    """
    numbers = listed(text.strip("[]"))
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{name}: got {text!r}, expected numbers such as 0,2,4")
    return [int(number) for number in numbers]
