"""Batches cut to a length: the tokens of every example, and what the model makes of them."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.curriculum import (
    CutRule,
    cut_packed,
    cut_rows,
    is_packed,
    is_told_apart,
    packed_examples,
    sequence_length,
)
from hf_tfopt.data.model_inputs import IGNORED, ModelFacts
from hf_tfopt.data.packing import pack
from hf_tfopt.data.pieces import reshaped
from hf_tfopt.data.segments import attention_inputs
from hf_tfopt.surgery.attention import unpadded_attention
from tests.data.test_collators import (
    SIZES,
    batch_of,
    examples,
    make_collator,
    make_model,
    make_tokenizer,
)
from tests.references.curriculum import plain_length, plain_pieces

PAD, SEP = 0, 3
MODES = pytest.mark.parametrize("is_reshaped", [False, True], ids=["truncate", "reshape"])


def test_the_length_grows_as_in_the_paper() -> None:
    # 64 to 512 over 100 steps, in steps of 8
    lengths = {step: sequence_length(step, 64, 512, 100) for step in (0, 1, 2, 50, 99, 100, 900)}
    assert lengths == {0: 64, 1: 64, 2: 72, 50: 288, 99: 504, 100: 512, 900: 512}
    for start, end, num_steps, multiple in ((20, 510, 7, 8), (8, 9, 3, 8), (2, 50, 100, 5)):
        found = [sequence_length(s, start, end, num_steps, multiple) for s in range(num_steps + 2)]
        arguments = (start, end, num_steps, multiple)
        assert found == [plain_length(step, *arguments) for step in range(num_steps + 2)]
        assert found[0] == start and found[-1] == end and found == sorted(found)


def padded(rows: list[list[int]], is_left: bool) -> dict[str, torch.Tensor]:
    """A batch of these rows with an entry of every kind; values tell rows and places apart."""
    width = max(map(len, rows)) + 2
    batch = {
        "input_ids": torch.full((len(rows), width), PAD),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.int32),
        "token_type_ids": torch.zeros(len(rows), width, dtype=torch.int64),
        "labels": torch.full((len(rows), width), IGNORED),
        "position_ids": torch.zeros(len(rows), width, dtype=torch.int64),
        "inputs_embeds": torch.zeros(len(rows), width, 2, dtype=torch.bfloat16),
    }
    for number, row in enumerate(rows):
        first = width - len(row) if is_left else 0
        places = slice(first, first + len(row))
        batch["input_ids"][number, places] = torch.tensor(row)
        batch["attention_mask"][number, places] = 1
        batch["token_type_ids"][number, places] = torch.arange(len(row)) % 2
        batch["labels"][number, places] = torch.tensor(row) + 1000
        batch["position_ids"][number, places] = torch.arange(len(row)) + 5
        batch["inputs_embeds"][number, places] = torch.tensor(row)[:, None].bfloat16()
    return batch


@MODES
@pytest.mark.parametrize("is_left", [False, True])
def test_rows_are_cut_like_the_obvious_loop(is_reshaped: bool, is_left: bool) -> None:
    rows = [[9, 8, 7, 6, 5, 4, SEP], [9, 8, SEP], [11, 12, 13, 14, 15, 16], [20], [30, 31, 32, 33]]
    batch, length = padded(rows, is_left), 4
    before = {name: value.clone() for name, value in batch.items()}
    new = cut_rows(batch, length, CutRule(is_reshaped, (SEP,), PAD))
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    pieces = [(row, p) for row in rows for p in plain_pieces(row, length, is_reshaped, (SEP,))]
    assert new["input_ids"].shape == (len(pieces), length)
    for number, (row, piece) in enumerate(pieces):
        fill = [PAD] * (length - len(piece))

        def side(values: list[int], fill: list[int]) -> list[int]:
            return fill + values if is_left else values + fill

        ids = [row[place] for place, _ in piece]
        expected = {
            "input_ids": side(ids, fill),
            "attention_mask": side([1] * len(piece), fill),
            "token_type_ids": side([p[not is_reshaped] % 2 for p in piece], fill),
            "labels": side([i + 1000 for i in ids], [IGNORED] * len(fill)),
            "position_ids": side([place + 5 for _, place in piece], fill),
        }
        for name, values in expected.items():
            assert new[name][number].tolist() == values, name
        assert new["inputs_embeds"][number, :, 1].tolist() == expected["input_ids"]
    assert all(new[name].dtype == batch[name].dtype for name in batch)


def test_what_is_not_by_token_stays_the_same_object() -> None:
    batch: dict[str, Any] = padded([[5, 6, 7, 8, 9], [5, 6]], False)
    width = batch["input_ids"].shape[1]
    kept = {"labels": torch.tensor([1, 0]), "task": torch.tensor([0, 1]), "names": ["a", "b"]}
    several = {"labels": torch.rand(2, width)}  # as many classes as tokens
    for extra in (kept, several):
        new = cut_rows(batch | extra, 3, CutRule(False))
        assert all(new[name] is value for name, value in extra.items())
        assert new["input_ids"].tolist() == [[5, 6, 7], [5, 6, PAD]]


def test_reshaped_rows_do_not_become_padding() -> None:
    """Of 512 tokens cut to 504 there are two halves, not a row of 8 tokens and 496 of padding."""
    for size, length, multiple, expected in (
        (512, 504, 8, [256, 256]),
        (512, 200, 8, [176, 176, 160]),
        (512, 200, 1, [171, 171, 170]),
        (9, 8, 8, [8, 1]),
        (8, 8, 8, [8]),
        (0, 8, 8, []),
    ):
        pieces = reshaped(np.array([3]), np.array([size]), length, multiple)
        assert pieces.sizes.tolist() == expected
        assert (pieces.begins == 3 + np.cumsum(expected) - expected).all()


def test_rows_without_a_mask_or_with_nothing_but_padding() -> None:
    ids = torch.arange(12).view(2, 6)
    assert cut_rows({"input_ids": ids}, 4, CutRule(False))["input_ids"].tolist() == [
        [0, 1, 2, 3],
        [6, 7, 8, 9],
    ]
    empty = padded([[5, 6, 7, 8, 9], [5]], False)
    empty["attention_mask"][1] = 0
    assert cut_rows(empty, 3, CutRule(False))["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert cut_rows(empty, 3, CutRule(True))["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    empty["attention_mask"][0] = 0
    assert cut_rows(empty, 3, CutRule(True))["attention_mask"].tolist() == [[0]]


def test_the_batch_tells_its_special_tokens_itself() -> None:
    batch = padded([[5, 6, 7, 8, 9]], False)
    batch["special_tokens_mask"] = torch.tensor([[1, 0, 0, 0, 1, 1, 1]])
    new = cut_rows(batch, 3, CutRule(False, (SEP,)))
    assert new["input_ids"].tolist() == [[5, 6, 9]]
    assert new["special_tokens_mask"].tolist() == [[1, 0, 1]]


def test_a_causal_model_has_no_target_at_the_first_token_of_a_piece() -> None:
    batch = padded([[5, 6, 7, 8, 9, 10], [11, 12, 13]], False)
    reshaped = cut_rows(batch, 4, CutRule(True, is_causal=True))["labels"]
    ignored = IGNORED
    assert reshaped.tolist() == [
        [ignored, 1006, 1007],
        [ignored, 1009, 1010],
        [ignored, 1012, 1013],
    ]
    assert cut_rows(batch, 4, CutRule(False, is_causal=True))["labels"][0, 0] == 1005


def test_pieces_of_rows_without_a_mask_do_not_see_the_padding_between_them() -> None:
    batch = {"input_ids": torch.arange(5, 15).view(1, 10), "labels": torch.ones(1, 10)}
    new = cut_rows(batch, 4, CutRule(True, multiple=4))
    assert new["attention_mask"].tolist() == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert "attention_mask" not in cut_rows(batch, 5, CutRule(True, multiple=5))


CASES = [
    *itertools.product(["bert"], ["sdpa", "eager", "unpadded"]),
    *itertools.product(["roberta", "modernbert", "llama"], ["sdpa", "unpadded"]),
]


def model_and_batch(name: str, implementation: str) -> tuple[Any, dict[str, Any], int]:
    """A model, packed rows as its collator makes them for it, and the token of their padding."""
    tokenizer, rows = make_tokenizer(int(name == "roberta")), pack(examples(9), 64)
    options: dict[str, Any] = {"pad_to_multiple_of": 16}
    if name != "llama":
        model = make_model(name, implementation)
        collator = make_collator(tokenizer, probability=0.3, model=model, **options)
        return model, batch_of(collator, rows), tokenizer.pad_token_id
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.set_attn_implementation("sdpa")
    if implementation == "unpadded":
        unpadded_attention(model)
    collator = CausalLMCollator(tokenizer, model=model, **options)
    return model, batch_of(collator, rows), tokenizer.pad_token_id


@MODES
@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_packed_examples_give_what_each_piece_gives_alone(
    name: str, implementation: str, is_reshaped: bool
) -> None:
    model, batch, pad_id = model_and_batch(name, implementation)
    facts, length = ModelFacts.of(model), 8
    rule = CutRule(is_reshaped, (SEP,), pad_id, name == "llama")
    before = cut_packed(batch, 64, rule, facts)
    assert before is batch
    assert is_packed(batch) and is_told_apart(batch, rule.pad_id, facts)
    new = cut_packed(batch, length, rule, facts)
    assert new.keys() == batch.keys() and is_told_apart(new, rule.pad_id, facts)
    model.set_attn_implementation("eager")  # alone: no mask, no padding
    with torch.no_grad():
        expected = [
            (ids, labels, model(torch.tensor([ids])).logits[0])
            for ids, labels in pieces_of(batch, rule, length)
        ]
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        logits = model(**{k: v for k, v in new.items() if k != "labels"}).logits
    found = list(by_example(new, rule.pad_id, logits))
    assert len(found) == len(expected) > 9 * is_reshaped
    for (ids, labels, alone), (new_ids, new_labels, together) in zip(expected, found, strict=True):
        assert ids == new_ids
        assert labels[rule.drops_firsts :] == new_labels[rule.drops_firsts :]
        assert not rule.drops_firsts or new_labels[0] == IGNORED
        # float32 kernels that add in other orders, through two layers
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@MODES
def test_flex_attention_is_told_what_sdpa_is(is_reshaped: bool) -> None:
    """Without the model, which torch would have to compile."""
    dataset, found = pack(examples(9), 64), []
    for implementation in ("flex_attention", "sdpa"):
        model = make_model("modernbert", implementation)
        facts, collator = ModelFacts.of(model), make_collator(make_tokenizer(), model=model)
        batch = batch_of(collator, dataset)
        assert is_told_apart(batch, PAD, facts)
        found.append(cut_packed(batch, 8, CutRule(is_reshaped, (SEP,)), facts))
    blocks, masks = (each.pop("attention_mask") for each in found)
    for name, mask in masks.items():
        num_rows, _, width, _ = mask.shape
        rule = create_mask(blocks[name].mask_mod, num_rows, None, width, width, device="cpu")
        assert torch.equal(rule, mask)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def by_example(batch: dict[str, Any], pad_id: int, *more: torch.Tensor):
    """(ids, labels, ...) of every example of a packed batch."""
    for row, lengths in enumerate(packed_examples(batch, pad_id)):
        for end, size in zip(np.cumsum(lengths), lengths, strict=True):
            places = slice(int(end - size), int(end))
            lists = (batch[name][row, places].tolist() for name in ("input_ids", "labels"))
            yield *lists, *(each[row, places] for each in more)


def pieces_of(batch: dict[str, Any], rule: CutRule, length: int):
    """(ids, labels) of every piece, by the obvious loop."""
    for ids, labels in by_example(batch, rule.pad_id):
        closing = () if rule.is_causal else rule.closing_ids  # it would learn to end there
        for piece in plain_pieces(ids, length, rule.is_reshaped, closing):
            yield [ids[place] for place, _ in piece], [labels[place] for place, _ in piece]


def flattened(rows: list[list[int]]) -> dict[str, Any]:
    """As the host's DataCollatorWithFlattening makes it."""
    ends = torch.tensor([0, *np.cumsum([len(row) for row in rows]).tolist()], dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[i for row in rows for i in row]]),
        "labels": torch.tensor([[i for row in rows for i in (IGNORED, *row[1:])]]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(row))]]),
        "seq_idx": torch.tensor([[n for n, row in enumerate(rows) for _ in row]]).int(),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(map(len, rows)),
        "max_length_k": max(map(len, rows)),
    }


def test_a_flattened_batch_of_the_host() -> None:
    facts = ModelFacts.of(make_model("bert", "unpadded"))
    batch = flattened([[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15]])
    assert is_told_apart(batch, PAD, facts)
    new = cut_packed(batch, 3, CutRule(True, is_causal=True), facts)
    none = IGNORED
    assert new["input_ids"].tolist() == batch["input_ids"].tolist()
    assert new["labels"].tolist() == [[none, 6, 7, none, 9, none, 11, none, 13, none, 15]]
    assert new["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 0, 1, 0, 1]]
    assert new["seq_idx"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]
    assert new["cu_seq_lens_q"].tolist() == [0, 3, 5, 7, 9, 11]
    assert new["max_length_q"] == 3 and new["seq_idx"].dtype == torch.int32
    batch["example_starts"] = torch.tensor([7, 0, 5])  # in an order of their own
    short = cut_packed(batch, 3, CutRule(False, (9,)), facts)
    assert short["example_starts"].tolist() == [5, 0, 3]
    assert short["input_ids"].tolist() == [[5, 6, 9, 10, 11, 12, 13, 14]]
    assert short["cu_seq_lens_k"].tolist() == [0, 3, 5, 8]


def test_padding_is_known_by_its_place_and_another_mask_by_its_values() -> None:
    """A document may end in the padding token; padding may have one position throughout."""
    facts = ModelFacts.of(make_model("bert", "sdpa"))
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([[5, 6, PAD, 7, PAD, PAD, PAD], [5, 6, 7, 8, 9, 10, PAD]]),
        "labels": torch.tensor([[5, 6, PAD, 7, PAD, -100, -100], [5, 6, 7, 8, 9, 10, PAD]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]]),
    }
    assert is_packed(batch)
    assert [row.tolist() for row in packed_examples(batch, PAD)] == [[3, 2], [7]]
    new = cut_packed(batch, 2, CutRule(False, (PAD,)), facts)
    assert new["input_ids"].tolist() == [[5, PAD, 7, PAD], [5, PAD, PAD, PAD]]
    assert new["labels"].tolist() == [[5, PAD, 7, PAD], [5, PAD, -100, -100]]
    assert new["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    starts = {"example_starts": torch.tensor([7, 0, 3])}
    assert cut_packed(batch | starts, 2, CutRule(False), facts)["example_starts"].tolist() == [
        4,
        0,
        2,
    ]
    mask = attention_inputs([np.array([3, 2]), np.array([7])], 7, "sdpa")["attention_mask"]
    assert is_told_apart(batch | {"attention_mask": mask}, PAD, facts)
    assert not is_told_apart(batch | {"attention_mask": mask.tril()}, PAD, facts)
    assert not is_told_apart(flattened([[5, 6], [7]]), PAD, facts)
