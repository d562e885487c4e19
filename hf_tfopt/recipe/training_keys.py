"""The keys of every training run, whatever is trained."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from hf_tfopt.data import SAMPLERS
from hf_tfopt.optimizers import OPTIMIZERS
from hf_tfopt.recipe.typed_values import (
    INSIDE_UNIT,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    check_fields,
    key,
    one_of,
)
from hf_tfopt.registry import check_name
from hf_tfopt.schedules import SCHEDULES

# noam's rate is absolute: its lr would be a factor, not a learning rate
RATES_OVER_TIME = tuple(name for name in SCHEDULES if name != "noam")
# `StabilityGuard`'s actions, and none; not imported, since it needs torch
GUARDS = ("off", "warn", "skip", "rollback", "lower_lr", "stop")
# What of a run may be otherwise when it goes on; the rest would make it another run.
MAY_CHANGE_ON_RESUME = (
    *("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "device"),
    *("preset", "output_dir", "report_to", "monitors", "license", "language"),
    *("push_to", "private", "patience", "search_trials"),
)

# A key given in a recipe or on the command line sets aside these of the preset below it.
_SETS_ASIDE: dict[str, tuple[str, ...]] = {
    "max_steps": ("num_train_epochs",),
    "num_train_epochs": ("max_steps",),
    "schedule": ("decay_fraction", "schedule_options"),
    "optimizer": ("learning_rate", "adamw_learning_rate", "optimizer_options"),
    "select": ("save_steps",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingKeys:
    """Optimizer, schedule, number and rhythm of the steps; frozen, and valid if it exists.

    Keys that are none are filled in from the others where a number is needed, so that a recipe
    written with `to_yaml` says everything.

    Raises:
        ValueError: for a value of the wrong type or outside its range, or keys that exclude
            each other, with what is allowed.
    """

    script = "pretrain.py"  # the file in scripts/ that runs such recipes

    preset: str = key("", "the preset that the other keys start from")

    optimizer: str = key("adamw", "a name of the optimizers' table")
    learning_rate: float | None = key(None, "the highest learning rate", POSITIVE)
    adamw_learning_rate: float | None = key(
        None, "muon only: of AdamW, for embeddings, norms and biases", POSITIVE
    )
    weight_decay: float = key(0.01, "decay of the weights, not of biases and norms", NOT_NEGATIVE)
    layer_decay: float = key(1.0, "how much slower each layer learns than the next", UP_TO_ONE)
    multipliers: Mapping[str, Any] | None = key(
        None, "of the rates of parts or patterns: {embeddings: 0.5, head: 2}"
    )
    optimizer_options: Mapping[str, Any] | None = key(
        None, "the optimizer's own: {cautious: true, betas: [0.9, 0.98]}"
    )
    schedule: str = key("linear", "the learning rate over time", one_of(*RATES_OVER_TIME))
    warmup_steps: float = key(0.05, "steps of warm-up; below 1: share of all steps", NOT_NEGATIVE)
    decay_fraction: float | None = key(
        None, "warmup_stable_decay only: last share of the steps, falling to 0", INSIDE_UNIT
    )
    schedule_options: Mapping[str, Any] | None = key(None, "the schedule's own: {floor: 0.1}")
    max_grad_norm: float = key(1.0, "gradients are clipped to this norm; 0: never", NOT_NEGATIVE)

    monitors: str = key(
        "default", "what is watched and logged beside the loss", one_of("default", "none")
    )
    callbacks: Mapping[str, Any] | None = key(
        None, "more callbacks, with their options: {stability_guard: {action: skip}, zclip: {}}"
    )

    guard: str = key(
        "skip",
        "what follows a step whose loss or gradient is not a number, or that is far off",
        one_of(*GUARDS),
    )

    sampler: Mapping[str, Any] | None = key(
        None, "which rows make up a batch: {token_budget: {max_tokens: 4096}}; none: at random"
    )
    batch_size: int = key(32, "rows in one forward pass, on each device", POSITIVE)
    gradient_accumulation_steps: int = key(1, "forward passes in one step", POSITIVE)
    max_steps: int | None = key(None, "steps to train for, instead of num_train_epochs", POSITIVE)
    num_train_epochs: float | None = key(None, "passes over the corpus", POSITIVE)

    precision: str = key(
        "auto", "auto: bf16 where the hardware has it", one_of("auto", "fp32", "bf16")
    )
    device: str = key("auto", "auto: an accelerator if there is one", one_of("auto", "cpu"))
    seed: int = key(0, "of the weights, the masks and the order", NOT_NEGATIVE)

    logging_steps: int = key(10, "steps from one logged loss to the next", POSITIVE)
    eval_steps: int | None = key(
        None, "steps from one evaluation to the next; none: ten in the run", POSITIVE
    )
    save_steps: int | None = key(
        None, "steps from one checkpoint to the next; none: at every evaluation", POSITIVE
    )
    select: str | None = key(
        None, "keep the checkpoint whose evaluation is best by this: loss, accuracy ...; none: last"
    )
    patience: int | None = key(
        None, "select only: stop after so many evaluations without a better one", POSITIVE
    )
    seeds: Sequence[int] | None = key(
        None, "several runs, one for each of these seeds, and their mean and spread: [1, 2, 3]"
    )
    search: Mapping[str, Any] | None = key(
        None, "trials of other values before the run: {learning_rate: [1.0e-5, 1.0e-3]}"
    )
    search_trials: int | None = key(None, "search only: how many trials", POSITIVE)
    report_to: str = key("none", "trackers, with commas between them: tensorboard, trackio ...")
    output_dir: str | None = key(None, "where everything goes; none: runs/ and the recipe's name")

    push_to: str | None = key(None, "the Hub repository that the finished run goes to: owner/name")
    private: bool | None = key(None, "push_to only: whether a new repository is private")
    license: str | None = key(None, "the model's licence, for the card (apache-2.0, mit ...)")
    language: str | None = key(None, "the language of the text, for the card: en, or en,de")

    def __post_init__(self) -> None:
        check_fields(self)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        self._check_sampler()
        self._check_selection()
        self._check_seeds()
        for name, (is_read, default, words) in self.conditional_keys().items():
            if not is_read and getattr(self, name) is not None:
                raise ValueError(f"{name}: given, but it is read only {words}; leave it out")
            if is_read and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.warmup_steps > 1 and not self.warmup_steps.is_integer():
            raise ValueError(
                f"warmup_steps: got {self.warmup_steps}, must be a share below 1 or a whole number"
            )
        self.schedule_steps(self.max_steps or 10**9)  # without a number of steps, shares alone

    def conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Of keys that only some recipes read: is it read, its value if none, and when."""
        stable = self.schedule == "warmup_stable_decay"
        return {
            "adamw_learning_rate": (self.optimizer == "muon", 3e-3, "by the optimizer muon"),
            "decay_fraction": (stable, 0.4, "by the schedule warmup_stable_decay"),
            "num_train_epochs": (self.max_steps is None, 1.0, "where max_steps is not given"),
            "patience": (self.select is not None, None, "with select"),
            "search_trials": (self.search is not None, 10, "with search"),
            "private": (self.push_to is not None, True, "with push_to"),
        }

    def selectable_names(self) -> Sequence[str] | None:
        """What `select` may name, as the evaluations of the run have it; None: not known here."""
        return None

    def may_change_on_resume(self) -> tuple[str, ...]:
        """What may be otherwise when the run goes on."""
        return MAY_CHANGE_ON_RESUME

    @staticmethod
    def sets_aside(changed: Mapping[str, Any]) -> set[str]:
        """The keys of a preset or file below that these, given above it, put out of force."""
        return {name for given in changed for name in _SETS_ASIDE.get(given, ())}

    def _check_selection(self) -> None:
        """The best checkpoint must be one: the host forgets a best that it does not save."""
        evaluated, saved = self.eval_steps, self.save_steps
        if self.select is not None and saved and saved != evaluated:
            raise ValueError(
                f"save_steps {saved} with select: leave it out, every evaluation is saved "
                "(eval_steps)"
            )

    def _check_seeds(self) -> None:
        """Whole numbers, each once: a spread needs two."""
        seeds = self.seeds
        if seeds is None:
            return
        if not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise ValueError(f"seeds: got {list(seeds)}, must be whole numbers, 0 or above")
        if len(set(seeds)) < max(2, len(seeds)):
            raise ValueError(
                f"seeds: got {list(seeds)}, must be at least two, each once; of one run: seed"
            )

    def _check_sampler(self) -> None:
        """One name of the table; how many steps an epoch has must be known without its rows."""
        if self.sampler is None:
            return
        if len(self.sampler) != 1:
            raise ValueError(f"sampler: got {dict(self.sampler)}, must be one name and its options")
        name = check_name("sampler", next(iter(self.sampler)), SAMPLERS)
        if not SAMPLERS[name].has_whole_batches and self.max_steps is None:
            raise ValueError(
                f"sampler: with {name} batches have any number of rows; give max_steps in the "
                "place of num_train_epochs"
            )

    def total_steps(self, num_rows: int, num_processes: int = 1) -> int:
        """Optimizer steps of the whole run, as the host counts them.

        `max_steps`, or ⌈epochs · ⌈⌈rows / (batch · processes)⌉ / accumulation⌉⌉.

        Args:
            num_rows: rows of the training set.
            num_processes: devices that train side by side.
        """
        if self.max_steps is not None:
            return self.max_steps
        assert self.num_train_epochs is not None
        batches = math.ceil(num_rows / (self.batch_size * num_processes))
        return math.ceil(
            self.num_train_epochs * math.ceil(batches / self.gradient_accumulation_steps)
        )

    def schedule_steps(self, total_steps: int) -> tuple[int, int]:
        """Steps of warm-up and of decay in a run of so many.

        Raises:
            ValueError: if they are together more than the run.
        """
        share = self.warmup_steps < 1
        warmup = math.ceil(total_steps * self.warmup_steps) if share else int(self.warmup_steps)
        decay = int(total_steps * (self.decay_fraction or 0))
        if warmup + decay > total_steps:
            decaying = f" and decay_fraction {self.decay_fraction:g}" if self.decay_fraction else ""
            raise ValueError(
                f"warmup_steps {self.warmup_steps:g}{decaying} are more than the whole run"
                + (f" of {total_steps} steps" if total_steps < 10**9 else "")
            )
        return warmup, decay

    def to_yaml(self, unread: Collection[str] = ()) -> str:
        """The recipe as a YAML file with a comment on every key; loading it gives it back.

        Args:
            unread: keys that the data have left without effect; null, as others that nothing reads.
        """
        script = f"scripts/{self.script}"
        lines = [f"# As resolved; the same again: python {script} FILE [--key value ...]"]
        for field in dataclasses.fields(self):
            value = None if field.name in unread else getattr(self, field.name)
            line = yaml.safe_dump({field.name: value}, width=10**6).rstrip()
            lines.append(f"{line}  # {field.metadata['summary']}")
        return "\n".join(lines) + "\n"


def split_seed_key() -> Any:
    """The key `split_seed` of every recipe that holds rows out: of `seeds`, the same for each."""
    return key(0, "which rows eval_fraction holds out, whatever seed is; none: 0", NOT_NEGATIVE)
