"""Whether an early layer's state foretells which neurons later layers will need, and better than what costs nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc.analysis.collection import Activations
from sparsecc.analysis.components import ATTENTION_INPUT, DOWN_INPUT, FFN_INPUT, O_INPUT
from sparsecc.analysis.important_neurons import ImportantNeurons, is_important
from sparsecc.analysis.predictor import Predictor, train

FILE = "prediction.csv"
SOURCE = FFN_INPUT
"""The state that is predicted from: behind a layer's attention, so that it knows of the tokens before."""
TARGETS = (ATTENTION_INPUT, O_INPUT, FFN_INPUT, DOWN_INPUT)
"""What projections read: an inactive neuron is a weight row that need not be fetched."""
_HELD_OUT_EVERY = 4
_FEWEST_FOLLOWERS = 32
"""Fewer tokens would judge a predictor by chance."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PredictionQuality:
    """How well a component's active sets are foretold, on windows of the text that the predictor was not trained on.

    A neuron is active where abs(x) exceeds the threshold of
    :class:`sparsecc.analysis.important_neurons.ImportantNeurons`. The network predicts the highest scores, as many as
    there are active neurons in all tokens together, so that its recall is its precision; the baselines predict about
    as many. Recall is the share of the active neurons that are predicted, precision the share of the predicted ones
    that are active, over all tokens together; NaN where there is none. A blind guess of ``predicted_share`` has that
    recall and the precision ``active_share``. Guesses of different sizes are compared by F1, see :func:`f1`.

    Attributes:
        source_layer: the layer whose ``ffn_input`` is predicted from.
        layer, component: what is predicted, see :mod:`sparsecc.analysis.components`.
        distance: ``layer - source_layer``.
        active_share: of all (token, neuron) pairs, those that are active.
        predicted_share: those that the network predicts; equal to ``active_share``.
        recall, precision: of the network.
        hot_recall, hot_precision: of the neurons that were active most often in the tokens trained on, at each token
            as many as are active on average.
        previous_recall, previous_precision: of the set of the previous token; NaN where that is known of too few.
        tokens: how many all these shares are taken over: those whose previous token was sampled too, or all that were
            not trained on where these are fewer than 32.
    """

    source_layer: int
    layer: int
    component: str
    distance: int
    active_share: float
    predicted_share: float
    recall: float
    precision: float
    hot_recall: float
    hot_precision: float
    previous_recall: float
    previous_precision: float
    tokens: int

    @property
    def network_f1(self) -> float:
        return f1(self.recall, self.precision)

    @property
    def hot_f1(self) -> float:
        return f1(self.hot_recall, self.hot_precision)

    @property
    def previous_f1(self) -> float:
        return f1(self.previous_recall, self.previous_precision)

    @property
    def blind_f1(self) -> float:
        return f1(self.predicted_share, self.active_share)


@dataclasses.dataclass(frozen=True)
class LayerPredictor:
    """A predictor of all the active sets behind a layer; a neuron is predicted to be active where its score is > 0.

    In the tokens that it was trained on, as many scores of a target are > 0 as neurons are active. In others more or
    fewer may be, so :class:`PredictionQuality` does not go by that cut.

    Attributes:
        source_layer: the layer whose ``ffn_input`` it reads.
        targets: the layer, component and neurons of what it predicts, in the order of its scores.
        network: the weights.
    """

    source_layer: int
    targets: Sequence[tuple[int, str, int]]
    network: Predictor


@dataclasses.dataclass(frozen=True)
class _ActiveSets:
    """The active neurons of one component at each sampled token, a bit each."""

    layer: int
    component: str
    neurons: int
    bits: NDArray[np.uint8]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [rows, neurons]"""
        return np.unpackbits(self.bits[rows], axis=1, count=self.neurons).view(np.bool_)


@dataclasses.dataclass(frozen=True)
class _Target:
    """What one predictor says of one component.

    Attributes:
        sets: what was active.
        frequency: float32 [neurons], how often each was, in the tokens that are trained on.
        scores: where the scores of its neurons are among those of the network.
    """

    sets: _ActiveSets
    frequency: NDArray[np.float32]
    scores: slice


def predict_active_sets(
    activations: Activations, important: Sequence[ImportantNeurons], *, seed: int
) -> Iterator[tuple[LayerPredictor, list[PredictionQuality]]]:
    """Train a predictor at the first and at the middle layer, and see how well each does.

    Every fourth window of the text is held out to see that, or the last where there are fewer than four. A text of one
    window gives no predictor, and neither does a model without feed-forward networks.
    """
    thresholds = {(entry.layer, entry.component): entry.threshold for entry in important}
    layers = [layer for layer, component in activations.components if component == SOURCE]
    windows = activations.positions // activations.provenance.window
    held_out = _held_out(windows)
    if not layers or not held_out.any():
        logger.warning("no predictor is trained: it takes two windows of text, and a feed-forward network")
        return
    sets = [
        _active_sets(activations, layer, component, thresholds[layer, component])
        for layer, component in activations.components
        if component in TARGETS
    ]
    for source in sorted({layers[0], layers[len(layers) // 2]}):
        behind = [of for of in sets if of.layer > source or (of.layer, of.component) == (source, DOWN_INPUT)]
        states = activations.of(source, SOURCE)
        is_finite = np.isfinite(states).all(axis=1)
        trained_on, seen = np.flatnonzero(~held_out & is_finite), np.flatnonzero(held_out & is_finite)
        if behind and trained_on.size and seen.size:
            targets = list(_targets(behind, trained_on))
            network = _train(states, trained_on, targets, seed)
            followers = _with_previous(activations.positions, windows, seen)
            follow = followers.size >= _FEWEST_FOLLOWERS
            judged = followers if follow else seen
            predicted = [(target.sets.layer, target.sets.component, target.sets.neurons) for target in targets]
            qualities = list(_qualities(source, network, states[judged], targets, rows=judged, follow=follow))
            yield LayerPredictor(source, predicted, network), qualities


def _held_out(windows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are not trained on, by the window of the text that each is in."""
    numbers, places = np.unique(windows, return_inverse=True)
    if len(numbers) < 2:
        return np.zeros(len(windows), np.bool_)
    held_out = np.arange(len(numbers)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    held_out[-1] |= not held_out.any()
    rows: NDArray[np.bool_] = held_out[places]
    return rows


def _active_sets(activations: Activations, layer: int, component: str, threshold: float) -> _ActiveSets:
    active = is_important(activations.of(layer, component), threshold)
    return _ActiveSets(layer, component, active.shape[1], np.packbits(active, axis=1))


def _with_previous(
    positions: NDArray[np.int64], windows: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows whose token directly follows that of the row before, in the same window."""
    later = rows[rows > 0]
    follows = (positions[later - 1] == positions[later] - 1) & (windows[later - 1] == windows[later])
    followers: NDArray[np.int64] = later[follows]
    return followers


def _targets(sets: Sequence[_ActiveSets], trained_on: NDArray[np.int64]) -> Iterator[_Target]:
    begin = 0
    for of in sets:
        frequency = of.of(trained_on).mean(axis=0, dtype=np.float32)
        yield _Target(of, frequency, slice(begin, begin + of.neurons))
        begin += of.neurons


def _train(states: NDArray[np.float32], rows: NDArray[np.int64], targets: Sequence[_Target], seed: int) -> Predictor:
    """Train, then move the scores of each target so that as many are above 0 as are active in the same tokens."""

    def active(batch: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.concatenate([target.sets.of(rows[batch]) for target in targets], axis=1)

    frequency = np.concatenate([target.frequency for target in targets])
    network = train(states[rows], active, frequency, seed=seed)
    hidden = network.hidden(states[rows])
    shifted = network.second_bias.copy()
    for target in targets:
        shifted[target.scores] -= _cut(network.scores(hidden, target.scores), float(target.frequency.mean()))
    return dataclasses.replace(network, second_bias=shifted)


def _cut(scores: NDArray[np.float32], share: float) -> float:
    """What ``share`` of the scores lie above."""
    if share <= 0:
        return float(scores.max()) + 1
    return float(np.quantile(scores, 1 - share))


def _qualities(
    source: int,
    network: Predictor,
    states: NDArray[np.float32],
    targets: Sequence[_Target],
    *,
    rows: NDArray[np.int64],
    follow: bool,
) -> Iterator[PredictionQuality]:
    """How well each target is predicted at ``rows``, whose previous tokens are the rows before if they ``follow``."""
    hidden = network.hidden(states)
    for target in targets:
        sets = target.sets
        active = sets.of(rows)
        count = int(np.count_nonzero(active))
        predicted = highest(network.scores(hidden, target.scores), count)
        hot = np.broadcast_to(highest(target.frequency, round(count / len(rows))), active.shape)
        recall, precision = recall_and_precision(active, predicted)
        hot_recall, hot_precision = recall_and_precision(active, hot)
        previous_recall, previous_precision = (
            recall_and_precision(active, sets.of(rows - 1)) if follow else (np.nan, np.nan)
        )
        yield PredictionQuality(
            source_layer=source,
            layer=sets.layer,
            component=sets.component,
            distance=sets.layer - source,
            active_share=float(active.mean()),
            predicted_share=float(predicted.mean()),
            recall=recall,
            precision=precision,
            hot_recall=hot_recall,
            hot_precision=hot_precision,
            previous_recall=previous_recall,
            previous_precision=previous_precision,
            tokens=len(rows),
        )


def highest(scores: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Where the ``count`` highest of all scores are, in an array of the same shape; of equal ones, any."""
    chosen = np.zeros(scores.shape, np.bool_)
    chosen.flat[np.argpartition(-scores, min(count, scores.size - 1), axis=None)[:count]] = True
    return chosen


def recall_and_precision(active: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[float, float]:
    """The shares of active entries that are predicted, and of predicted entries that are active; NaN of none."""
    both, of_active, of_predicted = (int(np.count_nonzero(of)) for of in (active & predicted, active, predicted))
    return both / of_active if of_active else np.nan, both / of_predicted if of_predicted else np.nan


def f1(recall: float, precision: float) -> float:
    """The harmonic mean of recall and precision: both, where as many are predicted as are active. NaN of no recall."""
    return 2 * recall * precision / (recall + precision) if recall else 0.0
