"""What one distillation of a text classifier is: teacher, layers of the student, data, training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_tfopt.recipe.labelled_keys import LabelledKeys
from hf_tfopt.recipe.teacher_keys import DIVERGENCES, FROM_ZERO_TO_ONE, listed_numbers
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.recipe.typed_values import POSITIVE, key, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentKeys:
    """The teacher, and what the student takes over and learns from it."""

    teacher: str = key(
        "", "a classifier's folder or Hub name; or an encoder's, with teacher_epochs"
    )
    teacher_epochs: float | None = key(
        None, "train the teacher on the same rows first, for so many passes", POSITIVE
    )
    teacher_learning_rate: float | None = key(
        None, "teacher_epochs only: the highest learning rate while the teacher trains", POSITIVE
    )
    layers: str | None = key(
        None, "the teacher's layers that the student is made of: 0,2,4; none: every second one"
    )
    temperature: float | None = key(
        None, "alpha above 0: above 1 the teacher's less likely answers count more", POSITIVE
    )
    alpha: float = key(0.5, "the teacher's share of the loss; 0: labels alone", FROM_ZERO_TO_ONE)
    divergence: str | None = key(
        None, "alpha above 0: from teacher to student", one_of(*DIVERGENCES)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationRecipe(TrainingKeys, LabelledKeys, StudentKeys):
    """One distillation run, valid if it exists.

    Raises:
        ValueError: as `TrainingKeys`; without a teacher or training rows, or with layers that are
            no list of numbers.
    """

    script = "distill.py"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher:
            raise ValueError("teacher: none given; it names a classifier's folder: --teacher PATH")
        self.check_train()
        self.layer_numbers()

    def conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Those of training, and the teacher's own."""
        is_trained_here = self.teacher_epochs is not None
        return {
            **super().conditional_keys(),
            **self.conditional_keys_of_rows(),
            # a student begins with its teacher's weights: between fine-tuning and pre-training
            "learning_rate": (True, 2e-4, ""),
            "teacher_learning_rate": (is_trained_here, 1e-4, "with teacher_epochs"),
            "temperature": (self.alpha > 0, 2.0, "with alpha above 0"),
            "divergence": (self.alpha > 0, "kl", "with alpha above 0"),
            "output_dir": (True, "runs/distilled", ""),
        }

    def selectable_names(self) -> tuple[str, ...]:
        """What an evaluation of the student tells."""
        return ("loss", "accuracy")

    @staticmethod
    def sets_aside(changed: Mapping[str, Any]) -> set[str]:
        """Those of training, and what nothing reads any more."""
        aside = {
            "temperature": changed.get("alpha") == 0,
            "divergence": changed.get("alpha") == 0,
            "teacher_learning_rate": changed.get("teacher_epochs", 1) is None,
        }
        own = {name for name, is_aside in aside.items() if is_aside}
        return own | LabelledKeys.set_aside_of_rows(changed) | TrainingKeys.sets_aside(changed)

    def of_teacher(self) -> "DistillationRecipe":
        """How the teacher is trained first: at its own rate for its own epochs, at random."""
        return dataclasses.replace(
            self,
            sampler=None,
            max_steps=None,
            num_train_epochs=self.teacher_epochs,
            learning_rate=self.teacher_learning_rate,
        )

    def check_teachers_steps(self, num_rows: int, num_processes: int) -> None:
        """Refuse a schedule that does not fit into the teacher's own steps, where it has some.

        Args:
            num_rows: rows of the training set.
            num_processes: devices that train side by side.

        Raises:
            ValueError: warm-up and decay are more than the whole run.
        """
        if self.teacher_epochs is None:
            return
        own = self.of_teacher()
        try:
            own.schedule_steps(own.total_steps(num_rows, num_processes))
        except ValueError as error:
            raise ValueError(f"teacher_epochs {self.teacher_epochs:g}: {error}") from error

    def layer_numbers(self) -> list[int] | None:
        """The teacher's layers that the student keeps, counted from 0; None: every second one.

        Raises:
            ValueError: not a list of whole numbers.
        """
        return None if self.layers is None else listed_numbers("layers", self.layers)
