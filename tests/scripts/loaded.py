"""The scripts as modules, and what their tests share: rows, command lines, and what a run left."""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[2]
# of BERT
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
SHORT_RUN = {
    "max_steps": 6,
    "logging_steps": 1,
    "device": "cpu",
    "precision": "fp32",
}
WORDS = {"good": ["fine", "bright", "warm"], "bad": ["dull", "cold", "flat"]}
NOUNS = ["film", "plot", "score", "cast"]


def script_path(name: str) -> Path:
    return ROOT / "scripts" / f"{name}.py"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, script_path(name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_flags(keys: dict[str, Any]) -> list[str]:
    """The command line that gives these keys; None leaves its key out."""
    given = {key: value for key, value in keys.items() if value is not None}
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def sentences(num_rows: int, seed: int) -> list[tuple[str, str]]:
    """Texts that one word makes good or bad, with that label."""
    choose = random.Random(seed)
    labels = [choose.choice(list(WORDS)) for _ in range(num_rows)]
    return [(f"the {choose.choice(NOUNS)} is {choose.choice(WORDS[k])}", k) for k in labels]


def save_models(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Each in a folder of its name, with the tokenizer."""
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def history(out: Path, key: str) -> dict[int, float]:
    """What was logged under a name, by step."""
    entries = json.loads((out / "run.json").read_text())["history"]
    return {entry["step"]: entry[key] for entry in entries if key in entry}
