import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_tfopt.hub.card import write_card
from hf_tfopt.hub.contents import clean_recipe
from hf_tfopt.presets import PRESETS

CARDS = Path(__file__).parents[2] / "model_cards"
RUNS = sorted(path.parent for path in CARDS.glob("*/run.json"))


def test_each_card_here_is_in_the_list():
    listed = re.findall(r"\]\(([\w-]+)/README.md\)", (CARDS / "README.md").read_text())
    assert listed == [folder.name for folder in RUNS] and RUNS
    assert sorted(path for path in CARDS.iterdir() if path.is_dir()) == RUNS


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
class TestCard:
    def test_is_what_the_run_beside_it_tells(self, run, tmp_path):
        written = write_card(shutil.copytree(run, tmp_path / run.name))
        assert written.read_text(encoding="utf-8") == (run / "README.md").read_text("utf-8")

    def test_is_of_a_measured_preset(self, run):
        card, recipe = (
            ModelCard.load(run / "README.md"),
            yaml.safe_load((run / "recipe.yaml").read_text()),
        )
        assert run.name in PRESETS and recipe["preset"] == run.name
        assert card.data.eval_results and "hf_tfopt" in card.data.tags

    def test_tells_nothing_of_the_machine_it_was_made_on(self, run):
        recipe = (run / "recipe.yaml").read_text()
        assert clean_recipe(recipe) == recipe
        for path in run.glob("*.[!p]*"):  # all but pictures
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.:/])/(?:home|root|tmp|work|Users)/", text), path.name
