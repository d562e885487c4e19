"""One encoder, heads per task: logits of the plain models, saved as one, exported one by one."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from hf_tfopt.surgery.multitask import MultitaskModel
from hf_tfopt.surgery.multitask_config import MultitaskConfig
from tests.models import NARROW, SIZES, SPECIAL, VOCABULARY, batch_for

TASKS = {
    "topic": {"problem": "single_label_classification", "id2label": {0: "a", 1: "b", 2: "c"}},
    "score": {"problem": "regression"},
    "tags": {"problem": "multi_label_classification", "num_labels": 4},
    "words": {"problem": "token_classification", "num_labels": 5},
}
NAMES = sorted(TASKS)
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**SIZES),
    "roberta": lambda: RobertaConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=48
    ),
    "electra": lambda: ElectraConfig(**NARROW),
    "albert": lambda: AlbertConfig(**NARROW),
    "deberta-v2": lambda: DebertaV2Config(**SIZES),
    "modernbert": lambda: ModernBertConfig(**SIZES, **SPECIAL),
    "gpt2": lambda: GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
}


def made(name: str = "bert", seed: int = 0) -> MultitaskModel:
    torch.manual_seed(seed)
    return MultitaskModel.from_encoder(CONFIGS[name](), TASKS).eval()


def inputs(num_rows: int = 8) -> dict[str, torch.Tensor]:
    batch = batch_for(None, num_rows)
    del batch["labels"]
    batch["attention_mask"][::2, 9:] = 0
    batch["input_ids"][::2, 9:] = 0
    return batch


def labels_for(task: torch.Tensor, width: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.full((len(task), width), -100)
    values = torch.full((len(task), 4), math.nan)
    for row, number in enumerate(task.tolist()):
        if NAMES[number] == "words":
            labels[row, : width - 2] = torch.randint(5, (width - 2,), generator=generator)
        elif NAMES[number] == "topic":
            labels[row, 0] = torch.randint(3, (1,), generator=generator)
        elif NAMES[number] == "tags":
            values[row] = torch.randint(2, (4,), generator=generator).float()
        else:
            values[row, 0] = torch.randn(1, generator=generator)
    return {"labels": labels, "label_values": values}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_exported_models(name: str, tmp_path: Path) -> None:
    model = made(name)
    batch, task = inputs(), torch.tensor([3, 0, 1, 2, 3, 0, 3, 1])
    outputs = model(**batch, task=task)
    kinds = []
    for number, problem in enumerate(NAMES):
        plain = model.export(problem)
        assert not plain.training
        kinds.append(type(plain))
        own = {key: value[task == number] for key, value in batch.items()}
        # the same rows in a smaller batch: fp32 sums in another order
        torch.testing.assert_close(
            outputs.logits[problem], plain(**own).logits, rtol=1e-5, atol=1e-6
        )
    assert len(set(kinds)) == 2  # of sequences and of tokens
    plain.save_pretrained(tmp_path)
    auto = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(auto(**batch).logits, plain(**batch).logits)


def test_an_exported_model_knows_its_labels_and_problem_and_shares_nothing() -> None:
    model = made()
    plain = model.export("topic")
    assert isinstance(plain, BertForSequenceClassification)
    assert plain.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert plain.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert plain.config.problem_type == "single_label_classification"
    assert model.export("words").config.problem_type is None
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert bool(model.heads["topic"].classifier.weight.any())
    assert bool(model.encoder.embeddings.word_embeddings.weight.any())
    with pytest.raises(ValueError, match=r"unknown task 'topics' .did you mean 'topic'"):
        model.export("topics")


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_saved_and_opened_as_one_model(name: str, tmp_path: Path) -> None:
    model = made(name)
    model.save_pretrained(tmp_path)
    opened, report = MultitaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert isinstance(AutoModel.from_pretrained(tmp_path), MultitaskModel)
    assert opened.config.tasks == model.config.tasks
    assert list(opened.config.tasks) == NAMES  # numbers are those that it was trained with
    before, after = model.state_dict(), opened.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert sum("word_embeddings" in key or "wte" in key for key in before) == 1  # one encoder


def test_the_order_in_which_tasks_are_named_is_nothing(tmp_path: Path) -> None:
    backwards = MultitaskConfig(CONFIGS["bert"](), dict(reversed(TASKS.items())))
    assert list(backwards.tasks) == list(made().config.tasks) == NAMES


def test_one_run_of_the_encoder_and_no_task_without_a_gradient() -> None:
    model = made().train()
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    outputs = model(**inputs(3), task=torch.tensor([3, 3, 3]))
    assert calls == [1]
    assert {name: len(logits) for name, logits in outputs.logits.items()} == {
        "score": 0,
        "tags": 0,
        "topic": 0,
        "words": 3,
    }
    sum(logits.sum() for logits in outputs.logits.values()).backward()
    # so that DDP waits for none of them
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_its_loss_is_the_sum_of_the_hosts() -> None:
    model = made()
    batch, task = inputs(), torch.tensor([3, 0, 1, 2, 3, 0, 3, 1])
    labels = labels_for(task)
    found = model(**batch, task=task, **labels).loss
    expected = torch.zeros(())
    for number, name in enumerate(NAMES):
        rows = task == number
        own = {
            "score": lambda rows=rows: labels["label_values"][rows, 0],
            "tags": lambda rows=rows: labels["label_values"][rows],
            "topic": lambda rows=rows: labels["labels"][rows, 0],
            "words": lambda rows=rows: labels["labels"][rows],
        }[name]()
        plain = model.export(name)
        expected += plain(**{k: v[rows] for k, v in batch.items()}, labels=own).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_all_rows_of_one_task_by_its_name() -> None:
    model = made()
    batch = inputs()
    logits = model(**batch, task="tags").logits
    expected = model(**batch, task=torch.full((8,), NAMES.index("tags"))).logits
    assert torch.equal(logits["tags"], expected["tags"]) and len(logits["topic"]) == 0
    with pytest.raises(ValueError, match="unknown task 'tag'"):
        model(**batch, task="tag")
    with pytest.raises(ValueError, match="say of which task each row is"):
        model(**batch)
    with pytest.raises(ValueError, match=r"task 4 is outside \[0, 4\)"):
        model(**batch, task=torch.full((8,), 4))
    alone = MultitaskModel.from_encoder(CONFIGS["bert"](), {"tags": TASKS["tags"]})
    assert alone(**batch).logits["tags"].shape == (8, 4)


def test_labels_of_the_wrong_kind_are_missed() -> None:
    model = made()
    task = torch.full((2,), NAMES.index("score"))
    with pytest.raises(ValueError, match=r"task 'score' .regression. needs label_values"):
        model(**inputs(2), task=task, labels=torch.zeros(2, 1, dtype=torch.long))


def test_it_starts_from_a_trained_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    whole = BertModel(CONFIGS["bert"]())
    whole.save_pretrained(tmp_path)
    sources = {"folder": str(tmp_path), "model": whole}
    for source in sources.values():
        model = MultitaskModel.from_encoder(source, TASKS)
        ours = model.encoder.state_dict()
        assert all(torch.equal(ours[key], value) for key, value in whole.state_dict().items())
    masked = BertForMaskedLM(CONFIGS["bert"]()).bfloat16()
    with caplog.at_level(logging.WARNING):
        model = MultitaskModel.from_encoder(masked, TASKS)
    assert "has no pooler: pooler.dense" in caplog.text
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model.encoder.embeddings.word_embeddings.weight, masked.get_input_embeddings().weight
    )
    masked.bert.embeddings.word_embeddings.weight.data.zero_()
    assert bool(model.encoder.embeddings.word_embeddings.weight.any())  # copied, not taken


def test_the_head_of_a_source_is_forgotten(tmp_path: Path) -> None:
    config = BertConfig(**SIZES, num_labels=7, problem_type="regression")
    source = BertForSequenceClassification(config)
    model = MultitaskModel.from_encoder(source, TASKS)
    assert {name: model.export(name).config.num_labels for name in NAMES} == {
        "score": 1,
        "tags": 4,
        "topic": 3,
        "words": 5,
    }
    assert model.export("words").config.problem_type is None
    assert source.config.problem_type == "regression" and source.config.num_labels == 7
    model.save_pretrained(tmp_path)
    again = MultitaskModel.from_encoder(str(tmp_path), {"new": TASKS["topic"]})
    weight = model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(again.encoder.embeddings.word_embeddings.weight, weight)


def test_without_a_head_of_sequences_there_is_no_pooler_to_leave_untrained() -> None:
    model = MultitaskModel.from_encoder(BertModel(CONFIGS["bert"]()), {"words": TASKS["words"]})
    assert model.encoder.pooler is None
    model(**inputs()).logits["words"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_and_the_first_weights_are_the_hosts() -> None:
    config = CONFIGS["bert"]()
    config.hidden_dropout_prob, config.classifier_dropout = 0.2, 0.4
    model = MultitaskModel.from_encoder(config, TASKS)
    assert model.heads["topic"].dropout.p == 0.4
    assert model.encoder.embeddings.dropout.p == 0.2
    spread = float(model.heads["words"].classifier.weight.detach().std())
    assert spread == pytest.approx(config.initializer_range, rel=0.3)
    assert not bool(model.heads["words"].classifier.bias.any())


def test_what_weighs_the_tasks_is_saved_with_it(tmp_path: Path) -> None:
    model = made()
    model.hold_balance("gradnorm")
    assert model.task_weights.tolist() == [1] * 4 and model.initial_losses.tolist() == [0] * 4
    model.task_weights[1] = 0.25
    model.hold_balance("gradnorm")  # again: nothing is lost
    model.save_pretrained(tmp_path)
    opened = MultitaskModel.from_pretrained(tmp_path)
    assert opened.task_weights.tolist() == [1, 0.25, 1, 1]
    opened.hold_balance("uncertainty")
    assert opened.log_variances.requires_grad and not hasattr(opened, "task_weights")
    torch.nn.init.constant_(opened.log_variances, 0.5)
    opened.save_pretrained(tmp_path)
    again = MultitaskModel.from_pretrained(tmp_path)
    assert again.log_variances.tolist() == [0.5] * 4
    outputs = again(**inputs(), task="tags")
    assert outputs.log_variances.tolist() == [0.5] * 4
    again.hold_balance(None)
    assert again.config.balance is None and "log_variances" not in again.state_dict()


def test_a_grown_vocabulary_reaches_the_exported_model(tmp_path: Path) -> None:
    model = made()
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model.config.encoder.vocab_size == VOCABULARY + 3
    plain = model.export("topic")
    assert plain.get_input_embeddings().weight.shape[0] == VOCABULARY + 3
    model.save_pretrained(tmp_path)
    opened = MultitaskModel.from_pretrained(tmp_path).eval()
    batch = inputs()
    assert torch.equal(opened(**batch, task="topic").logits["topic"], plain(**batch).logits)


def test_activation_checkpointing_reaches_the_encoder() -> None:
    model = made().train()
    model.activation_checkpointing_enable()
    calls: list[int] = []
    model.encoder.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    model(**inputs(), task="topic").logits["topic"].sum().backward()
    assert calls == [1, 1]  # once more in the backward pass


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_is_saved_is_that_of_the_encoder(attention: str) -> None:
    """A mask made for one kind of attention and read by another would be wrong, silently."""
    config = BertConfig(**SIZES, attn_implementation=attention)
    model = MultitaskModel.from_encoder(config, TASKS).eval()
    assert model.encoder.config is model.config.encoder
    assert model.encoder.encoder.layer[0].attention.self.config is model.config.encoder
    model.set_attn_implementation("sdpa")
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.config.encoder.problem_type is None and model.config.encoder.num_labels == 2


def test_adapters_in_the_encoder(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = made()
    batch, task = inputs(), torch.tensor([3, 0, 1, 2, 3, 0, 3, 1])
    plain = model(**batch, task=task).logits["words"]
    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model, config)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert sum("lora" in name for name in trained) == 8
    assert all(any(f"heads.{name}.classifier" in key for key in trained) for name in TASKS)
    assert torch.equal(adapted(**batch, task=task).logits["words"], plain)
    with pytest.raises(ValueError, match="merge adapters first"):
        model.export("words")
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    changed = adapted(**batch, task=task).logits["words"]
    assert not torch.allclose(changed, plain)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, MultitaskModel)
    own = {key: value[task == 3] for key, value in batch.items()}
    torch.testing.assert_close(merged.export("words")(**own).logits, changed, rtol=1e-4, atol=1e-5)


def test_models_that_cannot_be_the_encoder() -> None:
    with pytest.raises(ValueError, match="T5Config has an encoder and a decoder"):
        MultitaskModel.from_encoder(T5Config(), TASKS)
    with pytest.raises(ValueError, match="needs an encoder and at least one task"):
        MultitaskModel.from_encoder(CONFIGS["bert"](), {})
    other = GPT2Model(CONFIGS["gpt2"]())
    other.config = CONFIGS["bert"]()
    with pytest.raises(ValueError, match="GPT2Model cannot be the encoder BertModel: it has no"):
        MultitaskModel.from_encoder(other, TASKS)


def test_a_plain_model_opens_where_a_task_was_exported(tmp_path: Path) -> None:
    made().export("score").save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert opened.config.problem_type == "regression" and opened.num_labels == 1
    assert "tfopt" not in (tmp_path / "config.json").read_text()
