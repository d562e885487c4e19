"""Heads that read the first token of every packed example: tried, refused, copied, saved."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.surgery import packed_heads
from hf_tfopt.surgery.packed_heads import LENGTHS, STARTS, packed_classification

NUM_CLASSES = 3
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MODERN = {k: v for k, v in SIZES.items() if "prob" not in k} | {
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
}
DISTIL = {
    "vocab_size": 200,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
CLASSIFIERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertForSequenceClassification, BertConfig, SIZES),
    "roberta": (
        RobertaForSequenceClassification,
        RobertaConfig,
        SIZES | {"max_position_embeddings": 34},
    ),
    "electra": (ElectraForSequenceClassification, ElectraConfig, SIZES | {"embedding_size": 16}),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig, DISTIL),
    "albert": (
        AlbertForSequenceClassification,
        AlbertConfig,
        SIZES | {"embedding_size": 16, "classifier_dropout_prob": 0.0},
    ),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig,
        MODERN | {"classifier_pooling": "cls"},
    ),
}


def classifier(name: str = "bert", seed: int = 0, *, kind: Any = None, **options: Any) -> Any:
    """A tiny model of that name, of another class if `kind` says so."""
    own, config, sizes = CLASSIFIERS[name]
    torch.manual_seed(seed)
    return (kind or own)(config(**sizes | {"num_labels": NUM_CLASSES} | options))


def starts_and_ends() -> dict[str, Any]:
    """Three examples in one row, and where they begin."""
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    ends = {name: bounds.int() for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    return {"position_ids": positions, STARTS: bounds[:-1], **ends}


def num_hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


REFUSED: dict[str, tuple[Any, str]] = {
    "mean of all positions": (
        lambda: classifier("modernbert", classifier_pooling="mean"),
        "logits that differ by",
    ),
    "attention of its own": (
        lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES)),
        "DebertaV2ForSequenceClassification cannot classify packed examples: it has an attention",
    ),
    "neighbours' embeddings": (
        lambda: MobileBertForSequenceClassification(
            MobileBertConfig(
                **SIZES, embedding_size=32, true_hidden_size=32, intra_bottleneck_size=32
            )
        ),
        "logits that differ by",
    ),
    "last token": (
        lambda: LlamaForSequenceClassification(
            LlamaConfig(**{k: v for k, v in MODERN.items() if "att" not in k}, num_labels=3)
        ),
        "LlamaForSequenceClassification cannot classify packed examples",
    ),
    "heads of tokens": (
        lambda: classifier(kind=BertForTokenClassification),
        r"logits of shape \(1, 5, 3\) .* heads of tokens need no surgery",
    ),
    "several texts": (lambda: classifier(kind=BertForMultipleChoice), "RuntimeError when tried"),
    "answers": (lambda: classifier(kind=BertForQuestionAnswering), "when tried"),
    "two heads": (lambda: classifier(kind=BertForPreTraining), "no attribute 'logits'"),
    "no head": (lambda: classifier(kind=BertModel), "it has no head"),
    "no text": (
        lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=32)),
        "AttributeError when tried",
    ),
    "no model": (lambda: torch.nn.Linear(2, 2), "Linear cannot classify packed examples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_would_read_something_else(name: str) -> None:
    make, message = REFUSED[name]
    model = make()
    with pytest.raises(ValueError, match=message):
        packed_classification(model)
    assert num_hooks(model) == 0 and not hasattr(model, "reads_example_starts")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_leaves_everything_but_its_hooks_as_it_was(name: str) -> None:
    model = classifier(name).train()
    model.base_model.eval()  # modes of its own
    modes = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ids = torch.randint(5, 200, (2, 9))
    with torch.no_grad():
        before, state = model(input_ids=ids).logits, torch.get_rng_state()
        assert packed_classification(model) is model
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(before, model(input_ids=ids).logits)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    assert model.config._attn_implementation == "sdpa"
    assert packed_classification(model) is model and num_hooks(model) == 2  # once is enough
    assert packed_heads._first_position(model) == ModelFacts.of(model).first_position


@pytest.mark.parametrize("name", ["modernbert", "bert"])
def test_a_head_of_zeros_is_tried_like_any_other(name: str) -> None:
    """Its logits are all the same, right or wrong."""
    model = classifier(name, **({"classifier_pooling": "mean"} if name == "modernbert" else {}))
    torch.nn.init.zeros_(model.classifier.weight)
    if name == "bert":
        packed_classification(model)
    else:
        with pytest.raises(ValueError, match="logits that differ"):
            packed_classification(model)
    assert not model.classifier.weight.any()


def test_a_host_that_reads_another_state_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed_heads.FirstStates.gather

    def beside(self: Any, *arguments: Any) -> Any:
        self.starts = None if self.starts is None else self.starts + 1
        return right(self, *arguments)

    monkeypatch.setattr(packed_heads.FirstStates, "gather", beside)
    with pytest.raises(ValueError, match="cannot classify packed examples"):
        packed_classification(classifier())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_reads_its_own_batch(again: Any) -> None:
    model = packed_classification(classifier()).eval()
    model.set_attn_implementation("unpadded")
    ids = torch.randint(5, 200, (1, sum(LENGTHS)))
    expected = model(input_ids=ids, **starts_and_ends()).logits
    copied = again(model)
    torch.nn.init.zeros_(model.bert.encoder.layer[0].output.dense.weight)
    assert torch.equal(copied(input_ids=ids, **starts_and_ends()).logits, expected)
    assert expected.shape == (3, NUM_CLASSES)
    assert copied(input_ids=ids).logits.shape == (1, NUM_CLASSES)  # nothing is left over


def test_what_is_saved_is_plain(tmp_path: Path) -> None:
    model = packed_classification(classifier()).eval()
    model.save_pretrained(tmp_path)
    assert "example_starts" not in (tmp_path / "config.json").read_text()
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert num_hooks(loaded) == 0
    ids = torch.randint(5, 200, (2, 9))
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_under_adapters() -> None:
    """They call the model's forward past its own hooks."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2)
    for first in (True, False):
        model: Any = classifier().eval()
        model.set_attn_implementation("unpadded")
        model = packed_classification(model) if first else model
        adapted = peft.get_peft_model(model, config).eval()
        assert packed_classification(adapted) is adapted
        ids = torch.randint(5, 200, (1, sum(LENGTHS)))
        packed = adapted(input_ids=ids, **starts_and_ends()).logits
        alone = torch.cat([adapted(input_ids=part).logits for part in ids.split(LENGTHS, 1)])
        # fp32 sums in another order
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-6)


def test_a_batch_cut_by_its_rows_is_refused() -> None:
    model = packed_classification(classifier()).eval()
    model.set_attn_implementation("unpadded")
    ids, given = torch.randint(5, 200, (1, sum(LENGTHS))), starts_and_ends()
    assert model(input_ids=ids, **given, num_examples=3).logits.shape == (3, NUM_CLASSES)
    given[STARTS] = given[STARTS][:2]
    with pytest.raises(ValueError, match="2 of the 3 examples of a packed batch are left"):
        model(input_ids=ids, **given, num_examples=3)
    assert model(input_ids=ids).logits.shape == (1, NUM_CLASSES)


def test_next_sentence_prediction() -> None:
    model = packed_classification(classifier(kind=BertForNextSentencePrediction)).eval()
    model.set_attn_implementation("unpadded")
    ids = torch.randint(5, 200, (1, sum(LENGTHS)))
    outputs = model(input_ids=ids, labels=torch.tensor([0, 1, 1]), **starts_and_ends())
    assert outputs.logits.shape == (3, 2) and outputs.loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_precision(dtype: torch.dtype) -> None:
    packed_classification(classifier().to(dtype))
    with pytest.raises(ValueError, match="logits that differ"):
        packed_classification(classifier("modernbert", classifier_pooling="mean").to(dtype))
