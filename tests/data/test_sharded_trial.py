"""CausalLMCollator: processes that share one model try it out together, or none does."""

from pathlib import Path

from tests.processes import TwoInterpreters


def test_all_processes_try_a_sharded_model_out(two_interpreters: TwoInterpreters) -> None:
    """Though process 0, which had the weights before, has done so: the other one would wait."""
    done = two_interpreters.run(Path(__file__).with_name("sharded_trial.py"), timeout=120)
    assert "alike" in done.stdout
