"""CausalLMCollator: in every form of batch a document gives what it gives alone."""

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
)

import hf_tfopt as tfo
from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.surgery.attention import unpadded_attention
from tests.callbacks.runs import num_hooks, weights_of
from tests.data.test_collators import NUM_IDS, make_tokenizer
from tests.models import tiny
from tests.test_trainer import arguments, losses

LONGEST, ROW = 24, 40
EXACT = {"rtol": 1e-9, "atol": 1e-9}
SHORT = {"vocab_size": NUM_IDS, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {
    **SHORT,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# Windows of 5 are shorter than most documents, positions fewer than a row has tokens.
MODELS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**SHORT, n_embd=32, n_layer=2, n_head=2, n_positions=32, **NO_DROPOUT)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SIZES,
            head_dim=16,
            sliding_window=5,
            use_sliding_window=True,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}
# What would mix documents, and what is said of it.
MIXING: dict[str, tuple[Any, str]] = {
    "positions from the mask": (
        lambda: BloomForCausalLM(BloomConfig(**SHORT, hidden_size=32, n_layer=1, n_head=2)),
        "its forward takes no position_ids",
    ),
    "a state over the row": (
        lambda: JambaForCausalLM(
            JambaConfig(
                **SIZES,
                attn_layer_period=2,
                attn_layer_offset=1,
                num_experts=2,
                use_mamba_kernels=False,
            )
        ),
        "depends on its neighbours",
    ),
    "a mask of its own": (  # it makes a mask of ones before the host looks at position ids
        lambda: OPTForCausalLM(
            OPTConfig(
                **SHORT,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                ffn_dim=48,
                word_embed_proj_dim=32,
            )
        ),
        "depends on its neighbours",
    ),
}


def make_model(name: str, implementation: str = "sdpa") -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # so that attention and positions weigh in
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    if implementation == "unpadded":
        return unpadded_attention(model)
    model.set_attn_implementation(implementation)
    return model


def documents(num: int = 14, seed: int = 0) -> datasets.Dataset:
    """Of 1 to 24 tokens; two at least have but one."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    lengths = [1, 1, LONGEST, *rng.integers(2, LONGEST, num - 3)]
    return datasets.Dataset.from_dict(
        {"input_ids": [rng.integers(5, NUM_IDS, length).tolist() for length in lengths]}
    )


def batch_of(collator: Any, dataset: datasets.Dataset) -> dict[str, Any]:
    return collator(ArrowRows(dataset).__getitems__(list(range(len(dataset)))))


def alone(model: Any, dataset: datasets.Dataset) -> dict[tuple[int, ...], torch.Tensor]:
    """The logits of every document in a batch of its own."""
    found = {}
    for row in dataset:
        ids = torch.tensor(row["input_ids"])
        found[tuple(row["input_ids"])] = model(input_ids=ids[None], use_cache=False).logits[0]
    return found


def cut(batch: dict[str, Any], logits: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
    """The logits of every document of a batch, by the batch's positions or its mask."""
    found = {}
    for row, ids in enumerate(batch["input_ids"].tolist()):
        positions = batch.get("position_ids")
        if positions is None:
            bounds = [0, int(batch["attention_mask"][row].sum())]
        else:
            starts = (positions[row] == 0).nonzero().flatten().tolist()
            bounds = [*starts, len(ids)]
        for start, end in pairwise(bounds):
            found[tuple(ids[start:end])] = logits[row, start:end]
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("implementation", "is_packed"),
    [("sdpa", False), ("unpadded", False), ("sdpa", True), ("eager", True), ("unpadded", True)],
)
def test_logits_loss_and_gradients_are_those_of_documents_alone(
    name: str, implementation: str, is_packed: bool
) -> None:
    """In float64, so that 1e-9 leaves room for the order of sums only; eager's softmax is fp32."""
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if implementation == "eager" else EXACT
    model, dataset = make_model(name, implementation).double(), documents()
    collator = CausalLMCollator(make_tokenizer(), model=model)
    batch = batch_of(collator, pack(dataset, ROW) if is_packed else dataset)
    own = alone(model, dataset)
    targets = [(v[:-1], torch.tensor(ids[1:])) for ids, v in own.items() if len(ids) > 1]
    expected = sum(cross_entropy(v, t, reduction="sum") for v, t in targets)
    num_targets = sum(len(ids) - 1 for ids in dataset["input_ids"])
    (expected / num_targets).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    labels = batch.pop("labels")[:, 1:]  # the host's own loss is in float32
    logits = model(**batch).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    loss.backward()
    assert int((labels != -100).sum()) == num_targets
    torch.testing.assert_close(loss, expected / num_targets, **tolerance)
    found = cut(batch, logits)
    for ids, logits in own.items():
        torch.testing.assert_close(found[ids], logits, **tolerance)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **tolerance)


def test_without_its_options_the_host_mixes_documents() -> None:
    """Position ids beside a mask or a cache are not looked at: why a batch says so."""
    model, dataset = make_model("llama"), documents()
    batch = batch_of(CausalLMCollator(make_tokenizer(), model=model), pack(dataset, ROW))
    right = model(**batch).loss
    for wrong in (
        {**batch, "use_cache": True},
        {**batch, "attention_mask": torch.ones_like(batch["input_ids"])},
    ):
        assert abs(model(**wrong).loss - right) > 1e-3


def test_a_batch_by_hand() -> None:
    model = make_model("gpt2")
    collator = CausalLMCollator(make_tokenizer(), model=model, pad_to_multiple_of=4)
    rows = [
        {"input_ids": [7, 8, 9, 10, 11], "position_ids": [0, 1, 0, 0, 1]},
        {"input_ids": [12, 0], "position_ids": [0, 1]},  # 0, the padding token, is a target here
    ]
    packed = collator(rows)
    assert packed.pop("use_cache") is False
    assert {name: value.tolist() for name, value in packed.items()} == {
        "input_ids": [[7, 8, 9, 10, 11, 0, 0, 0], [12, 0, 0, 0, 0, 0, 0, 0]],
        "labels": [[-100, 8, -100, -100, 11, -100, -100, -100], [-100, 0, *[-100] * 6]],
        "position_ids": [[0, 1, 0, 0, 1, 0, 0, 0], [0, 1, *[0] * 6]],
    }
    plain = collator([{"input_ids": [5, 6, 0]}, {"input_ids": []}, {"input_ids": [9]}])
    assert {name: value.tolist() for name, value in plain.items()} == {
        "input_ids": [[5, 6, 0, 0], [0] * 4, [9, 0, 0, 0]],
        "labels": [[-100, 6, 0, -100], [-100] * 4, [-100] * 4],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
    }
    unpadded = CausalLMCollator(
        make_tokenizer(), model=make_model("llama", "unpadded"), pad_to_multiple_of=4
    )
    joined = unpadded([{"input_ids": [5, 6, 7]}, {"input_ids": []}, {"input_ids": [8, 9]}])
    assert joined["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert joined["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100, -100]]
    assert joined["cu_seq_lens_q"].tolist() == [0, 3, 5, 8]
    assert unpadded(rows)["cu_seq_lens_k"].tolist() == [0, 2, 3, 5, 8, 10, 16]


@pytest.mark.parametrize("is_packed", [False, True])
def test_labels_of_the_rows_are_taken_along(is_packed: bool) -> None:
    """Prompts are not targets; a row without labels, of another task, has all its tokens."""
    dataset = documents()
    labels = [[-100] * (len(ids) // 2) + ids[len(ids) // 2 :] for ids in dataset["input_ids"]]
    labelled = dataset.add_column("labels", labels)
    collator = CausalLMCollator(make_tokenizer(), model=make_model("llama"))
    rows = pack(labelled, ROW, columns=["labels"]) if is_packed else labelled
    expected = sum(label != -100 for row in labels for label in row[1:])
    for given in (ArrowRows(rows).__getitems__(list(range(len(rows)))), list(rows)):
        batch = collator(given)
        is_target = batch["labels"] != -100
        assert int(is_target.sum()) == expected
        assert torch.equal(batch["labels"][is_target], batch["input_ids"][is_target])
    every = CausalLMCollator(make_tokenizer(), model=make_model("llama"), labels=None)(list(rows))
    assert int((every["labels"] != -100).sum()) == sum(len(row) - 1 for row in labels)
    mixed = collator([{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6, 7], "labels": [5, -100, 7]}])
    assert mixed["labels"].tolist() == [[-100, 6, 7], [-100, -100, 7]]


@pytest.mark.parametrize("name", MIXING)
def test_models_that_mix_documents_are_found_out(name: str) -> None:
    """They train on padded rows, and packed ones are refused before the first step."""
    build, message = MIXING[name]
    torch.manual_seed(0)
    model, dataset = build(), documents()
    collator = CausalLMCollator(make_tokenizer(), model=model)
    assert "position_ids" not in batch_of(collator, dataset)
    with pytest.raises(ValueError, match=f"would mix the documents of packed rows: .*{message}"):
        batch_of(collator, pack(dataset, ROW))


@pytest.mark.parametrize(
    ("name", "message"),
    [("bert", "sees the tokens that it is to guess: it is not a causal"), ("t5", "is an encoder")],
)
def test_models_that_are_not_causal(name: str, message: str) -> None:
    model = tiny(name)
    model.resize_token_embeddings(NUM_IDS)
    with pytest.raises(ValueError, match=message):
        CausalLMCollator(make_tokenizer(), model=model)


@pytest.mark.parametrize("kind", ["bfloat16", "adapters"])
def test_half_precision_and_adapters_are_tried_out_too(kind: str) -> None:
    model = make_model("llama")
    if kind == "bfloat16":
        model = model.bfloat16()
    else:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    rows = pack(documents(), ROW)
    assert "position_ids" in batch_of(CausalLMCollator(make_tokenizer(), model=model), rows)


def test_trying_out_leaves_no_trace() -> None:
    model = make_model("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, hooks = torch.get_rng_state(), num_hooks(model)
    CausalLMCollator(make_tokenizer(), model=model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random) and num_hooks(model) == hooks


def test_an_attention_switched_since_is_noticed() -> None:
    model, rows = make_model("llama"), pack(documents(), ROW)
    collator = CausalLMCollator(make_tokenizer(), model=model)
    unpadded_attention(model)
    with pytest.raises(ValueError, match=r"was 'sdpa' .* is 'unpadded' now: call collator.bind"):
        batch_of(collator, rows)
    collator.bind(model)
    assert "cu_seq_lens_q" in batch_of(collator, rows)


def test_an_attention_that_cannot_be_tried_out_here() -> None:
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    collator = CausalLMCollator(make_tokenizer(), model=model)
    assert "attention_mask" in batch_of(collator, documents())
    with pytest.raises(ValueError, match="trains on a GPU only"):
        batch_of(collator, pack(documents(), ROW))


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "padded": (
        [{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}],
        "tokenize with padding=False",
    ),
    "some packed": (
        [{"input_ids": [5, 6]}, {"input_ids": [5], "position_ids": [0]}],
        "row 0 of a batch has no position_ids",
    ),
    "a class as labels": ([{"input_ids": [5, 6], "labels": 1}], "not one number for each token"),
    "labels of fractions": ([{"input_ids": [5, 6], "labels": [5.7, 6.2]}], "not one number for"),
    "labels of fractions in a mixture": (
        [{"input_ids": [5]}, {"input_ids": [5, 6], "labels": [5.7, 6.2]}],
        "not one number for",
    ),
    "labels of other tokens": ([{"input_ids": [5, 6], "labels": [5]}], r"\[1\] labels for \[2\]"),
    "a label out of range": ([{"input_ids": [5, 6], "labels": [5, -1]}], "label -1 in column"),
    "another tokenizer": ([{"input_ids": [5, NUM_IDS]}], "none of the tokenizer's"),
    "nothing": ([{"input_ids": []}], "every row of this batch is empty"),
    "too long": ([{"input_ids": [5] * 33}], "33 tokens does not fit the 32 positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_right(case: str) -> None:
    rows, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        CausalLMCollator(make_tokenizer(), model=make_model("llama"))(rows)


def test_packed_rows_need_a_model_and_options_are_checked() -> None:
    with pytest.raises(ValueError, match="pass model="):
        batch_of(CausalLMCollator(make_tokenizer()), pack(documents(), ROW))
    with pytest.raises(ValueError, match="pad_to_multiple_of is 0"):
        CausalLMCollator(make_tokenizer(), pad_to_multiple_of=0)
    small = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 50}))
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        CausalLMCollator(make_tokenizer(), model=small)


def test_workers_give_the_same_batches() -> None:
    rows = ArrowRows(pack(documents(40), ROW))
    collator = CausalLMCollator(make_tokenizer(), model=make_model("mistral", "unpadded"))
    again = pickle.loads(pickle.dumps(collator))
    options: dict[str, Any] = {"batch_size": 3, "collate_fn": collator}
    for one, two in zip(
        DataLoader(rows, **options), DataLoader(rows, num_workers=2, **options), strict=True
    ):
        assert str(one) == str(two)
    assert str(again(rows.__getitems__([0, 1]))) == str(collator(rows.__getitems__([0, 1])))


def make_trainer(folder: Path, rows: Any, how: str = "tfopt", **options: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 40,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "optim": "sgd",
        **options,
    }
    model = make_model("llama", options.pop("implementation", "sdpa"))
    settings.pop("implementation", None)
    data = {
        "data_collator": CausalLMCollator(make_tokenizer()),
        "train_dataset": rows,
        "eval_dataset": rows,
    }
    args = arguments(folder, **settings)
    if how == "tfopt":
        return tfo.TfoptTrainer(model, args, objective=tfo.LanguageModeling(), **data)
    return tfo.attach(Trainer(model, args, **data))


@pytest.mark.parametrize("how", ["tfopt", "attach"])
@pytest.mark.parametrize("implementation", ["sdpa", "unpadded"])
def test_training_packed_is_training_unpacked(
    how: str, implementation: str, tmp_path: Path
) -> None:
    """Loss per token, weights, evaluation; the packed rows in two micro-batches. Order of sums."""
    dataset = documents(20)
    packed = pack(dataset, ROW)
    plain = make_trainer(tmp_path, dataset, how)
    plain.train()
    size = (len(packed) + 1) // 2
    trainer = make_trainer(
        tmp_path,
        ArrowRows(packed),
        how,
        implementation=implementation,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-5)
    assert losses(plain)[-1] < losses(plain)[0]
    torch.testing.assert_close(
        weights_of(trainer.model), weights_of(plain.model), rtol=1e-4, atol=1e-5
    )
    if how == "tfopt":
        scores = [each.evaluate()["eval_loss"] for each in (trainer, plain)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_position_ids_are_not_taken_out_unnoticed(tmp_path: Path) -> None:
    """As the host does with columns that a model does not take: rows would look unpacked."""
    model, packed = MIXING["positions from the mask"][0](), pack(documents(), ROW)
    data = {"train_dataset": packed, "data_collator": CausalLMCollator(make_tokenizer())}
    with pytest.raises(ValueError, match="packed, and BloomForCausalLM takes no position_ids"):
        tfo.TfoptTrainer(model, arguments(tmp_path), **data)
    data |= {"train_dataset": documents(), "eval_dataset": packed}
    for evaluated in (packed, {"one": documents(), "two": packed}):
        with pytest.raises(ValueError, match="evaluation rows are packed, and BloomForCausalLM"):
            tfo.TfoptTrainer(model, arguments(tmp_path), **data | {"eval_dataset": evaluated})


@pytest.mark.invariant
def test_resuming_is_never_having_stopped(tmp_path: Path) -> None:
    rows = ArrowRows(pack(documents(60), ROW))
    options: dict[str, Any] = {
        "implementation": "unpadded",
        "per_device_train_batch_size": 3,
        "optim": "adamw_torch",
        "num_train_epochs": 2,
        "max_steps": -1,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    whole = make_trainer(tmp_path, rows, **options)
    whole.train()
    checkpoint = tmp_path / "checkpoint-5"
    assert whole.state.max_steps == 14, "else it may not be the middle of an epoch"
    resumed = make_trainer(tmp_path, rows, dataloader_num_workers=2, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))
