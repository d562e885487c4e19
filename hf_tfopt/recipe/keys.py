"""What one pre-training run is: every choice a typed key, checked before anything is built.

A recipe is a YAML file, a preset's name, or keyword arguments; `load_recipe` lays the keys given on
the command line over it. Two settings that cannot both hold, or one that nothing would read, are an
error: no key is silently without effect.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_tfopt.data.masking_rule import UNITS
from hf_tfopt.optimizers import OPTIMIZERS
from hf_tfopt.presets import PRESETS
from hf_tfopt.recipe.rates import USUAL_RATES
from hf_tfopt.recipe.typed_values import (
    INSIDE_UNIT,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    UP_TO_ONE,
    at_least,
    check_fields,
    key,
    kinds,
    one_of,
    read_yaml_mapping,
    value_from_text,
)
from hf_tfopt.registry import check_name, nearest
from hf_tfopt.schedules import SCHEDULES

# noam's rate is absolute: its lr would be a factor, not a learning rate
RATES_OVER_TIME = tuple(name for name in SCHEDULES if name != "noam")
OBJECTIVES = ("mlm", "mlm+nsp", "mlm+sop")
TEXT_UNITS = ("paragraph", "line", "file")
ATTENTIONS = ("unpadded", "sdpa", "eager", "flex_attention", "flash_attention_2")
MODEL_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)
# What of a run may be otherwise when it goes on; the rest would make it another run.
MAY_CHANGE_ON_RESUME = (
    *("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "device"),
    *("preset", "output_dir", "report_to", "license", "language"),
)

# A key given in a recipe or on the command line sets aside these of the preset below it.
_SETS_ASIDE: dict[str, tuple[str, ...]] = {
    "max_steps": ("num_train_epochs",),
    "num_train_epochs": ("max_steps",),
    "schedule": ("decay_fraction", "schedule_options"),
    "optimizer": ("learning_rate", "adamw_learning_rate", "optimizer_options"),
    "tokenizer": ("vocab_size",),
    "objective": ("packing",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pre-training run, from the text to the learning rate; frozen, and valid if it exists.

    Keys that are none are filled in from the others where a number is needed, so that a recipe
    written with `to_yaml` says everything.

    Raises:
        ValueError: for a value of the wrong type or outside its range, or keys that exclude
            each other, with what is allowed.
    """

    preset: str = key("", "the preset that the other keys start from")

    model: str = key("bert", "an architecture to build, or a folder or Hub name to go on from")
    hidden_size: int | None = key(None, "width; none: the architecture's own", POSITIVE)
    num_hidden_layers: int | None = key(None, "layers; none: the architecture's own", POSITIVE)
    num_attention_heads: int | None = key(None, "heads; none: the architecture's own", POSITIVE)
    intermediate_size: int | None = key(None, "width of the feed-forward part", POSITIVE)
    max_position_embeddings: int | None = key(None, "the longest text a new model reads", POSITIVE)
    dropout: float | None = key(None, "every dropout of the model; none: the model's own", SHARE)
    initialization: str | None = key(
        None,
        "a new model's words: random, or with their frequencies and company in the corpus",
        one_of("random", "corpus"),
    )
    attention: str = key("unpadded", "how attention is computed", one_of(*ATTENTIONS))

    corpus: str = key("embedded", "embedded, a text file, folder or glob, or a datasets name")
    text_column: str = key("text", "the column that holds the text")
    text_unit: str = key("paragraph", "a document of a .txt file", one_of(*TEXT_UNITS))
    max_documents: int | None = key(None, "a sample of so many documents", at_least(2))
    eval_fraction: float = key(0.05, "documents held out for evaluation", INSIDE_UNIT)
    tokenizer: str | None = key(None, "a folder or Hub name; none: the model's, or a new WordPiece")
    vocab_size: int | None = key(None, "words of a new tokenizer", POSITIVE)
    max_length: int = key(128, "tokens of the longest example, specials included", at_least(8))
    packing: bool | None = key(None, "several whole examples in one row instead of padding")

    objective: str = key("mlm", "words, and next or swapped texts", one_of(*OBJECTIVES))
    masking_unit: str = key("token", "what is masked as a whole", one_of(*UNITS))
    masking_probability: float = key(0.3, "share of the tokens to predict", INSIDE_UNIT)
    eval_masking_probability: float = key(0.15, "the same share in evaluation", INSIDE_UNIT)

    optimizer: str = key("muon", "a name of the optimizers' table")
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
    schedule: str = key(
        "warmup_stable_decay", "the learning rate over time", one_of(*RATES_OVER_TIME)
    )
    warmup_steps: float = key(0.05, "steps of warm-up; below 1: share of all steps", NOT_NEGATIVE)
    decay_fraction: float | None = key(
        None, "warmup_stable_decay only: last share of the steps, falling to 0", INSIDE_UNIT
    )
    schedule_options: Mapping[str, Any] | None = key(None, "the schedule's own: {floor: 0.1}")
    max_grad_norm: float = key(1.0, "gradients are clipped to this norm; 0: never", NOT_NEGATIVE)

    batch_size: int = key(32, "rows in one forward pass, on each device", POSITIVE)
    gradient_accumulation_steps: int = key(1, "forward passes in one step", POSITIVE)
    max_steps: int | None = key(None, "steps to train for, instead of num_train_epochs", POSITIVE)
    num_train_epochs: float | None = key(None, "passes over the corpus", POSITIVE)

    precision: str = key(
        "auto", "auto: bf16 where the hardware has it", one_of("auto", "fp32", "bf16")
    )
    device: str = key("auto", "auto: an accelerator if there is one", one_of("auto", "cpu"))
    seed: int = key(0, "of the weights, the masks, the order and the split", NOT_NEGATIVE)

    logging_steps: int = key(10, "steps from one logged loss to the next", POSITIVE)
    eval_steps: int = key(100, "steps from one evaluation to the next", POSITIVE)
    save_steps: int = key(500, "steps from one checkpoint to the next", POSITIVE)
    report_to: str = key("none", "trackers, with commas between them: tensorboard, trackio ...")
    output_dir: str | None = key(None, "where everything goes; none: runs/ and the recipe's name")

    license: str | None = key(None, "the model's licence, for the card (apache-2.0, mit ...)")
    language: str = key("en", "the language of the text, for the card")

    def __post_init__(self) -> None:
        check_fields(self)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        for name, (wanted, default, words) in self._conditional_keys().items():
            if not wanted and getattr(self, name) is not None:
                raise ValueError(f"{name}: given, but it is read only {words}; leave it out")
            if wanted and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_model()
        if self.warmup_steps > 1 and not self.warmup_steps.is_integer():
            raise ValueError(
                f"warmup_steps: got {self.warmup_steps}, must be a share below 1 or a whole number"
            )
        self.schedule_steps(self.max_steps or 10**9)  # without a number of steps, shares alone

    @property
    def continues(self) -> bool:
        """Whether `model` is a trained model to go on from rather than an architecture to build."""
        return is_saved_model(self.model)

    def _conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Of keys that only some recipes read: is it read, its value if none, and when."""
        new_tokenizer = self.tokenizer is None and not self.continues
        stable = self.schedule == "warmup_stable_decay"
        size = (not self.continues, None, "where a new model is built")
        return {
            "learning_rate": (True, USUAL_RATES[self.optimizer], ""),
            "adamw_learning_rate": (self.optimizer == "muon", 3e-3, "by the optimizer muon"),
            "decay_fraction": (stable, 0.4, "by the schedule warmup_stable_decay"),
            "packing": (
                self.objective == "mlm",
                True,
                "by the objective mlm: pairs are not packed",
            ),
            "vocab_size": (new_tokenizer, 8192, "where a new tokenizer is trained"),
            "num_train_epochs": (self.max_steps is None, 1.0, "where max_steps is not given"),
            "output_dir": (True, f"runs/{self.preset or 'run'}", ""),
            "initialization": (not self.continues, "corpus", "where a new model is built"),
            **dict.fromkeys(MODEL_SIZES, size),
        }

    def _check_model(self) -> None:
        """Sizes that no model can have."""
        width, heads = self.hidden_size, self.num_attention_heads
        if width and heads and width % heads:
            raise ValueError(
                f"hidden_size {width} is not divisible by num_attention_heads {heads}; "
                f"nearest: {max(1, round(width / heads)) * heads}"
            )
        positions = self.max_position_embeddings
        if positions and self.max_length > positions:
            raise ValueError(
                f"max_length {self.max_length} is beyond max_position_embeddings {positions}"
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

    def to_yaml(self) -> str:
        """The recipe as a YAML file with a comment on every key; `load_recipe` gives it back."""
        lines = ["# As resolved; the same again: python scripts/pretrain.py FILE [--key value ...]"]
        for field in dataclasses.fields(self):
            line = yaml.safe_dump({field.name: getattr(self, field.name)}, width=10**6).rstrip()
            lines.append(f"{line}  # {field.metadata['summary']}")
        return "\n".join(lines) + "\n"


def is_saved_model(model: str) -> bool:
    """Whether a recipe's `model` names a folder or a Hub repository, and not an architecture."""
    return "/" in model or "\\" in model or Path(model).is_dir()


def _laid_over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with the keys of `upper`, less what those set aside."""
    aside = {
        name
        for given, names in _SETS_ASIDE.items()
        if given in upper and upper[given] != lower.get(given)
        for name in names
    }
    if "model" in upper and is_saved_model(str(upper["model"])):
        aside |= {*MODEL_SIZES, "vocab_size", "initialization"}
    return {name: value for name, value in lower.items() if name not in aside} | dict(upper)


def _preset_values(name: str) -> dict[str, Any]:
    return read_yaml_mapping(PRESETS[name].path) | {"preset": name}


def _source_values(source: str) -> dict[str, Any]:
    """The keys of a preset, or of a recipe file laid over the preset that it names."""
    if source in PRESETS:
        return _preset_values(source)
    if not Path(source).is_file():
        raise ValueError(
            f"no recipe {source!r}: neither a file nor a preset"
            f"{nearest(source, PRESETS)}; presets: {', '.join(PRESETS)}"
        )
    values = read_yaml_mapping(source)
    for name in values:
        check_name(f"key in {source}", name, kinds(Recipe))
    below = _preset_values(str(values["preset"])) if values.get("preset") else {}
    return {"output_dir": f"runs/{Path(source).stem}"} | _laid_over(below, values)


def load_recipe(source: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a YAML file or a preset, with some keys set otherwise.

    Args:
        source: a YAML file's path, or the name of a preset.
        overrides: key -> value as text, as on the command line.

    Raises:
        ValueError: for a source that is not there, an unknown key, a wrong type, an impossible
            value or combination, with what is allowed and the nearest right name.
    """
    if "preset" in (overrides or {}):
        raise ValueError("preset: not a flag; name the preset where the recipe's file would stand")
    types = kinds(Recipe)
    given = {
        name: value_from_text(name, text, *types[check_name("flag", name, types)])
        for name, text in (overrides or {}).items()
    }
    return Recipe(**_laid_over(_source_values(str(source)), given))
