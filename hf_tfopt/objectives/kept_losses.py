"""Losses of examples on disk, with what they are a function of."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.objectives.teacher_cache import digest, model_facts

LOSSES = "losses.npz"
Floats = NDArray[np.float64]


def facts_of(
    model: Any, dataset: Any, batch: Mapping[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """What the losses are a function of.

    Args:
        model: by its weights.
        dataset: by its fingerprint.
        batch: its first one, which tells what the collator makes of rows.
        options: of the scoring.

    Raises:
        ValueError: a dataset without a fingerprint.
    """
    table = dataset.dataset if isinstance(dataset, ArrowRows) else dataset
    if not isinstance(table, datasets.Dataset):
        raise ValueError(
            f"the dataset is of type {type(table).__name__} and has no fingerprint to know it by; "
            "give a datasets.Dataset, or no cache"
        )
    known: Any = table
    return {
        "model": digest(model_facts(model)),
        "dataset": known._fingerprint,
        "batch": digest(_digests(batch)),
        "num_rows": len(dataset),
        **options,
    }


def _digests(batch: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(batch):
        value = batch[name]
        if isinstance(value, Tensor):
            raw: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            yield f"{name} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"


def kept(folder: Path, settings: Mapping[str, Any]) -> Floats | None:
    """The losses of the folder; None if there are none yet.

    Raises:
        ValueError: losses of other settings, or something else in the folder.
    """
    if not (folder / LOSSES).is_file():
        if folder.exists() and any(not p.name.startswith("partial-") for p in folder.iterdir()):
            raise ValueError(f"{folder} holds something else; give the path of a new folder")
        return None
    with np.load(folder / LOSSES) as known:
        losses, before = known["losses"], json.loads(str(known["settings"]))
    differing = [name for name, value in settings.items() if before.get(name) != value]
    if differing:
        raise ValueError(
            f"{folder} holds losses of another call (other {', '.join(differing)}); give another "
            "path, or delete the folder"
        )
    return losses


def keep(folder: Path, settings: dict[str, Any], losses: Floats) -> None:
    """A file that is there whole, or not at all, also where several processes write it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"partial-{uuid4().hex}.npz"
    np.savez(partial, losses=losses, settings=np.array(json.dumps(settings)))
    os.replace(partial, folder / LOSSES)
