"""What training did: the pictures of loss, rates, gradients, weights and activations."""

from collections.abc import Sequence
from functools import partial
from itertools import islice

import numpy as np
from matplotlib.axes import Axes

from hf_tfopt.pictures.heat_maps import draw_blocks, scale_of
from hf_tfopt.pictures.history import Array, grid, last_step, names_below, titled
from hf_tfopt.pictures.lines import Line, Runs, draw_family, draw_line
from hf_tfopt.pictures.panels import Panel
from hf_tfopt.plotting import History, Theme, series

# What an evaluation tells that is no quality of the model, or has its own picture.
_NOT_QUALITY = ("_runtime", "_per_second", "_loss", "_time")
_MOST_METRICS = 6
# Heat maps are compared side by side; of more runs than this they would not be read.
MOST_MAPPED = 2

LOSSES = (
    Line("Loss: training (line), held out (dots)", "loss", "eval_loss", is_noisy=True),
    Line("Perplexity: training, held out (dots)", "perplexity", "eval_perplexity", True, True),
    Line("Accuracy on held-out text", "", "eval_accuracy"),
    Line("Divergence from the teacher", "distillation", is_noisy=True),
    Line("Loss of pairs of texts", "next_sentence", "eval_next_sentence", is_noisy=True),
    Line("Loss of pairs of texts", "sentence_order", "eval_sentence_order", is_noisy=True),
)
RATE = Line("Learning rate", "learning_rate")
NORM = Line("Gradient norm before clipping", "grad_norm", is_log=True, is_noisy=True)
OF_GRADIENTS = (
    Line("Gradient noise scale (critical batch, examples)", "noise_scale", "", True, True),
    Line("Share of the steps that were clipped", "clip_share", is_from_0=True),
    Line("Loss scale (fp16)", "loss_scale", is_log=True),
)
# Shown where they are ever above 0.
COUNTS = (
    Line("Updates that were skipped", "num_skipped_updates"),
    Line("Blocks whose gradient vanishes", "num_vanishing"),
    Line("Blocks that do not learn", "num_dead"),
    Line("Bad steps", "num_bad_steps"),
)
GRADIENT_MAPS = {
    "grad_norm": "Gradient norm of each block",
    "update_to_weight": "Update / weight of each block",
    "gradient_to_weight": "Gradient / weight of each block",
    "weight_norm": "Weight norm of each block",
    "trust_ratio": "Trust ratio of each block",
}
ACTIVATION_MAPS = {
    "activation_absmax": "Largest activation of each block",
    "activation_std": "Standard deviation of the activations",
    "activation_kurtosis": "Kurtosis of the activations",
    "activation_zeros": "Share of the activations that are 0",
}


def training_panels(runs: Runs) -> list[Panel]:
    """Loss, perplexity and what else was measured on held-out text; rates; the gradient's norm."""
    panels = line_panels(runs, [*LOSSES, *_other_metrics(runs)])
    groups = _rates(next(iter(runs.values()))) if len(runs) == 1 else []
    if len(groups) > 1:
        panels.append(Panel(partial(_draw_rates, groups=groups, last=last_step(runs.values()))))
    else:
        panels += line_panels(runs, [RATE])
    return panels + line_panels(runs, [NORM])


def gradient_panels(runs: Runs) -> list[Panel]:
    """Norms by block and by role, updates and weights, noise, clipping, loss scale."""
    counts = [line for line in COUNTS if any(ever_above_0(h, line.key) for h in runs.values())]
    maps = dict(GRADIENT_MAPS)
    if any(names_below(history, "grad_norm") for history in runs.values()):
        del maps["gradient_to_weight"]  # the same picture again, as weights hardly change
    return [
        *map_panels(runs, maps, is_log=True),
        *_role_panels(runs),
        *line_panels(runs, [*OF_GRADIENTS, *counts]),
    ]


def activation_panels(runs: Runs) -> list[Panel]:
    """Size and spread of what each block puts out."""
    maps = dict(ACTIVATION_MAPS)
    if not any(_has_zeros(history) for history in runs.values()):
        del maps["activation_zeros"]
    return map_panels(runs, maps, is_log=True)


def line_panels(runs: Runs, lines: Sequence[Line]) -> list[Panel]:
    """Those that any run has numbers for."""
    return [Panel(partial(draw_line, runs=runs, line=line)) for line in lines if line.is_in(runs)]


def map_panels(runs: Runs, titles: dict[str, str], is_log: bool) -> list[Panel]:
    """A heat map of each number for each of the first runs, on one scale."""
    panels: list[Panel] = []
    for what, title in titles.items():
        mapped = islice(runs.items(), MOST_MAPPED)
        found = {name: grid(history, what) for name, history in mapped}
        there = {name: rows for name, rows in found.items() if rows is not None}
        if not there:
            continue
        scale = scale_of([rows.values for rows in there.values()], is_log)
        for name, rows in there.items():
            draw = partial(draw_blocks, title=titled(title, name, runs), found=rows, scale=scale)
            panels.append(Panel(draw, height=2.9 if len(rows.names) <= 16 else 3.6))
    return panels


def _other_metrics(runs: Runs) -> list[Line]:
    """What `compute_metrics` gave, and losses of further sets of held-out text."""
    known = {key for line in LOSSES for key in (line.key, line.dots)}
    keys = {
        key: None
        for history in runs.values()
        for entry in history
        for key in entry
        if key.startswith("eval_") and key not in known
        if not key.endswith(_NOT_QUALITY) or (key.count("_") > 1 and key.endswith("_loss"))
    }
    named = [Line(f"{_said(key)} on held-out text", "", key) for key in keys]
    return [line for line in named if line.is_in(runs)][:_MOST_METRICS]


def _said(key: str) -> str:
    words = key.removeprefix("eval_").replace("_", " ")
    return words[:1].upper() + words[1:]


def _rates(history: History) -> list[tuple[str, Array, Array]]:
    """The learning rates of the groups, those that are one all the time as one line."""
    found: list[tuple[list[str], Array, Array]] = []
    for name in names_below(history, "lr"):
        steps, values = series(history, f"lr/{name}")
        alike = next((f for f in found if _are_equal(f[1:], (steps, values))), None)
        if alike is not None:
            alike[0].append(name)
        elif len(steps):
            found.append(([name], steps, values))
    return [(_joined(names), steps, values) for names, steps, values in found]


def _are_equal(one: tuple[Array, ...], other: tuple[Array, ...]) -> bool:
    return len(one[0]) == len(other[0]) and all(
        np.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(one, other, strict=True)
    )


def _joined(names: Sequence[str]) -> str:
    """Groups of one layer by the layer's name: "encoder.0.matrices", "encoder.0.vectors"."""
    layers = {name.rpartition(".")[0] for name in names}
    if len(names) > 1 and len(layers) == 1 and "" not in layers:
        return layers.pop()
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} ..."


def _draw_rates(
    axes: Axes, theme: Theme, groups: Sequence[tuple[str, Array, Array]], last: float
) -> None:
    """Learning rates on a logarithmic axis, from the highest down to a hundredth of the lowest."""
    ordered = sorted(groups, key=lambda group: -float(group[2].max()))
    draw_family(axes, theme, "Learning rate of each group", ordered, last, is_log=True)
    highest, lowest = float(ordered[0][2].max()), float(ordered[-1][2].max())
    if lowest > 0:
        axes.set_ylim(lowest / 30, highest * 2)


def _role_panels(runs: Runs) -> list[Panel]:
    """Gradient norms of attention, feed-forward ..., for each of the first runs."""
    panels: list[Panel] = []
    for name, history in islice(runs.items(), MOST_MAPPED):
        found = grid(history, "grad_norm_role")
        if found is not None:
            members = [
                (role.replace("_", " "), found.steps, values)
                for role, values in zip(found.names, found.values, strict=True)
            ]
            title = titled("Gradient norm by role", name, runs)
            last = last_step(runs.values())
            options = {"members": members, "last": last, "is_log": True, "is_noisy": True}
            panels.append(Panel(partial(draw_family, title=title, **options)))
    return panels


def _has_zeros(history: History) -> bool:
    found = grid(history, "activation_zeros")
    return found is not None and bool(np.nanmax(found.values, initial=0) > 0.01)


def ever_above_0(history: History, key: str) -> bool:
    """Whether a number of the log was ever above 0."""
    return bool((series(history, key)[1] > 0).any())
