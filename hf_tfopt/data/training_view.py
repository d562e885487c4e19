"""Where a collator sits in a DataLoader, and how it comes to make other batches for training."""

from copy import copy
from typing import Any

import torch


def loader_inside(loader: Any) -> Any:
    """What accelerate has wrapped: an attribute set on the wrapper does not reach it."""
    return getattr(loader, "base_dataloader", loader)


def seed_lasting_workers(loader: Any, args: Any) -> None:
    """Give a DataLoader's persistent workers a generator of their own to be seeded from.

    Drawn from the one that dropout uses, their seed would be drawn once in a run and once more in a
    resumed one, which would then not be the same.
    """
    if args.dataloader_persistent_workers and loader is not None:
        generator = torch.Generator().manual_seed(args.seed + args.process_index)
        loader_inside(loader).generator = generator


def training_view(found: Any, collator: Any) -> Any:
    """What `found` is, with `collator.for_training` in the place of `collator`; None if not in it.

    Wrappers are copied, as evaluation may use the same ones: the host's `RemoveColumnsCollator`
    (where the dataset is not of `datasets`), and those of `tfo.attach`.

    Args:
        found: the `collate_fn` of a DataLoader.
        collator: one with a method `for_training`.
    """
    if found is collator:
        return collator.for_training
    for name in ("data_collator", "collator"):
        inner = getattr(found, name, None)
        view = None if inner is None else training_view(inner, collator)
        if view is not None:
            wrapper = copy(found)
            setattr(wrapper, name, view)
            return wrapper
    return None
