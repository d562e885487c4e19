"""What a run counts: of its text, its model and the versions that it ran with."""

import platform
from importlib import metadata
from typing import Any

import datasets
import pyarrow.compute
import torch

_compute: Any = pyarrow.compute  # its functions are made at run time: nothing is typed
_PACKAGES = ("hf_tfopt", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def data_facts(documents: datasets.Dataset, rows: datasets.Dataset, width: int) -> dict[str, Any]:
    """Documents, words (between spaces), tokens, rows, and the share of the rows that is tokens.

    Args:
        documents: one row for each, in a column "text".
        rows: what is trained on, in a column "input_ids".
        width: tokens that a full row has.
    """
    words = _compute.count_substring_regex(_column(documents, "text"), r"\S+")
    tokens = _total(_compute.list_value_length(_column(rows, "input_ids")))
    return {
        "documents": len(documents),
        "words": _total(words),
        "tokens": tokens,
        "rows": len(rows),
        "fullness": tokens / (len(rows) * width) if len(rows) else 0.0,
    }


def labelled_facts(texts: datasets.Dataset, rows: datasets.Dataset) -> dict[str, Any]:
    """Words (between spaces), tokens, rows and classes of labelled texts.

    Args:
        texts: in a column "text", with a "label".
        rows: the same as token ids, in a column "input_ids".
    """
    return {
        "words": _total(_compute.count_substring_regex(_column(texts, "text"), r"\S+")),
        "tokens": _total(_compute.list_value_length(_column(rows, "input_ids"))),
        "rows": len(rows),
        "classes": len(_compute.unique(_column(texts, "label"))),
    }


def _column(dataset: datasets.Dataset, name: str) -> Any:
    """The column's Arrow array, of the rows that are selected."""
    table: Any = dataset.select_columns(name).with_format("arrow")[:]
    return table.column(name)


def _total(numbers: Any) -> int:
    return _compute.sum(numbers).as_py() or 0


def model_facts(model: Any) -> dict[str, Any]:
    """Class, sizes and number of parameters (tied ones once)."""
    config = model.config
    facts = {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "layers": getattr(config, "num_hidden_layers", None),
        "width": getattr(config, "hidden_size", None),
        "vocabulary": config.vocab_size,
        "positions": getattr(config, "max_position_embeddings", None),
    }
    return {name: value for name, value in facts.items() if value is not None}


def environment_facts(device: torch.device, num_processes: int = 1) -> dict[str, Any]:
    """Versions and the kind of hardware; no name, path or variable of the machine."""
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    facts["device"] = f"{torch.get_num_threads()} threads of a CPU"
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        facts["device"] = device.type
    return facts | ({"processes": num_processes} if num_processes > 1 else {})


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself (AMX, AVX-512 BF16, or a GPU's cores)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # a private-free list of a CPU's abilities is there since torch 2.10
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))
