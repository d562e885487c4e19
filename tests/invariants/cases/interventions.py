"""What changes gradients between the backward pass and the update."""

from collections.abc import Callable

from transformers import TrainerCallback

import hf_tfopt as tfo
from tests.invariants.cases import Case
from tests.models import batch_for, tiny


def _by_groups() -> list[TrainerCallback]:
    return [
        tfo.ClipByValue(0.05),
        tfo.GradientClipping("layer", {"encoder.*": 0.1, "head": 0.5}),
        tfo.GradientClipping("role", {"attention": 0.05}),
        tfo.GradientNoise(eta=1e-5),
    ]


def _adaptive() -> list[TrainerCallback]:
    return [
        tfo.PercentileClipping(window=2),
        tfo.ZClip(z=0.5, warmup_steps=2),
        tfo.AdaptiveGradientClipping(0.02),
    ]


def _case(callbacks: Callable[[], list[TrainerCallback]]) -> Case:
    return Case(
        lambda: tiny("bert"),
        lambda num_rows, seed: batch_for(None, num_rows, seed),
        lambda: tfo.LanguageModeling(),
        callbacks=callbacks,
        max_grad_norm=0.0,
    )


CASES = {"group clipping and noise": _case(_by_groups), "adaptive clipping": _case(_adaptive)}
