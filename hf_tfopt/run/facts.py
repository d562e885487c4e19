"""What a run counts: of its text, its model, and the machine and versions that it ran with."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow as pa
import pyarrow.compute
import torch

_compute: Any = pyarrow.compute  # its functions are made at run time: nothing is typed
_PACKAGES = ("hf_tfopt", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
_ROWS_AT_ONCE = 10_000
_NAMING_KEYS = ("model", "teacher", "corpus", "train", "eval", "test")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_DATA_FILES = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".gz")


def data_facts(
    texts: datasets.Dataset,
    rows: datasets.Dataset,
    *,
    columns: Sequence[str] = ("text",),
    label: str | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """Words (between spaces), tokens and rows; where they are named, classes and fullness.

    Args:
        texts: one row for each, with texts or lists of words.
        rows: what is trained on, in a column "input_ids".
        columns: those of the texts.
        label: the column whose classes are counted.
        width: tokens that a full row has; then texts are documents, which are counted, as is the
            share of the rows that is tokens.
    """
    tokens = _num_tokens(rows)
    facts: dict[str, Any] = {} if width is None else {"documents": len(texts)}
    words = sum(_num_words(texts, name) for name in columns)
    facts |= {"words": words, "tokens": tokens, "rows": len(rows)}
    if label is not None:
        classes = chain(*(part.unique().to_pylist() for part in _columns(texts, label)))
        facts["classes"] = len({*classes})
    if width is not None:
        facts["fullness"] = tokens / (len(rows) * width) if len(rows) else 0.0
    return facts


def _columns(dataset: datasets.Dataset, name: str) -> Iterator[Any]:
    """The column's Arrow arrays, of some rows each: a selected row is an array of its own."""
    tables: Any = dataset.select_columns(name).with_format("arrow").iter(_ROWS_AT_ONCE)
    for table in tables:
        yield table.column(name)


def _num_words(texts: datasets.Dataset, name: str) -> int:
    return sum(_total(_words_of(column)) for column in _columns(texts, name))


def _words_of(column: Any) -> Any:
    """How many words each row has: between spaces of a text, or all of a list."""
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if is_list:
        return _compute.list_value_length(column)
    return _compute.count_substring_regex(column, r"\S+")


def _num_tokens(rows: datasets.Dataset) -> int:
    return sum(_total(_compute.list_value_length(c)) for c in _columns(rows, "input_ids"))


def _total(numbers: Any) -> int:
    return _compute.sum(numbers).as_py() or 0


def model_facts(model: Any) -> dict[str, Any]:
    """Class, sizes and number of parameters (tied ones once); of an adapter, what it adapts."""
    config = model.config
    adapters = getattr(model, "peft_config", None) if hasattr(model, "get_base_model") else None
    plain = model.get_base_model() if adapters else model
    trained = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
    facts = {
        "class": type(plain).__name__,
        "parameters": model.num_parameters(),
        **({"adapter": ", ".join(map(_adapter, adapters.values()))} if adapters else {}),
        **({"trained_parameters": trained} if adapters else {}),
        "layers": getattr(config, "num_hidden_layers", None),
        "width": getattr(config, "hidden_size", None),
        "vocabulary": getattr(config, "vocab_size", None),
        "positions": getattr(config, "max_position_embeddings", None),
        "problem": getattr(config, "problem_type", None),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _adapter(config: Any) -> str:
    """The kind of an adapter and its rank: "LORA, rank 8"."""
    kind, rank = getattr(config.peft_type, "value", config.peft_type), getattr(config, "r", None)
    return f"{kind}, rank {rank}" if isinstance(rank, int) else str(kind)


def hub_names(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What of a recipe's model and data are names of the Hub (`owner/name`), by their keys.

    Asked where the run was made: a name of a file or folder there is none.

    Args:
        recipe: the run's keys.
    """
    given = {key: str(recipe.get(key) or "") for key in _NAMING_KEYS}
    return {
        key: name for key, name in given.items() if is_hub_name(name) and not Path(name).exists()
    }


def is_hub_name(name: str) -> bool:
    """Whether it has the form of `owner/name` or `owner/name:configuration`, and not of a file."""
    return bool(_HUB_NAME.fullmatch(name)) and not name.lower().endswith(_DATA_FILES)


def environment_facts(device: torch.device, num_processes: int = 1) -> dict[str, Any]:
    """Versions and the kind of hardware; no name, path or variable of the machine.

    Args:
        device: where it runs.
        num_processes: that run side by side.
    """
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return {
        **facts,
        **_hardware(device),
        **({"processes": num_processes} if num_processes > 1 else {}),
    }


def _hardware(device: torch.device) -> dict[str, str]:
    """The device, the kind of processor, and how much memory the machine has."""
    threads = torch.get_num_threads()
    device_name = f"{threads} thread{'s' if threads > 1 else ''} of a CPU"
    if device.type == "cuda":
        card: Any = torch.cuda.get_device_properties(device)
        device_name = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    elif device.type != "cpu":
        device_name = device.type
    kind = processor()
    return {
        "device": device_name,
        **({"processor": kind} if kind else {}),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as its maker calls it, or its architecture.

    Args:
        cpuinfo: where Linux tells it.
    """
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        told = None
    return " ".join(told[1].split()) if told else platform.machine()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself (AMX, AVX-512 BF16, or a GPU's cores)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # a private-free list of a CPU's abilities is there since torch 2.10
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))
