"""Where parameters stand, in architectures of every kind."""

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from hf_tfopt.places import named_places

NUM = 3
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(num_hidden_layers=NUM)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(num_hidden_layers=NUM)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(n_layers=NUM)),
    "deberta": lambda: hf.DebertaV2ForMaskedLM(
        hf.DebertaV2Config(num_hidden_layers=NUM, relative_attention=True)
    ),
    "electra": lambda: hf.ElectraForPreTraining(hf.ElectraConfig(num_hidden_layers=NUM)),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(num_hidden_layers=NUM)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=NUM)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_hidden_layers=NUM)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(num_hidden_layers=NUM)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(n_layer=NUM)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(num_hidden_layers=NUM)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(num_layers=NUM)),
    "bart": lambda: hf.BartForConditionalGeneration(
        hf.BartConfig(encoder_layers=NUM, decoder_layers=NUM)
    ),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(encoder_layers=NUM, decoder_layers=NUM)
    ),
    "xlm": lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(n_layers=NUM)),
    "wav2vec2": lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(num_hidden_layers=NUM)),
}
DECODERS = ("gpt2", "llama", "mixtral", "bloom")
BOTH = ("t5", "bart", "whisper")


def places(build: Callable[[], nn.Module]):
    with torch.device("meta"):
        return named_places(build())


@pytest.mark.parametrize("name", BUILDERS)
def test_layers_stand_between_embeddings_and_head(name: str) -> None:
    found = places(BUILDERS[name])
    stacks = {"encoder", "decoder"} if name in BOTH else {"encoder"}
    stacks = {"decoder"} if name in DECODERS else stacks
    distances = {place.label: place.distance for place in found.values() if "." in place.label}
    assert distances == {f"{s}.{i}": NUM - i for s in stacks for i in range(NUM)}
    for parameter, place in found.items():
        number = [int(part) for part in parameter.split(".") if part.isdigit()]
        if place.part == "embeddings":
            assert place.distance == NUM + 1, parameter
        elif "." in place.label:
            assert place.distance == NUM - number[0], parameter
        else:
            assert place.distance == 0, parameter
    assert any(place.part == "embeddings" for place in found.values())


@pytest.mark.parametrize(
    ("name", "parameter", "label"),
    [
        ("bert", "bert.pooler.dense.weight", "encoder"),
        ("bert", "classifier.weight", "head"),
        ("deberta", "deberta.encoder.rel_embeddings.weight", "embeddings"),
        ("modernbert", "model.final_norm.weight", "encoder"),
        ("modernbert", "head.dense.weight", "head"),
        ("llama", "lm_head.weight", "head"),
        ("gpt2", "transformer.wte.weight", "embeddings"),  # tied: it is the head as well
        ("gpt2", "transformer.ln_f.weight", "decoder"),
        ("t5", "shared.weight", "embeddings"),
        ("t5", "decoder.final_layer_norm.weight", "decoder"),
        ("bart", "model.encoder.layernorm_embedding.weight", "embeddings"),  # after the layers
        ("vit", "vit.embeddings.patch_embeddings.projection.weight", "embeddings"),
        ("wav2vec2", "wav2vec2.feature_extractor.conv_layers.0.conv.weight", "embeddings"),
    ],
)
def test_what_is_in_no_layer(name: str, parameter: str, label: str) -> None:
    found = places(BUILDERS[name])
    assert found[parameter].label == label


class Whole(nn.Module):
    """Body and head are one module."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.output = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def get_output_embeddings(self) -> nn.Module:
        return self.output


def test_an_output_layer_inside_the_body_is_a_head() -> None:
    found = named_places(Whole())
    assert found["output.weight"] == ("head", "head", 0)
    assert found["words.weight"] == ("embeddings", "embeddings", 3)
    tied = Whole()
    tied.output.weight = tied.words.weight
    assert named_places(tied)["words.weight"].part == "embeddings"


def test_stages_count_by_their_own_layers() -> None:
    found = places(lambda: hf.SwinForImageClassification(hf.SwinConfig(depths=[2, 2, 6, 2])))
    prefix = "swin.encoder.layers"
    blocks = {f"{prefix}.0.blocks.0": 12, f"{prefix}.2.blocks.0": 8, f"{prefix}.3.blocks.1": 1}
    for block, distance in blocks.items():
        assert found[f"{block}.attention.q_proj.weight"].distance == distance
    assert found[f"{prefix}.0.downsample.reduction.weight"].label == "encoder.1"  # end of its stage


def test_towers_are_told_apart() -> None:
    text, vision = {"num_hidden_layers": 2}, {"num_hidden_layers": 4}
    found = places(lambda: hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision)))
    for tower, num_layers in (("text_model", 2), ("vision_model", 4)):
        place = found[f"{tower}.encoder.layers.1.mlp.fc1.weight"]
        assert place == ("encoder", f"{tower}.encoder.1", num_layers - 1)
    deepest = found["vision_model.embeddings.patch_embedding.weight"]
    assert deepest == ("embeddings", "vision_model.embeddings", 5)


def test_a_model_without_layers_has_one_rate() -> None:
    found = named_places(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)))
    assert [place.distance for place in found.values()] == [0, 0, 0]
    assert found["0.weight"].part == "embeddings"
