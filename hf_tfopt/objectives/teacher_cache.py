"""What a teacher says of a dataset, written once, to be read in place of the teacher."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import datasets
import torch
from torch import Tensor

from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.losses.divergence import DivergenceForm, TopClasses, top_classes
from hf_tfopt.losses.head import HeadPlan, labelled_positions
from hf_tfopt.losses.linear_head import CHUNK_BYTES
from hf_tfopt.losses.reduction import IGNORE_INDEX
from hf_tfopt.objectives.cached_rows import (
    DONE,
    IDS,
    KEY,
    LOG_PROBS,
    LOG_REST,
    CachedTeacher,
    Collator,
    row_keys,
)
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.packed_teacher import check_separation
from hf_tfopt.objectives.teacher import Teacher

SETTINGS = "settings.json"
NUM_PROBED = 8  # rows that the collator makes a batch of twice


def cache_teacher(
    teacher: Any,
    dataset: Any,
    collator: Collator,
    path: str | Path,
    *,
    k: int | None = 64,
    temperature: float = 2.0,
    batch_size: int = 16,
    shard_size: int = 1024,
) -> CachedTeacher:
    """Write the teacher's k likeliest answers at every label of a dataset to a folder, once.

    The student is then trained without the teacher in memory: `TfoptTrainer(student, args,
    train_dataset=cached.dataset, data_collator=cached.collator(collator),
    objective=Distillation(cached))`, with `args.remove_unused_columns=False`. The divergence is the
    one over these k classes and "any other", whose probability is kept too: never more than the
    teacher's own, and the same where k is all classes.

    The folder holds shards of Arrow: the dataset's columns and, for each label of a row, log p of k
    classes at the temperature (fp32), their numbers, and log p of the rest. A shard appears when it
    is whole; a call that was cut short goes on where it was when it is made again.

    For labels that stay: causal and seq2seq language models, classifiers, and masked ones whose
    masks are columns of the dataset. Masks drawn anew every epoch are other labels every time, and
    refused.

    Args:
        teacher: the model; it is put into evaluation mode, and runs where it is.
        dataset: a `datasets.Dataset` of tokenized examples with labels.
        collator: makes batches of them, always the same of the same rows.
        path: folder to write.
        k: classes kept for each label; None: all.
        temperature: T, of the divergence to be trained.
        batch_size: examples in a forward pass.
        shard_size: examples in a shard; at most so many are computed again after an interruption.

    Raises:
        ValueError: an option out of its range, a collator that draws masks or makes different
            batches of the same rows, batches without token ids or of several examples in a row
            (packed rows of a causal model, which are padded, are fine), a teacher without classes
            or one that mixes packed examples, or a folder with another cache.

    Paper: none; Anshumann et al. 2025, "Sparse Logit Sampling", https://arxiv.org/abs/2503.16870,
    show that the top k alone teach a biased distribution: here the rest is one more class.
    """
    if (k is not None and k < 1) or batch_size < 1 or shard_size < 1:
        raise ValueError(
            f"k={k}, batch_size={batch_size}, shard_size={shard_size}; allowed are 1 and more "
            "(k=None for all classes)"
        )
    DivergenceForm("kl", temperature)  # refuses one out of its range
    first = _checked_batch(dataset, collator)
    said = _Answers(teacher.eval(), first, k, temperature)
    settings = {
        "temperature": temperature,
        "k": k,
        "shard_size": shard_size,
        "num_rows": len(dataset),
        "dataset": digest(repr(dataset[i]) for i in (0, len(dataset) // 2, len(dataset) - 1)),
        "teacher": digest(model_facts(teacher)),
        "is_language_model": isinstance(said.task, LanguageModeling),
        "num_classes": said.num_classes,
        "id2label": {str(number): name for number, name in teacher.config.id2label.items()},
    }
    folder = Path(path)
    _begin(folder, settings)
    shards: list[str] = []
    for start in range(0, len(dataset), shard_size):
        shards.append(f"shard-{len(shards):05d}")
        if not (folder / shards[-1]).is_dir():
            rows = dataset.select(range(start, min(start + shard_size, len(dataset))))
            _write(folder / shards[-1], rows, _columns(said, rows, collator, batch_size))
    _write_json(folder / DONE, {**settings, "shards": shards})
    return CachedTeacher(folder)


class _Answers:
    """A teacher asked for its likeliest classes at the labels of a batch."""

    def __init__(self, teacher: Any, batch: Mapping[str, Any], k: int | None, temperature: float):
        self.device = next(teacher.parameters()).device
        batch = self._here(batch)
        embedding: Any = getattr(teacher, "get_output_embeddings", lambda: None)()
        self.task = Classification() if embedding is None else LanguageModeling()
        self.task.prepare(teacher, batch)
        if isinstance(self.task, LanguageModeling):
            assert self.task.plan is not None
            self.teacher = Teacher(teacher, self.task.plan)
            check_separation(self.teacher, batch)
            self.num_classes: int = teacher.get_output_embeddings().weight.shape[0]
        else:
            if self.task.problem != "single_label_classification":
                raise ValueError(
                    f"the teacher's problem is {self.task.problem}; answers are cached of models "
                    "that choose one of several classes"
                )
            self.teacher = Teacher(teacher, HeadPlan(None, None))
            self.num_classes = self.task.num_labels
        self.k = min(k or self.num_classes, self.num_classes)
        self.temperature = temperature

    def of(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The cached columns of each row."""
        batch = self._here(batch)
        task = self.task
        labels = task.labels(batch) if isinstance(task, LanguageModeling) else batch["labels"]
        index, _ = labelled_positions(labels)
        rows, _ = self.teacher.look(batch, index)
        pieces: list[TopClasses] = []
        size = max(1, CHUNK_BYTES // (4 * self.num_classes))
        for start in range(0, max(1, index.numel()), size):
            part = slice(start, min(start + size, index.numel()))
            logits = rows.chunk(part)(slice(0, part.stop - part.start))
            assert isinstance(logits, Tensor)
            pieces.append(top_classes(logits, self.k, self.temperature))
        counts = labels.reshape(labels.shape[0], -1).ne(IGNORE_INDEX).sum(-1).tolist()
        log_probs, ids, log_rest = (
            torch.cat(values).cpu().split(counts) for values in zip(*pieces, strict=True)
        )
        return [
            {LOG_PROBS: p.numpy(), IDS: i.int().numpy(), LOG_REST: r.numpy(), KEY: key}
            for p, i, r, key in zip(log_probs, ids, log_rest, row_keys(batch).tolist(), strict=True)
        ]

    def _here(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _columns(
    said: _Answers, rows: Any, collator: Collator, batch_size: int
) -> dict[str, list[Any]]:
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch_size):
        stop = min(start + batch_size, len(rows))
        found += said.of(collator([rows[i] for i in range(start, stop)]))
    return {name: [row[name] for row in found] for name in (LOG_PROBS, IDS, LOG_REST, KEY)}


def _checked_batch(dataset: Any, collator: Any) -> Mapping[str, Any]:
    """A first batch, of a dataset and collator that give the same labels at any time."""
    if not isinstance(dataset, datasets.Dataset) or not len(dataset):
        raise ValueError(
            f"the dataset is {type(dataset).__name__} of {len(dataset)} rows; give a "
            "datasets.Dataset (Dataset.from_list makes one of dicts)"
        )
    if set(dataset.column_names) & {LOG_PROBS, IDS, LOG_REST, KEY}:
        raise ValueError("the dataset has a teacher's answers already; give the one without them")
    rows = [dataset[i] for i in range(min(NUM_PROBED, len(dataset)))]
    draws = isinstance(collator, MaskedLMCollator) or getattr(collator, "mlm", False) is True
    batches = [] if draws else [collator(rows), collator(rows)]
    if draws or not torch.equal(*(row_keys(batch) for batch in batches)):
        raise ValueError(
            f"{type(collator).__name__} makes other labels of the same rows every time, and cached "
            "answers are to fixed ones: put masked inputs and labels into the dataset, or train "
            "with the teacher itself"
        )
    return batches[0]


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    """Take the folder, or go on in it."""
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / SETTINGS
    if known.is_file():
        before = json.loads(known.read_text())
        differing = [name for name, value in settings.items() if before.get(name) != value]
        if differing:
            raise ValueError(
                f"{folder} holds the answers of another call (other {', '.join(differing)}); give "
                "another path, or delete the folder"
            )
    elif any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else; give the path of a new folder")
    else:
        _write_json(known, settings)


def _write(shard: Path, rows: Any, columns: dict[str, list[Any]]) -> None:
    """A shard that is there whole, or not at all."""
    partial = shard.with_name(f"partial-{shard.name}")
    if partial.exists():
        rmtree(partial)
    features = datasets.Features(
        {
            LOG_PROBS: datasets.List(datasets.List(datasets.Value("float32"))),
            IDS: datasets.List(datasets.List(datasets.Value("int32"))),
            LOG_REST: datasets.List(datasets.Value("float32")),
            KEY: datasets.Value("int64"),
        }
    )
    said = datasets.Dataset.from_dict(columns, features=features)
    datasets.concatenate_datasets([rows.flatten_indices(), said], axis=1).save_to_disk(str(partial))
    os.replace(partial, shard)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)


def model_facts(model: Any) -> list[str]:
    """A model's class, and each parameter's bytes: sums would change with the number of threads."""
    parts = [type(model).__name__]
    for name, parameter in model.named_parameters():
        raw: Any = parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        parts.append(f"{name} {hashlib.sha256(raw).hexdigest()}")
    return parts


def digest(parts: Iterable[str]) -> str:
    """A short hash of lines of text."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
