"""Examples are found again in a row, and every implementation is told to keep them apart."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from hf_tfopt.data.segments import attention_inputs, segment_lengths
from tests.references.packing import allowed

ROWS = [[37, 1, 90], [64, 136], [200]]
WIDTH = 200  # no multiple of flex attention's blocks of 128; the first row ends in padding


def given(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("lengths", [[], [1], [5], [1, 1, 1], [3, 1, 4, 2]])
def test_segments_are_read_from_positions(lengths: list[int], first: int) -> None:
    positions = np.array([first + place for n in lengths for place in range(n)], dtype=np.int32)
    assert segment_lengths(positions).tolist() == lengths


@pytest.mark.parametrize("window", [None, 0, 5])
def test_the_masks_say_the_same(window: int | None) -> None:
    expected = torch.tensor(allowed(ROWS, WIDTH, window))[:, None]
    windows = {"local": window, "everywhere": None}
    options: dict[str, Any] = {"layer_windows": windows}
    seen = attention_inputs(given(ROWS), WIDTH, "sdpa", **options)["attention_mask"]
    assert torch.equal(seen["local"], expected)
    assert torch.equal(seen["everywhere"], torch.tensor(allowed(ROWS, WIDTH))[:, None])
    for dtype in (torch.float32, torch.float16):
        added = attention_inputs(given(ROWS), WIDTH, "eager", dtype=dtype, **options)
        mask = added["attention_mask"]["local"]
        assert mask.dtype == dtype
        assert torch.equal(mask == 0, expected)
        assert torch.equal(mask == torch.finfo(dtype).min, ~expected)
    blocks = attention_inputs(given(ROWS), WIDTH, "flex_attention", **options)
    assert_blocks_equal(blocks["attention_mask"]["local"], expected)


def assert_blocks_equal(mask: Any, expected: torch.Tensor) -> None:
    num_rows, _, width, _ = expected.shape
    assert mask.shape == (num_rows, 1, width, width)
    rule = create_mask(mask.mask_mod, num_rows, None, width, width, device="cpu")
    assert torch.equal(rule, expected)
    assert mask.BLOCK_SIZE == (128, 128)
    padded = torch.nn.functional.pad(expected, (0, -width % 128, 0, -width % 128))
    has_any = padded.unflatten(3, (-1, 128)).unflatten(2, (-1, 128)).any(dim=5).any(dim=3)
    assert torch.equal(mask.to_dense().bool(), has_any)


def test_without_layer_types_the_mask_is_a_tensor() -> None:
    mask = attention_inputs(given(ROWS), WIDTH, "sdpa")["attention_mask"]
    assert torch.equal(mask, torch.tensor(allowed(ROWS, WIDTH))[:, None])


def test_a_block_mask_travels_between_processes_and_devices() -> None:
    mask = attention_inputs(given(ROWS), WIDTH, "flex_attention")["attention_mask"]
    expected = torch.tensor(allowed(ROWS, WIDTH))[:, None]
    assert_blocks_equal(pickle.loads(pickle.dumps(mask)), expected)
    assert_blocks_equal(mask.to("cpu"), expected)
    away = mask.to("meta")
    assert away.mask_mod.segments.device.type == away.kv_indices.device.type == "meta"


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "unpadded"])
def test_implementations_without_masks_are_given_ends(name: str) -> None:
    inputs = attention_inputs(given([[3, 2], [8]]), 8, name, layer_windows={"local": 1})
    ends = torch.tensor([0, 3, 5, 8, 16], dtype=torch.int32)  # 5 to 8: padding
    assert inputs.keys() == {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    for which in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert inputs[which].dtype == torch.int32
        assert torch.equal(inputs[which], ends)
    assert inputs["max_length_q"] == inputs["max_length_k"] == 8


def test_an_unknown_implementation_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'spda' \(did you mean 'sdpa'\?\).*unpadded"):
        attention_inputs(given(ROWS), WIDTH, "spda")


@pytest.mark.parametrize("rows", [[], [[5, 4]]])
def test_rows_must_fit_the_batch(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="do not fit a batch 8 wide"):
        attention_inputs(given(rows), 8, "sdpa")
