"""Numbers, layers and components in words that are true of the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from sparsecc.analysis.components import (
    ATTENTION_INPUT,
    DOWN_INPUT,
    FFN_INPUT,
    GATE_ACTIVATION,
    O_INPUT,
    PRE_ACTIVATION,
    UP,
)

_DIGITS = 2


def component_words(component: str, *, is_gated: bool) -> str:
    """What a person calls the activations of a component."""
    return {
        ATTENTION_INPUT: "inputs of q, k and v",
        O_INPUT: "inputs of o",
        FFN_INPUT: "inputs of gate and up" if is_gated else "inputs of up",
        PRE_ACTIVATION: "inputs of the activation function",
        GATE_ACTIVATION: "activated gates",
        UP: "outputs of up",
        DOWN_INPUT: "inputs of down",
    }[component]


def percent(share: float) -> str:
    """A share in percent, to as many digits as tell it from nothing and from all."""
    if math.isnan(share):
        return "not a number"
    if share in (0, 1) or 0.1 <= share <= 0.9:
        return f"{100 * share:.0f} %"
    for digits in range(1, 4):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0, 100):
            return f"{float(text):g} %"
    return "under 0.001 %" if share < 0.5 else "over 99.999 %"


def rounded_up(value: float) -> float:
    """The next number of two significant digits that is not smaller."""
    if value == 0 or not math.isfinite(value):
        return value
    unit: float = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - _DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")


def in_layers(matching: Collection[int], layers: Sequence[int]) -> str:
    """Where something holds, as in "in every layer but the first"; layers are numbered from 0."""
    missing = [layer for layer in layers if layer not in matching]
    if not missing:
        return "in every layer"
    if len(missing) == len(layers):
        return "in no layer"
    if len(missing) == 1 and missing[0] in (layers[0], layers[-1]):
        return f"in every layer but the {'first' if missing[0] == layers[0] else 'last'}"
    if len(missing) <= 3 < len(layers) - len(missing):
        return f"in every layer but {_numbered(missing)}"
    if len(matching) <= 3:
        return f"in {_numbered(sorted(matching))}"
    return f"in {len(matching)} of {len(layers)} layers"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence, as in "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _numbered(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {listed([str(layer) for layer in layers])}"
