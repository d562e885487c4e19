import pytest

from hf_tfopt.lab.settings import at_rate, read_request
from hf_tfopt.optimizers import OPTIMIZERS
from hf_tfopt.recipe.keys import load_recipe
from hf_tfopt.recipe.rates import USUAL_RATES


def request(text):
    return read_request(text.split())


def test_each_optimizer_is_swept_around_its_usual_rate_whatever_the_recipe_has():
    asked = request("optimizers lion muon adamw=1e-3 bert-tiny --rates 3 --spacing 2")
    assert asked.recipe.learning_rate == 0.04, "the preset's own, for Muon"
    assert asked.sweeps() == {
        "lion": (5e-4, 1e-3, 2e-3),
        "muon": (0.015, 0.03, 0.06),
        "adamw": (5e-4, 1e-3, 2e-3),
    }
    assert {name: side.optimizer for name, side in asked.sides.items()} == {
        name: name for name in asked.sides
    }
    assert asked.sides["lion"].adamw_learning_rate is None


def test_everything_else_is_the_recipes_for_every_side():
    asked = request("optimizers adamw sgd bert-tiny --weight_decay 0.2 --max_steps 30")
    for side in asked.sides.values():
        assert (side.weight_decay, side.max_steps, side.eval_steps) == (0.2, 30, 3)
        assert (side.schedule, side.decay_fraction, side.seed) == ("warmup_stable_decay", 0.4, 0)
    assert asked.recipe.output_dir == "runs/lab-optimizers"


def test_muons_adamw_keeps_its_ratio():
    side = request("optimizers muon adamw").sides["muon"]
    moved = at_rate(side, 3 * side.learning_rate)
    assert moved.adamw_learning_rate == pytest.approx(3 * side.adamw_learning_rate)
    with_rate = request("optimizers muon=0.06 adamw").sides["muon"]
    assert with_rate.adamw_learning_rate / 0.06 == pytest.approx(
        side.adamw_learning_rate / side.learning_rate
    )


def test_schedule_free_has_no_decay_beside_it():
    sides = request("optimizers schedule_free adamw").sides
    assert (sides["schedule_free"].schedule, sides["schedule_free"].decay_fraction) == (
        "constant",
        None,
    )
    assert sides["adamw"].schedule == "warmup_stable_decay"


def test_schedules_have_one_sweep_and_the_recipes_own_options():
    asked = request("schedules cosine warmup_stable_decay constant=0.005 --optimizer adamw")
    sweeps = asked.sweeps()
    assert sweeps["cosine"] == sweeps["warmup_stable_decay"] != sweeps["constant"]
    assert sweeps["constant"][1] == 0.005
    assert asked.sides["warmup_stable_decay"].decay_fraction == 0.4
    assert asked.sides["cosine"].decay_fraction is None
    assert {side.optimizer for side in asked.sides.values()} == {"adamw"}


def test_options_of_the_recipes_own_optimizer_stay_with_it(tmp_path):
    path = tmp_path / "mine.yaml"
    flags = {
        "optimizer": "lion",
        "learning_rate": "1e-3",
        "optimizer_options": "{betas: [0.8, 0.9]}",
    }
    path.write_text(load_recipe("bert-tiny", flags).to_yaml())
    sides = request(f"optimizers lion adamw {path}").sides
    assert sides["lion"].optimizer_options == {"betas": [0.8, 0.9]}
    assert sides["lion"].learning_rate == USUAL_RATES["lion"]
    assert sides["adamw"].optimizer_options is None


def test_the_range_test_takes_a_recipe_and_its_own_flags():
    asked = request("lr-range bert-tiny --lowest 1e-4 --optimizer adamw --max_steps 50")
    assert asked.recipe.optimizer == "adamw" and asked.recipe.max_steps == 50
    assert (asked.options.lowest, asked.options.highest) == (1e-4, None)
    assert asked.sides == {}


def test_a_recipe_may_be_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe("bert-tiny", {"seed": "7"}).to_yaml())
    assert request(f"optimizers adam adamw {path}").recipe.seed == 7


def test_every_usual_rate_is_of_an_optimizer_and_makes_a_recipe():
    assert {*USUAL_RATES} == {*OPTIMIZERS}
    asked = read_request(["optimizers", *USUAL_RATES])
    for name, side in asked.sides.items():
        assert side.learning_rate == USUAL_RATES[name]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "which experiment"),
        ("optimizer adam adamw", "did you mean 'optimizers'?"),
        ("optimizers adam adamww", "did you mean 'adamw'?"),
        ("optimizers adam adamw bert-mni", "did you mean 'bert-mini'?"),
        ("schedules cosine linea", "did you mean 'linear'?"),
        ("schedules cosine noam", "inverse_sqrt, compare that"),
        ("lr-range bert-mni", "did you mean 'bert-mini'?"),
        ("optimizers adam", "at least two optimizers, got 1"),
        ("schedules", "at least two schedules, got 0"),
        ("optimizers adam adam", "adam is given twice"),
        ("optimizers adam adamw bert-mini bert-tiny", "one recipe at a time"),
        ("optimizers adam=0 adamw", "learning_rate: got 0.0, must be above 0"),
        ("optimizers adam=x adamw", "adam: got 'x', expected a number"),
        ("optimizers adam adamw --rates 1", "rates: got 1, must be 2 or above"),
        ("optimizers adam adamw --rate 3", "did you mean 'rates'?"),
        ("optimizers adam adamw --spacing 1", "spacing: got 1.0, must be 1.01 or above"),
        ("optimizers adam adamw --learning_rte 1", "did you mean 'learning_rate'?"),
        ("optimizers adam adamw --learning_rate 1", "write NAME=LR"),
        ("optimizers adam adamw --max_steps x", "max_steps: got 'x'"),
        ("optimizers adam adamw --max_steps 0", "max_steps: got 0"),
        ("schedules cosine linear --schedule constant", "name the schedules"),
        ("schedules cosine linear --decay_fraction 0.5", "only warmup_stable_decay, the"),
        ("schedules cosine linear --schedule_options={decay_from:1}", "the recipe's own, reads it"),
        ("optimizers adam adamw --optimizer_options={momentum:0.9}", "only muon, the recipe's own"),
        ("schedules cosine linear --save_steps 5", "leaves no model"),
        ("lr-range --warmup_steps 5", "rises from --lowest"),
        ("lr-range --lowest -1", "lowest: got -1.0, must be above 0"),
        ("lr-range --rates 5", "unknown flag 'rates'"),
    ],
)
def test_a_mistake_is_answered(text, told):
    with pytest.raises(ValueError) as refusal:
        request(text)
    assert told in str(refusal.value)
