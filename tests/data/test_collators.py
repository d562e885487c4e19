"""MaskedLMCollator: every form of batch holds the same examples with the same masks."""

import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_tfopt.data import COLLATORS
from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.classification_collator import ClassificationCollator
from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.data.masking_rule import UNITS, linear_rate
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.surgery.attention import unpadded_attention

NUM_IDS, WIDTH = 200, 64
SIZES = {
    "vocab_size": NUM_IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": WIDTH,
    "pad_token_id": 0,
}
MODELS: dict[str, Any] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(
        RobertaConfig(**SIZES | {"pad_token_id": 1, "max_position_embeddings": WIDTH + 2})
    ),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=32)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=NUM_IDS,
            dim=32,
            n_layers=2,
            n_heads=2,
            hidden_dim=48,
            pad_token_id=0,
            max_position_embeddings=WIDTH,
        )
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SIZES, local_attention=8, global_attn_every_n_layers=2)
    ),
}


def make_collator(*arguments: Any, **options: Any) -> MaskedLMCollator:
    """One that was told its epoch, so that it does not wonder about examples that come again."""
    collator = MaskedLMCollator(*arguments, **options)
    collator.set_epoch(0)
    return collator


def make_tokenizer(pad_id: int = 0, **changes: Any) -> Any:
    """[PAD] [UNK] [CLS] [SEP] [MASK], then words and pieces of words (every third)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    special[0], special[pad_id] = special[pad_id], special[0]
    words = [f"##p{i}" if i % 3 == 0 else f"w{i}" for i in range(5, NUM_IDS)]
    vocabulary = {token: i for i, token in enumerate([*special, *words])}
    names = {f"{t[1:-1].lower()}_token": t for t in special} | changes
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **names)


def examples(num: int = 12, longest: int = 30, seed: int = 0) -> datasets.Dataset:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    rows = [rng.integers(5, NUM_IDS, n).tolist() for n in rng.integers(3, longest, num)]
    return datasets.Dataset.from_dict({"input_ids": [[2, *row, 3] for row in rows]})


def batch_of(collator: Any, dataset: datasets.Dataset) -> dict[str, Any]:
    return collator(ArrowRows(dataset).__getitems__(list(range(len(dataset)))))


def make_model(name: str, implementation: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if implementation == "unpadded":
        return unpadded_attention(model)
    model.set_attn_implementation(implementation)
    return model


def real(batch: dict[str, Any], dataset: datasets.Dataset) -> list[tuple[list[int], list[int]]]:
    """What the model sees and the labels, example by example; sorted, padding left out."""
    ids, labels = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist()
    if "attention_mask" in batch and batch["attention_mask"].dim() == 2:
        seen = batch["attention_mask"].flatten().tolist()
        pairs = [(i, t) for i, t, s in zip(ids, labels, seen, strict=True) if s]
    else:
        pairs = list(zip(ids, labels, strict=True))
    found, row = [], []
    for pair in pairs:
        if pair[0] == 2:
            row = [pair]
        elif row:
            row.append(pair)
            if pair[0] == 3:
                found.append(tuple(zip(*row, strict=True)))
                row = []
    assert len(found) == len(dataset)
    return sorted(found)


@pytest.mark.parametrize("unit", UNITS)
def test_rows_of_lists_and_of_arrow_give_the_same_batch(unit: str) -> None:
    dataset, collator = examples(), make_collator(make_tokenizer(), unit)
    arrow = batch_of(collator, dataset)
    for rows in (
        list(dataset),
        list(dataset.with_format("torch")),
        list(dataset.with_format("np")),
    ):
        batch = collator(rows)
        assert batch.keys() == arrow.keys() == {"input_ids", "labels", "attention_mask"}
        for name, value in batch.items():
            assert torch.equal(value, arrow[name])
            assert value.dtype == torch.int64


def test_a_padded_batch() -> None:
    dataset = examples()
    batch = batch_of(make_collator(make_tokenizer(), "word", 0.3), dataset)
    lengths = [len(row) for row in dataset["input_ids"]]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"].shape == (len(dataset), max(lengths))
    targets = batch["labels"] != -100
    assert not targets[batch["attention_mask"] == 0].any()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    for row, ids in enumerate(dataset["input_ids"]):
        seen = torch.where(targets, batch["labels"], batch["input_ids"])[row, : len(ids)]
        assert seen.tolist() == ids
        assert targets[row].any()


def test_seed_and_epoch() -> None:
    dataset = examples()

    def labels(seed: int, epoch: int | None) -> Any:
        collator = MaskedLMCollator(make_tokenizer(), seed=seed)
        if epoch is not None:
            collator.set_epoch(epoch)
        return batch_of(collator, dataset)["labels"]

    assert torch.equal(labels(0, None), labels(0, 0))
    assert torch.equal(labels(3, 2), labels(3, 2))
    assert not torch.equal(labels(0, 0), labels(0, 1))
    assert not torch.equal(labels(0, 0), labels(1, 0))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("form", ["shuffled", "padded wider", "in one row", "packed"])
def test_the_form_of_the_batch_does_not_change_a_mask(unit: str, form: str) -> None:
    dataset, tokenizer = examples(), make_tokenizer()
    expected = real(batch_of(make_collator(tokenizer, unit), dataset), dataset)
    options: dict[str, Any] = {}
    rows = dataset
    if form == "shuffled":
        rows = dataset.shuffle(seed=1)
    elif form == "padded wider":
        options["pad_to_multiple_of"] = 64
    else:
        options["model"] = make_model("bert", "unpadded")
        rows = pack(dataset, WIDTH) if form == "packed" else dataset
    batch = batch_of(make_collator(tokenizer, unit, **options), rows)
    assert (batch["input_ids"].shape[0] == 1) == (form == "in one row")
    assert real(batch, dataset) == expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "unpadded"])
def test_the_loss_is_that_of_the_examples_alone(name: str, implementation: str) -> None:
    """Padded, in one row, packed: the same targets in the same company, so the same summed loss.

    Equal to 1e-5 relative: fp32 sums over 30 positions in another order.
    """
    dataset = examples()
    tokenizer = make_tokenizer(pad_id=1 if name == "roberta" else 0)
    alone = make_collator(tokenizer, "word", 0.3)
    expected = sum(summed_loss(make_model(name, "sdpa"), alone([row])) for row in dataset)
    model = make_model(name, implementation)
    collator = make_collator(tokenizer, "word", 0.3, model=model)
    for rows in (dataset, pack(dataset, WIDTH)):
        batch = batch_of(collator, rows)
        assert summed_loss(model, batch) == pytest.approx(expected, rel=1e-5)


def summed_loss(model: Any, batch: dict[str, Any]) -> float:
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum"
    )
    return loss.item()


def test_a_batch_in_one_row() -> None:
    dataset, model = examples(5), make_model("roberta", "unpadded")
    collator = make_collator(make_tokenizer(pad_id=1), model=model, pad_to_multiple_of=8)
    batch = batch_of(collator, dataset)
    lengths = [len(row) for row in dataset["input_ids"]]
    total = -(-sum(lengths) // 8) * 8
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, total)
    ends = np.cumsum([0, *lengths, *([total - sum(lengths)] if total > sum(lengths) else [])])
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == ends.tolist()
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == max(lengths)
    # RoBERTa numbers positions from padding_idx + 1
    positions = [2 + j for n in np.diff(ends) for j in range(n)]
    assert batch["position_ids"][0].tolist() == positions
    assert "attention_mask" not in batch


def test_token_types_go_along_if_the_model_takes_them() -> None:
    dataset = examples(4)
    types = [[0, *[1] * (len(row) - 1)] for row in dataset["input_ids"]]
    dataset = dataset.add_column("token_type_ids", types)
    tokenizer = make_tokenizer()
    padded = batch_of(make_collator(tokenizer), dataset)["token_type_ids"]
    assert padded.sum(1).tolist() == [sum(row) for row in types]
    flat = batch_of(make_collator(tokenizer, model=make_model("bert", "unpadded")), dataset)
    assert flat["token_type_ids"][0].tolist() == [t for row in types for t in row]
    without = make_collator(tokenizer, model=make_model("distilbert", "sdpa"))
    assert "token_type_ids" not in batch_of(without, dataset)


def test_a_wrapped_model_takes_what_it_takes_alone() -> None:
    model = BertForPreTraining(BertConfig(**SIZES))
    rows = [{"input_ids": [2, 7, 3], "token_type_ids": [0] * 3, "next_sentence_label": 1}]
    compiled = torch.compile(model, backend="eager")
    for wrapped in (compiled, nn.DataParallel(compiled)):
        batch = make_collator(make_tokenizer(), model=wrapped)(rows)
        assert {"token_type_ids", "next_sentence_label"} < set(batch)
    model.forward = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match=r"takes args, kwargs, and no input_ids: .* a wrapper"):
        make_collator(make_tokenizer(), model=model)


def test_rows_without_padding_are_not_cut_among_gpus_of_one_process() -> None:
    args: Any = SimpleNamespace(n_gpu=2)
    nothing: Any = None
    causal = LlamaForCausalLM(LlamaConfig(**SIZES))
    for make, plain in ((MaskedLMCollator, make_model("bert", "sdpa")), (CausalLMCollator, causal)):
        make(make_tokenizer()).on_init_end(args, nothing, nothing, model=plain)
        with pytest.raises(ValueError, match=r"2 GPUs in one process .* torchrun"):
            joined = unpadded_attention(plain)
            make(make_tokenizer()).on_init_end(args, nothing, nothing, model=joined)
    with pytest.raises(ValueError, match=r"2 GPUs in one process .* torchrun"):
        ClassificationCollator(make_tokenizer()).on_init_end(args, nothing, nothing)


def test_rows_of_pairs_beside_rows_without_their_label() -> None:
    pair, single = {"input_ids": [2, 7, 3], "next_sentence_label": 1}, {"input_ids": [2, 7, 3]}
    collator = make_collator(make_tokenizer())
    assert collator([pair, pair])["next_sentence_label"].tolist() == [1, 1]
    for rows in ([single, pair], [pair | {"next_sentence_label": None}, pair]):
        with pytest.raises(ValueError, match="row 0 of a batch has no next_sentence_label"):
            collator(rows)


def test_word_ids_in_the_rows_win_over_the_tables() -> None:
    """One word from first to last token: all of it is chosen, or a single word of the tables."""
    dataset = examples(30)
    ids = [[None, *[0] * (len(row) - 2), None] for row in dataset["input_ids"]]
    dataset = dataset.add_column("word_ids", ids)
    collator = make_collator(make_tokenizer(), "word")
    for batch in (batch_of(collator, dataset), collator(list(dataset))):
        chosen = (batch["labels"] != -100).sum(1)
        assert chosen.tolist() == [len(row) - 2 for row in ids]
        assert "word_ids" not in batch


def test_a_batch_without_targets_is_a_batch() -> None:
    batch = make_collator(make_tokenizer())([{"input_ids": [2, 3]}, {"input_ids": [2, 1, 3]}])
    assert (batch["labels"] == -100).all()


def test_a_rate_by_epoch() -> None:
    dataset = examples(100)
    collator = make_collator(make_tokenizer(), probability=linear_rate(0.6, 0.2, 3))
    shares = []
    for epoch in range(3):
        collator.set_epoch(epoch)
        batch = batch_of(collator, dataset)
        shares.append(
            ((batch["labels"] != -100).sum() / (batch["attention_mask"].sum() - 200)).item()
        )
    # 1500 tokens: three standard deviations are 0.04
    assert shares == pytest.approx([0.6, 0.4, 0.2], abs=0.04)


def test_a_copy_gives_the_same_batches() -> None:
    dataset = examples()
    collator = make_collator(make_tokenizer(), "word", model=make_model("bert", "unpadded"))
    collator.set_epoch(3)
    copy = pickle.loads(pickle.dumps(collator))
    first, second = batch_of(collator, dataset), batch_of(copy, dataset)
    assert torch.equal(first["labels"], second["labels"])


def test_it_says_when_the_same_masks_come_again() -> None:
    dataset = examples(20)
    collator = MaskedLMCollator(make_tokenizer())
    batch_of(collator, dataset)
    with pytest.warns(UserWarning, match=r"right for evaluation; for training pass callbacks="):
        batch_of(collator, dataset.shuffle(seed=1))
    batch_of(collator, dataset)  # once
    told = MaskedLMCollator(make_tokenizer())
    told.set_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            batch_of(told, dataset)


def test_it_is_in_the_table() -> None:
    collator = COLLATORS.build("masked_lm", make_tokenizer(), unit="span")
    assert isinstance(collator, MaskedLMCollator)


def packed_rows() -> datasets.Dataset:
    return pack(examples(), WIDTH)


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown unit": (
        lambda: MaskedLMCollator(make_tokenizer(), "tokens"),
        "unknown unit 'tokens' .did you mean 'token'",
    ),
    "rate": (lambda: MaskedLMCollator(make_tokenizer(), probability=15), "probability is 15"),
    "rate of the first epoch": (
        lambda: MaskedLMCollator(make_tokenizer(), probability=lambda epoch: epoch),
        "probability is 0",
    ),
    "evaluation rate": (
        lambda: MaskedLMCollator(make_tokenizer(), eval_probability=1.0),
        "probability is 1.0",
    ),
    "width": (
        lambda: MaskedLMCollator(make_tokenizer(), pad_to_multiple_of=0),
        "pad_to_multiple_of is 0",
    ),
    "no mask token": (
        lambda: MaskedLMCollator(make_tokenizer(mask_token=None)),
        "has no mask token, which masked language modelling needs",
    ),
    "no padding token": (
        lambda: MaskedLMCollator(make_tokenizer(pad_token=None)),
        "has no pad token",
    ),
    "embedding too small": (
        lambda: MaskedLMCollator(
            make_tokenizer(), model=BertForMaskedLM(BertConfig(**SIZES | {"vocab_size": 150}))
        ),
        r"200 ids, .* only 150: call model\.resize_token_embeddings\(200\)",
    ),
    "ids of another tokenizer": (
        lambda: MaskedLMCollator(make_tokenizer())([{"input_ids": [2, 5, 200]}]),
        "token id 200 is none of the tokenizer's 200",
    ),
    "negative ids": (
        lambda: MaskedLMCollator(make_tokenizer())([{"input_ids": [2, -100]}]),
        "token id -100 is none",
    ),
    "empty rows": (
        lambda: MaskedLMCollator(make_tokenizer())([{"input_ids": []}]),
        "every row of this batch is empty",
    ),
    "text": (
        lambda: MaskedLMCollator(make_tokenizer())([{"text": "a"}]),
        r"the columns \['text'\] but no input_ids: tokenize first",
    ),
    "row too long": (
        lambda: batch_of(
            MaskedLMCollator(make_tokenizer(1), model=make_model("roberta", "sdpa")),
            examples(3, longest=200),
        ),
        "does not fit the 64 positions of RobertaForMaskedLM: tokenize with max_length=64",
    ),
    "packed without a model": (
        lambda: batch_of(MaskedLMCollator(make_tokenizer()), packed_rows()),
        "rows are packed .* pass model=",
    ),
    "packed for a model that mixes": (
        lambda: batch_of(
            MaskedLMCollator(
                make_tokenizer(), model=DebertaV2ForMaskedLM(DebertaV2Config(**SIZES))
            ),
            packed_rows(),
        ),
        "DebertaV2ForMaskedLM has an attention of its own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    wrong, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        wrong()
