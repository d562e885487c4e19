"""Where the heads look: entropy over the steps, by head, and the maps of chosen sentences."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hf_tfopt.pictures.heat_maps import Scale, color_bar, draw_cells, label_rows, scale_of
from hf_tfopt.pictures.history import Array, grid, last_step, names_below, shortened, titled
from hf_tfopt.pictures.lines import Runs, draw_family
from hf_tfopt.pictures.panels import Panel
from hf_tfopt.pictures.training import MOST_MAPPED, map_panels
from hf_tfopt.plotting import History, Theme, dress

_SHARES = Scale(0.01, 1.0, True)  # what is below a hundredth is as good as nothing
_MOST_TOKENS = 40
_LEAST_RANGE = 0.1  # of the entropies that colours tell apart


def attention_panels(runs: Runs) -> list[Panel]:
    """Entropy by layer over the steps and by head at the end, and the largest logit."""
    return [
        *_family_panels(runs, "attention_entropy", "Entropy of attention, share of the highest"),
        *_head_panels(runs),
        *_family_panels(runs, "attention_entropy_min", "Entropy of each layer's sharpest head"),
        *_family_panels(runs, "attention_max", "Largest weight of attention by layer"),
        *map_panels(runs, {"attention_logit_max": "Largest logit of attention"}, is_log=True),
    ]


def _family_panels(runs: Runs, what: str, title: str) -> list[Panel]:
    panels: list[Panel] = []
    for name, history in islice(runs.items(), MOST_MAPPED):
        found = grid(history, what)
        if found is not None:
            members = [
                (layer, found.steps, values)
                for layer, values in zip(found.names, found.values, strict=True)
            ]
            full = titled(title, name, runs)
            last = last_step(runs.values())
            draw = partial(draw_family, title=full, members=members, last=last, is_noisy=True)
            panels.append(Panel(draw))
    return panels


def _head_panels(runs: Runs) -> list[Panel]:
    panels: list[Panel] = []
    for name, history in islice(runs.items(), MOST_MAPPED):
        found = _newest_heads(history)
        if found is not None:
            step, cells = found
            title = titled(f"Entropy of each head, step {step}", name, runs)
            layers = names_below(history, "attention_entropy")
            draw = partial(_draw_heads, title=title, cells=cells, layers=layers)
            panels.append(Panel(draw, height=2.9 if len(cells) <= 16 else 3.6))
    return panels


def _newest_heads(history: History) -> tuple[int, Array] | None:
    """Step and [layers, heads] of the last measurement; fewer heads end with NaN."""
    key = "attention_entropy_heads"
    for entry in reversed(history):
        rows = entry.get(key)
        if isinstance(rows, list) and rows and all(isinstance(row, list) and row for row in rows):
            cells = np.full((len(rows), max(map(len, rows))), np.nan)
            for number, row in enumerate(rows):
                cells[number, : len(row)] = [np.nan if v is None else float(v) for v in row]
            return int(entry.get("step", 0)), cells
    return None


def _draw_heads(axes: Axes, theme: Theme, title: str, cells: Array, layers: Sequence[str]) -> None:
    dress(axes, title, theme, "head")
    num_layers, num_heads = cells.shape
    scale = scale_of([cells], is_log=False)
    scale = scale._replace(low=min(scale.low, scale.high - _LEAST_RANGE))
    shown = draw_cells(axes, cells, scale, (-0.5, num_heads - 0.5, -0.5, num_layers - 0.5))
    label_rows(axes, layers if len(layers) == num_layers else [f"{n}" for n in range(num_layers)])
    axes.set_xticks(range(0, num_heads, -(-num_heads // 16)))
    if num_layers * num_heads <= 64:
        _write_values(axes, cells, scale)
    color_bar(axes, theme, shown, scale)


def _write_values(axes: Axes, cells: Array, scale: Scale) -> None:
    middle = (scale.low + scale.high) / 2
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            # no colour of a theme, which the page would change with it
            color = "#fefefe" if value < middle else "#010101"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, color=color)


def sentence_panels(attention: Mapping[str, Any]) -> list[Panel]:
    """The maps of one sentence: of every head, and of some layers' means with the tokens.

    Args:
        attention: "tokens", and "layers": [layer][head][query][key] of shares.
    """
    tokens = [shortened(str(token), 14) for token in attention["tokens"]][:_MOST_TOKENS]
    size = len(tokens)
    layers = [np.array(layer, dtype=float)[:, :size, :size] for layer in attention["layers"]]
    names = [str(name) for name in attention.get("names") or range(len(layers))]
    last = len(layers) - 1
    chosen = sorted({0, last}) if last < 2 else [0, last // 2, last]
    panels = list[Panel]()
    if max(map(len, layers)) > 1:  # else only means were kept
        height = min(6.5, 1.1 + 0.55 * len(layers))
        panels.append(Panel(partial(_draw_wall, layers=layers, names=names), height))
    else:
        chosen = [*range(len(layers))][:: -(-len(layers) // 12)]
    for number in chosen:
        title, cells = f"{names[number]}, mean of its heads", layers[number].mean(axis=0)
        draw = partial(_draw_map, title=title, cells=cells, tokens=tokens)
        panels.append(Panel(draw, max(2.9, 1.3 + 0.12 * size)))
    return panels


def _draw_wall(axes: Axes, theme: Theme, layers: Sequence[Array], names: Sequence[str]) -> None:
    """Every head's map, small: layers upwards, heads to the right."""
    dress(axes, "Every head (queries downwards, keys to the right)", theme, "head")
    num_heads, size = max(len(layer) for layer in layers), layers[0].shape[-1]
    side = size + 1
    cells = np.full((len(layers) * side, num_heads * side), np.nan)
    for row, layer in enumerate(layers):
        for column, head in enumerate(layer):
            low, left = row * side, column * side
            cells[low : low + size, left : left + size] = head[::-1]
    draw_cells(axes, cells, _SHARES, (0, num_heads, 0, len(layers)), not_finite="none")
    every = -(-num_heads // 16)
    axes.set_xticks(
        np.arange(0, num_heads, every) + 0.5, [f"{n}" for n in range(0, num_heads, every)]
    )
    label_rows(axes, names, middle=0.5)


def _draw_map(axes: Axes, theme: Theme, title: str, cells: Array, tokens: Sequence[str]) -> None:
    dress(axes, title, theme, "")
    size = len(tokens)
    shown = draw_cells(axes, cells[::-1], _SHARES, (-0.5, size - 0.5, -0.5, size - 0.5))
    letters = 7.5 if size <= 24 else 5.5
    axes.set_xticks(range(size), tokens, rotation=90, fontsize=letters)
    axes.set_yticks(range(size), tokens[::-1], fontsize=letters)
    axes.tick_params(length=0)
    color_bar(axes, theme, shown, _SHARES)
