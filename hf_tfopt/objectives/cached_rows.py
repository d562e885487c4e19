"""A teacher's cached answers: columns beside the labels, in place of the teacher itself."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from hf_tfopt.losses.distillation import KnownRows, TeacherRows
from hf_tfopt.losses.divergence import DivergenceForm, TopClasses
from hf_tfopt.losses.reduction import IGNORE_INDEX
from hf_tfopt.objectives.teacher import check_classes
from hf_tfopt.surgery.packed_heads import STARTS

DONE = "cache.json"
LOG_PROBS, IDS, LOG_REST, KEY = COLUMNS = (
    "teacher_log_probs",
    "teacher_ids",
    "teacher_log_rest",
    "teacher_key",
)
NO_LABEL = -1  # among the ids, where a row has fewer labels than the longest of its batch

Collator = Callable[[list[Any]], Mapping[str, Any]]


class CachedTeacher:
    """What `cache_teacher` wrote to a folder, to be given to `Distillation` as its teacher.

    Args:
        path: the folder.

    Raises:
        ValueError: no cache there, or one that was not finished.
    """

    def __init__(self, path: str | Path):
        done = Path(path) / DONE
        if not done.is_file():
            raise ValueError(
                f"{path} holds no finished cache of a teacher; call cache_teacher(...) with this "
                "path (again, to go on where it was)"
            )
        self.settings: dict[str, Any] = json.loads(done.read_text())
        shards = [str(Path(path) / name) for name in self.settings["shards"]]
        self.dataset: Any = datasets.concatenate_datasets(
            [datasets.Dataset.load_from_disk(shard) for shard in shards]
        )
        self.model = nn.Identity()  # there is no teacher to watch

    def collator(self, collator: Collator) -> Collator:
        """The collator of the rows, and the teacher's columns padded beside its batches.

        Rows without these columns (an evaluation set) pass as they are.
        """

        def collate(rows: list[Any]) -> dict[str, Any]:
            plain = [{k: v for k, v in row.items() if k not in COLUMNS} for row in rows]
            batch = dict(collator(plain))
            has = [LOG_PROBS in row for row in rows]
            return {**batch, **_padded(rows)} if all(has) else batch

        return collate

    def check(self, student: Any, form: DivergenceForm, is_language_model: bool) -> None:
        """Refuse a student that the cached answers are not for."""
        settings = self.settings
        if settings["temperature"] != form.temperature:
            raise ValueError(
                f"the teacher's answers were cached at temperature {settings['temperature']}, and "
                f"the student is to be trained at {form.temperature}; they must be the same"
            )
        if settings["is_language_model"] != is_language_model:
            raise ValueError(
                f"the cached teacher and {type(student).__name__} do not have the same task"
            )
        if not is_language_model:
            names = settings["id2label"]
            check_classes(
                student,
                SimpleNamespace(config=SimpleNamespace(num_labels=len(names), id2label=names)),
            )
        elif (size := student.get_output_embeddings().weight.shape[0]) != settings["num_classes"]:
            raise ValueError(
                f"the student has {size} tokens and the cached teacher {settings['num_classes']}"
            )

    def look(
        self, batch: Mapping[str, Any], index: Tensor, **wanted: bool
    ) -> tuple[TeacherRows, None]:
        """The answers that were cached for the batch's labels.

        Raises:
            ValueError: a batch without them, or with other inputs or labels than were cached.
        """
        if LOG_PROBS not in batch:
            raise ValueError(
                "the batch has no cached answers: train on `cached.dataset` with `data_collator="
                "cached.collator(...)` and remove_unused_columns=False in the TrainingArguments"
            )
        if not torch.equal(row_keys(batch), batch[KEY]):
            raise ValueError(
                "the inputs or labels of a batch are not those whose answers were cached: its "
                "collator draws masks, cuts rows or makes labels in another way"
            )
        is_label = batch[IDS][..., 0] != NO_LABEL
        assert int(is_label.sum()) == index.numel()
        known = TopClasses(*(batch[name][is_label] for name in (LOG_PROBS, IDS, LOG_REST)))
        return KnownRows(known), None


def without_cache(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without a cached teacher's columns."""
    return {name: value for name, value in batch.items() if name not in COLUMNS}


def row_keys(batch: Mapping[str, Any]) -> Tensor:
    """A number for each row [B] that changes with its tokens and labels, not with its padding.

    Packed rows of a causal model have no mask: their tokens count up to the last label.

    Raises:
        ValueError: a batch without token ids or labels, such as one of images, or one whose rows
            are not those of the labels (packed classification, rows joined without padding).
    """
    missing = [name for name in ("input_ids", "labels") if name not in batch]
    if missing:
        raise ValueError(
            f"the batch has no {' and no '.join(missing)}, only {', '.join(batch)}; answers are "
            "cached of texts as tokens, with labels: distil other models with the teacher itself"
        )
    mask = batch.get("attention_mask")
    has_mask_of_tokens = mask is None or getattr(mask, "shape", None) == batch["input_ids"].shape
    if STARTS in batch or "cu_seq_lens_q" in batch or not has_mask_of_tokens:
        raise ValueError(
            "the batch has several examples in a row, and answers are cached row by row: give "
            "padded batches, with is_packed=False in a ClassificationCollator and a model whose "
            'attention is "sdpa" or "eager"'
        )
    size = batch["input_ids"].shape[0]
    ids = batch["input_ids"].reshape(size, -1).long()
    labels = batch["labels"].reshape(size, -1).long()
    is_label = labels.ne(IGNORE_INDEX).long()
    if mask is not None:
        is_token = mask.reshape(size, -1).ne(0).long()
    elif "position_ids" in batch and labels.shape == ids.shape:
        is_token = is_label.flip(-1).cummax(-1).values.flip(-1)
    else:
        is_token = torch.ones_like(ids)
    place = is_token.cumsum(-1)
    key = (is_token * _mixed(ids, place)).sum(-1)
    # A label stands at its token's place, or, where there are as many as it likes, at its own.
    at = place if labels.shape == ids.shape else is_label.cumsum(-1)
    return key + 31 * (is_label * _mixed(labels, at + 1_000_003)).sum(-1)


def _mixed(values: Tensor, places: Tensor) -> Tensor:
    """Whole numbers that wrap around at 64 bits (as those of splitmix64 do)."""
    mixed = (values + 1) * 0x1E3779B97F4A7C15 + places * 0x3F58476D1CE4E5B9
    return (mixed ^ (mixed >> 29)) * 0x14D049BB133111EB


def _padded(rows: list[Any]) -> dict[str, Tensor]:
    longest = max(1, max(len(row[IDS]) for row in rows))
    k = max((len(ids) for row in rows for ids in row[IDS]), default=1)
    shape = (len(rows), longest, k)
    log_probs, log_rest = torch.zeros(shape), torch.zeros(shape[:2])
    ids = torch.full(shape, NO_LABEL)
    for number, row in enumerate(rows):
        length = len(row[IDS])
        if length:
            log_probs[number, :length] = torch.as_tensor(row[LOG_PROBS])
            ids[number, :length] = torch.as_tensor(row[IDS])
            log_rest[number, :length] = torch.as_tensor(row[LOG_REST])
    keys = torch.tensor([row[KEY] for row in rows])
    return {LOG_PROBS: log_probs, IDS: ids, LOG_REST: log_rest, KEY: keys}
