"""Does a teacher keep the examples of a packed batch apart, as its student does? Tried out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.data.segments import segment_lengths
from hf_tfopt.data.separation import HALF_TOLERANCE, TOLERANCE
from hf_tfopt.objectives.teacher import Teacher
from hf_tfopt.surgery.packed_heads import STARTS

MOST_TRIED = 64  # tokens: their logits are all there at once


def check_attention(student: Any, teacher: Any, batch: Mapping[str, Any]) -> None:
    """Refuse a teacher that cannot take what tells a packed batch's examples apart.

    Raises:
        ValueError: a batch made for one kind of attention, and another than the student's, or a
            head that was not prepared for it.
    """
    ours, theirs = (getattr(m.config, "_attn_implementation", None) for m in (student, teacher))
    if STARTS in batch and not any(hasattr(m, "reads_example_starts") for m in teacher.modules()):
        raise ValueError(
            "the batch has packed examples, of which the teacher's head would read the first "
            "alone: call tfo.packed_classification(teacher)"
        )
    if _suits_one_attention(batch) and ours != theirs:
        raise ValueError(
            f"the batch has packed examples, as the student's attention {ours!r} takes them; "
            f"the teacher's {theirs!r} would read them as one text: give the teacher the same "
            "(tfo.unpadded_attention(teacher), or attn_implementation= when it is loaded)"
        )


def check_separation(teacher: Teacher, batch: Mapping[str, Any]) -> None:
    """Refuse a teacher that says other things of a packed example than of it alone.

    An example of the batch that has others before it in its row is shown to the teacher alone too.

    Raises:
        ValueError: the logits differ by more than kernels do.
    """
    found = _packed_example(batch)
    if found is None:
        return
    row, start, end = found
    width = batch["input_ids"].shape[1]
    alone = {
        name: value[row : row + 1, start:end]
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.shape == batch["input_ids"].shape
    }
    alone.pop("attention_mask", None)
    together = _logits(teacher, batch, row * width + start, end - start)
    expected = _logits(teacher, alone, 0, end - start)
    furthest, largest = (float(v.abs().max()) for v in (together - expected, expected))
    if not furthest <= _tolerance(teacher, batch) * largest:
        raise ValueError(
            f"the batch has packed examples, of which {type(teacher.model).__name__} would say "
            f"other things than of each alone (logits differ by {furthest:.2g} of {largest:.2g}): "
            "leave out tfo.pack, or take a teacher that keeps them apart (one with position ids "
            "and the host's common attention)"
        )


def _suits_one_attention(batch: Mapping[str, Any]) -> bool:
    """Whether another attention would read it in another way: added numbers suit several."""
    mask = batch.get("attention_mask")
    is_tensor = isinstance(mask, Tensor)
    is_of_pairs = mask is not None and (
        not is_tensor or (mask.dim() > 2 and mask.dtype == torch.bool)
    )
    return is_of_pairs or "cu_seq_lens_q" in batch or STARTS in batch


def _packed_example(batch: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Row, start and end of the longest example behind another; None in a batch not packed."""
    ids, positions, mask = (
        batch.get(name) for name in ("input_ids", "position_ids", "attention_mask")
    )
    if ids is None or positions is None or positions.shape != ids.shape:
        return None
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        return None
    found: list[tuple[int, int, int, int]] = []
    for row, numbers in enumerate(positions.cpu().numpy()):
        lengths = segment_lengths(numbers)
        ends = lengths.cumsum()
        found += [
            (int(length), row, int(end - length), int(end))
            for length, end in zip(lengths[1:], ends[1:], strict=True)
            if length > 1  # padding is one
        ]
    if not found:
        return None
    length, row, start, end = max(found)
    return row, start, end - max(0, length - MOST_TRIED)


def _logits(teacher: Teacher, batch: Mapping[str, Any], start: int, number: int) -> Tensor:
    index = torch.arange(start, start + number, device=batch["input_ids"].device)
    every = slice(0, number)
    said = teacher.look(batch, index)[0].chunk(every)(every)
    assert isinstance(said, Tensor)
    return said.float()


def _tolerance(teacher: Teacher, batch: Mapping[str, Any]) -> float:
    if torch.is_autocast_enabled(batch["input_ids"].device.type):
        return HALF_TOLERANCE
    return TOLERANCE.get(next(teacher.model.parameters()).dtype, HALF_TOLERANCE)
