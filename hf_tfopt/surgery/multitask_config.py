"""The configuration of a model with several heads: one encoder's, and what each task is."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

from transformers import AutoConfig, PretrainedConfig

from hf_tfopt.registry import check_name

PROBLEMS = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
    "token_classification",
)
CLASS_PROBLEMS = ("single_label_classification", "token_classification")
SETTINGS = ("problem", "num_labels", "id2label")
# what a Trainer logs under names of its own, and what `nn.ModuleDict` calls its methods
TAKEN = ("loss", "grad_norm", "learning_rate", "epoch", "step", "runtime", "clear", "items", "keys")

Balance = Literal["uncertainty", "gradnorm"]


class MultitaskConfig(PretrainedConfig):
    """Configuration of a `MultitaskModel`.

    Args:
        encoder: the encoder's own configuration, or its dict (with `model_type`).
        tasks: name -> `{"problem": ..., "num_labels": ..., "id2label": {0: "negative", ...}}`, in
            any order: their numbers are those of the sorted names. The problem is one of
            `PROBLEMS`; of `num_labels` and `id2label` one is enough, and a regression without
            either has one output.
        balance: what the model holds to weigh its tasks: "uncertainty", "gradnorm", or None.
        options: the host's own, such as `dtype`.

    Raises:
        ValueError: no task, a name that cannot be one, or a setting that does not fit.
    """

    model_type = "tfopt_multitask"
    # a property in the host, and a plain attribute in those of its models that are older
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  # pyright: ignore
    has_no_defaults_at_init = True

    def __init__(
        self,
        encoder: PretrainedConfig | dict[str, Any] | None = None,
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
        balance: Balance | None = None,
        **options: Any,
    ):
        if isinstance(encoder, dict):
            given = dict(encoder)
            encoder = AutoConfig.for_model(given.pop("model_type"), **given)
        self.encoder: Any = encoder
        # by name: the host sorts the keys of what it saves, and a task's number must stay
        self.tasks = {
            name: checked_task(name, task) for name, task in sorted((tasks or {}).items())
        }
        self.balance: Balance | None = balance
        super().__init__(**options)  # reads the vocabulary: get_text_config
        if getattr(encoder, "is_encoder_decoder", False):
            raise ValueError(
                f"{type(encoder).__name__} has an encoder and a decoder, whose heads read both; "
                "allowed is a model with one stack of layers"
            )
        if encoder is not None:
            self.dtype = self.dtype or encoder.dtype

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> PretrainedConfig:
        """The encoder's, which has the vocabulary and the width."""
        if self.encoder is None:
            return self
        return self.encoder.get_text_config(decoder=decoder, encoder=encoder)

    def of_task(self, name: str) -> PretrainedConfig:
        """The plain configuration of one task's model, as the host's heads read it."""
        task = self.tasks[check_name("task", name, self.tasks)]
        config = deepcopy(self.encoder)
        config.id2label = dict(task["id2label"])
        config.label2id = {label: number for number, label in config.id2label.items()}
        for_tokens = task["problem"] == "token_classification"
        config.problem_type = None if for_tokens else task["problem"]
        return config


def checked_task(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings, complete; raises ValueError for what does not fit."""
    if not name.replace("-", "_").isidentifier() or name in TAKEN:
        raise ValueError(
            f"a task cannot be called {name!r}: allowed are letters, digits, '-' and '_', and none "
            f"of {', '.join(TAKEN)}"
        )
    for setting in task:
        check_name(f"setting of task {name!r}", setting, SETTINGS)
    if "problem" not in task:
        raise ValueError(f"task {name!r} has no problem; it is one of {', '.join(PROBLEMS)}")
    problem = check_name(f"problem of task {name!r}", task["problem"], PROBLEMS)
    labels = {int(number): str(label) for number, label in (task.get("id2label") or {}).items()}
    default = len(labels) or (1 if problem == "regression" else 0)
    num_labels = int(task.get("num_labels") or default)
    if num_labels < (2 if "single" in problem or "token" in problem else 1):
        raise ValueError(
            f"task {name!r} ({problem}) has {num_labels} labels; say num_labels= or id2label="
        )
    labels = labels or {number: f"LABEL_{number}" for number in range(num_labels)}
    if sorted(labels) != list(range(num_labels)):
        raise ValueError(
            f"task {name!r} has {num_labels} labels, but id2label is for {sorted(labels)}"
        )
    return {"problem": problem, "num_labels": num_labels, "id2label": labels}
