"""What one fine-tuning of a classifier is: model, problem, rows, loss and metrics."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hf_tfopt.data.labelled_names import PROBLEMS, REGRESSION, SEVERAL, SINGLE, TOKENS
from hf_tfopt.metrics import score_keys
from hf_tfopt.recipe.labelled_keys import LabelledKeys
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.recipe.typed_values import SHARE, key, listed, one_of
from hf_tfopt.registry import check_name

# Of `OBJECTIVES`, those that wrap the loss of the labels.
WRAPPERS = ("r_drop", "fgm", "pgd", "freelb", "virtual_adversarial", "smart")
ENTITY_PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")
AUTO = "auto"
# What is measured where nothing is said; the first one chooses the checkpoint.
USUAL_METRICS = {
    SINGLE: ("accuracy", "f1"),
    SEVERAL: ("multilabel",),
    REGRESSION: ("spearman", "pearson", "mean_squared_error"),
    TOKENS: ("entities", "accuracy"),
}
_OF_CLASSES = (
    *("accuracy", "top_k_accuracy", "f1", "precision", "recall", "matthews"),
    "calibration_error",
)
# All that an evaluation of a problem can tell.
METRICS_OF = {
    SINGLE: _OF_CLASSES,
    SEVERAL: ("multilabel",),
    REGRESSION: ("spearman", "pearson", "mean_squared_error"),
    TOKENS: ("entities", *_OF_CLASSES),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationKeys:
    """The model, and what it learns from rows with labels."""

    model: str = key("", "what to begin with: an encoder's or a classifier's folder or Hub name")
    new_head: bool = key(
        False, "leave the model's own head behind, where it is one of another task or other classes"
    )
    head_dropout: float | None = key(None, "of the head; none: the model's own", SHARE)

    problem: str | None = key(
        None,
        "single_label_classification, multi_label_classification, regression or "
        "token_classification; none: seen from the rows",
        one_of(*PROBLEMS),
    )

    label_separator: str | None = key(
        None, "stands between several labels in one text: news;sports"
    )
    packing: bool = key(
        False, "batches without padding, where the model's head and attention allow it"
    )

    label_smoothing: float = key(0.0, "share of the target that goes to all classes", SHARE)
    class_weights: Mapping[str, Any] | None = key(
        None, "what a label of a class counts for, others 1: {rare: 5}; or {balanced: true}"
    )
    objective: Mapping[str, Any] | None = key(
        None, f"around the loss: {{r_drop: {{alpha: 1}}}}, or another of {', '.join(WRAPPERS)}"
    )
    metrics: str | None = key(
        None, "what is measured, with commas: accuracy,f1; none: by the problem"
    )
    positive: str | None = key(
        None, "the class, of two, that f1, precision and recall are of; none: the mean over classes"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(TrainingKeys, LabelledKeys, ClassificationKeys):
    """One fine-tuning run, valid if it exists.

    Raises:
        ValueError: as `TrainingKeys`; without a model or training rows; an option that the problem
            does not read.
    """

    script = "finetune_classification.py"

    select: str | None = key(
        AUTO, "keep the checkpoint that is best by this; auto: the first metric; none: the last one"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise ValueError("model: none given; it names what to begin with: --model PATH")
        self.check_train()
        self._check_objective()
        self._check_problem()

    def conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Those of training, at the rates of fine-tuning."""
        return {
            **super().conditional_keys(),
            **self.conditional_keys_of_rows(),
            "learning_rate": (True, 5e-5 if self.optimizer == "adamw" else None, ""),
            "num_train_epochs": (self.max_steps is None, 3.0, "where max_steps is not given"),
            "output_dir": (True, "runs/classifier", ""),
        }

    @staticmethod
    def sets_aside(changed: Mapping[str, Any]) -> set[str]:
        """Those of training, and what nothing reads any more."""
        own = LabelledKeys.set_aside_of_rows(changed)
        by_problem = {"metrics", "select"} if "problem" in changed else set[str]()
        by_metrics = {"select"} if "metrics" in changed else set[str]()
        return own | by_problem | by_metrics | TrainingKeys.sets_aside(changed)

    def _check_objective(self) -> None:
        if self.objective is None:
            return
        if len(self.objective) != 1:
            raise ValueError(f"objective: got {dict(self.objective)}, must be one and its options")
        for name, options in self.objective.items():
            check_name("objective around a loss", name, WRAPPERS)
            if not isinstance(options or {}, Mapping):
                raise ValueError(
                    f"objective: {name}: got {options!r}, must be its options, or {{}}"
                )

    def _check_problem(self) -> None:
        """What only some problems have."""
        has_classes = self.problem != REGRESSION
        for name in ("label_smoothing", "class_weights"):
            if getattr(self, name) and not has_classes:
                raise ValueError(f"{name}: a regression has no classes; leave it out")
        if self.problem == TOKENS and self.text_pair_column is not None:
            raise ValueError("text_pair_column: words with tags have no second text; leave it out")
        if self.label_separator and self.problem not in (None, SEVERAL):
            raise ValueError(f"label_separator: {self.problem} has one label; leave it out")
        if self.positive is not None and self.problem not in (None, SINGLE):
            raise ValueError(f"positive: {self.problem} has no class of two; leave it out")
        if self.problem is not None:
            for name in self.metric_names():
                check_name(f"metric of {self.problem} (metrics)", name, METRICS_OF[self.problem])

    def metric_names(self) -> tuple[str, ...]:
        """The names in `metrics`; those of the problem where none are given."""
        given = [name for name in listed(self.metrics or "") if name]
        return tuple(given) or USUAL_METRICS.get(self.problem or "", ())

    def selectable_names(self) -> tuple[str, ...] | None:
        """The numbers that the metrics tell; None while the problem is not known."""
        names = self.metric_names()
        return score_keys(*names) if names else None


def resolved(
    recipe: ClassificationRecipe, problem: str, classes: Sequence[str] | None
) -> ClassificationRecipe:
    """The recipe with everything said that the rows have decided.

    Args:
        recipe: as it was given.
        problem: as it was given, or seen from the rows.
        classes: their names; tags that are of no entities are measured one by one.

    Raises:
        ValueError: a metric, or a class in `positive`, that the problem does not have.
    """
    known = dataclasses.replace(recipe, problem=problem)
    if problem == TOKENS and not recipe.metrics and not _are_of_entities(classes or ()):
        known = dataclasses.replace(known, metrics=",".join(USUAL_METRICS[SINGLE]))
    if known.positive is not None:
        check_name("class (positive)", known.positive, classes or ())
        if len(classes or ()) != 2:
            raise ValueError(
                f"positive: it is one of two classes, and these are {len(classes or ())}"
            )
    names = known.selectable_names()
    assert names
    select = names[0] if recipe.select == AUTO else recipe.select
    return dataclasses.replace(known, metrics=",".join(known.metric_names()), select=select)


def _are_of_entities(classes: Sequence[str]) -> bool:
    """Whether tags are as in IOB: O, B-PER, I-PER."""
    return all(name == "O" or name[:2] in ENTITY_PREFIXES for name in classes)
