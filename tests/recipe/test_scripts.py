"""`hf-tfopt explain`: of every script's recipes, from configurations alone."""

from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from hf_tfopt.cli import main
from hf_tfopt.recipe.causal_lm_keys import CausalLMRecipe
from hf_tfopt.recipe.loading import load
from hf_tfopt.recipe.scripts import SCRIPTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """What the configuration of google-bert/bert-base-uncased says, and no weights."""
    folder = tmp_path_factory.mktemp("bert") / "base"
    BertConfig().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "tiny"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaConfig(**sizes, intermediate_size=48, vocab_size=97).save_pretrained(folder)
    return str(folder)


def told(capsys, *words):
    """What is printed, line by line."""
    main(["explain", *words])
    return capsys.readouterr().out.splitlines()


def test_every_script_is_known():
    files = {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert files == {*SCRIPTS}
    for name, script in SCRIPTS.items():
        assert script.recipe.load().script == name


@pytest.mark.parametrize(
    ("words", "title"),
    [
        (["bert-tiny"], "BertForMaskedLM"),
        (["gpt-mini"], "GPT2LMHeadModel"),
        (["--script", "finetune_causal_lm.py"], "GPT2LMHeadModel"),
        (["dates-tiny"], "MarianMTModel"),
        (["--script=finetune_seq2seq.py", "--model=t5", "--train=x"], "T5ForConditional"),
    ],
)
def test_finds_the_script_of_a_preset_or_takes_the_one_named(words, title, capsys):
    assert told(capsys, *words)[0].startswith(title)


def test_a_classifier_and_a_student(bert, capsys):
    words = ["--script", "scripts/finetune_classification.py", "--train", "x", "--model", bert]
    assert told(capsys, *words)[0].startswith("BertForSequenceClassification: 109,4")
    tags = told(capsys, *words, "--problem", "token_classification")
    assert tags[0].startswith("BertForTokenClassification: 108,8")
    given = ["--teacher", bert, "--teacher_epochs", "1", "--train", "x"]
    student = told(capsys, "--script", "distill.py", *given)
    assert student[0].startswith("BertForSequenceClassification: 66,9"), "six of twelve layers"


def test_an_adapter_has_the_adapters_weights_alone(llama, capsys):
    words = ["qlora", "--model", llama, "--corpus", "x"]
    title, _, *rows = told(capsys, *words)
    # rank 64 beside every linear layer: 4 of 32 x 32 and 3 of 32 x 48, in 2 layers
    assert title.split()[1] == f"{2 * 64 * (4 * (32 + 32) + 3 * (32 + 48)):,}"
    assert all("lora_" in row for row in rows)


def test_a_resolved_recipe_tells_its_script(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(load(CausalLMRecipe, "gpt-mini").to_yaml())
    assert told(capsys, str(path))[0].startswith("GPT2LMHeadModel")
    path.write_text("preset: gpt-mini\nseed: 3\n")
    assert told(capsys, str(path))[0].startswith("GPT2LMHeadModel")
    path.write_text("# by hand\nmodel: roberta\n")
    assert told(capsys, str(path))[0].startswith("RobertaForMaskedLM")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--script", "finetune_causal.py"], "did you mean 'finetune_causal_lm.py'?"),
        (["--script"], "--script needs a value"),
        (["bert-tiny", "--script", "distill.py"], "is one of scripts/pretrain.py"),
    ],
)
def test_a_wrong_script(words, answer, capsys):
    with pytest.raises(SystemExit):
        main(["explain", *words])
    assert answer in capsys.readouterr().err
