"""Quality and achieved sparsity of a model on a text, measured through onnxruntime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from sparsecc.artifact import Artifact
from sparsecc.device import Device
from sparsecc.errors import SparseccError
from sparsecc.fusion import unfuse
from sparsecc.model_file import load_model
from sparsecc.operators import is_selection
from sparsecc.passes import (
    CountActivePass,
    LimitSparseRowsPass,
    ShipFunctionsPass,
    UnfuseSparseLinearPass,
    active_count_name,
)
from sparsecc.progress import track
from sparsecc.session import open_session, run_prompt
from sparsecc.text import TokenWindows
from sparsecc.token_scores import TokenScores
from sparsecc.weight_traffic import Traffic, WeightTraffic

if TYPE_CHECKING:
    from sparsecc.runtime_ops.triton.executor_session import ExecutorSession


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model was seen to do on a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of every token of a window but its first.
        sparsity: the share of projection bytes that no token needed to read, over the whole model, less what a method
            added beside them.
        sparsity_by_kind: the same for each kind of projection.
        tokens, window: how much text was read, in tokens, and in windows of how many.
        bytes_per_token: the bytes of weights that a token read on average: projections and language-model head.
        kl_divergence: the mean of KL(reference || model) over the same tokens, in nats; None without a reference.
        top1_agreement: the share of tokens for which both found the same token likeliest; None without a reference.
    """

    perplexity: float
    sparsity: float
    sparsity_by_kind: Mapping[str, float]
    tokens: int
    window: int
    bytes_per_token: float
    kl_divergence: float | None = None
    top1_agreement: float | None = None


def evaluate(
    artifact: Artifact,
    windows: TokenWindows,
    *,
    reference: Artifact | None = None,
    threads: int = 0,
    device: Device = Device.CPU,
) -> Evaluation:
    """Evaluate a dense or sparse artifact. Every token is thresholded, also where decoding would run prompts dense.

    The ``reference``, usually the dense model, runs beside it piece by piece, so no logits are kept. A GPU computes in
    float32, as the CPU does.

    Raises:
        SparseccError: there is no such device, a window is longer than a model's context, the models have different
            vocabularies, or the perplexity or divergence is not finite.
    """
    for model in filter(None, (artifact, reference)):
        require_context(model, windows)
    compared = MeasuredModel(reference, threads, device) if reference else None
    return measure(MeasuredModel(artifact, threads, device), windows, compared)


class Predictor(Protocol):
    """What predicts the next token at every place of a window."""

    def logits(self, window: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """The logits float32 [T, vocabulary] of a window int64 [tokens], in pieces of ``PIECE_TOKENS``."""


def measure(measured: MeasuredModel, windows: TokenWindows, reference: Predictor | None) -> Evaluation:
    """As :func:`evaluate`, of a loaded model that nothing was run on yet, beside a loaded reference.

    Raises:
        SparseccError: the models have different vocabularies, or the perplexity or divergence is not finite.
    """
    scores = TokenScores()
    for window in track(windows.ids, "evaluating", len(windows.ids)):
        targets = window[1:]
        expected = reference.logits(window) if reference else None
        for logits in measured.logits(window):
            expected_logits = next(expected) if expected else None
            if expected_logits is not None and expected_logits.shape != logits.shape:
                raise SparseccError(f"{measured.directory} and its reference have different vocabularies")
            scores.add(logits, targets[: len(logits)], expected_logits)
            targets = targets[len(logits) :]
    return evaluation(scores, measured.traffic(windows.tokens), windows, measured.directory, reference is not None)


def evaluation(
    scores: TokenScores, traffic: Traffic, windows: TokenWindows, source: Path, has_reference: bool
) -> Evaluation:
    """Put together what was seen on ``windows`` of a model that lies in ``source``.

    Raises:
        SparseccError: the perplexity or the divergence is not finite.
    """
    divergence = scores.mean_divergence if has_reference else None
    if not np.isfinite([scores.perplexity, divergence or 0]).all():
        raise SparseccError(f"{source} computes no finite perplexity; check the checkpoint")
    return Evaluation(
        perplexity=scores.perplexity,
        sparsity=traffic.sparsity,
        sparsity_by_kind=traffic.sparsity_by_kind,
        tokens=windows.tokens,
        window=windows.window,
        bytes_per_token=traffic.bytes_per_token,
        kl_divergence=divergence,
        top1_agreement=scores.agreement if has_reference else None,
    )


def require_context(artifact: Artifact, windows: TokenWindows) -> None:
    """Refuse windows that a model cannot hold.

    Raises:
        SparseccError: a window is longer than the context.
    """
    if windows.window > artifact.context_length:
        raise SparseccError(
            f"windows of {windows.window} tokens exceed the context of {artifact.directory}; "
            f"use windows of {artifact.context_length} or less"
        )


class MeasuredModel:
    """A loaded model that thresholds every token and counts what its thresholds let through."""

    def __init__(self, artifact: Artifact, threads: int, device: Device = Device.CPU) -> None:
        self._artifact = artifact
        unfused = load_model(artifact.model_path)
        unfuse(unfused)
        self._weights = WeightTraffic(unfused.graph)
        model = load_model(artifact.model_path)
        try:
            for graph_pass in (
                UnfuseSparseLinearPass(),
                ShipFunctionsPass(),
                LimitSparseRowsPass(0),
                CountActivePass(),
            ):
                graph_pass(model)
        except ir.passes.PreconditionError as error:
            raise SparseccError(f"{artifact.model_path} cannot be measured: {error}; compile it again") from error
        self._counts = {node.name: active_count_name(node) for node in model.graph if is_selection(node)}
        self._active = np.zeros(len(self._counts), np.int64)
        self._session = _open(model, artifact, threads, device)

    @property
    def directory(self) -> Path:
        return self._artifact.directory

    def logits(self, window: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """The logits float32 [T, vocabulary] of a window int64 [tokens], in pieces of ``PIECE_TOKENS``."""
        outputs = [self._artifact.logits_name, *self._counts.values()]
        for logits, *counts in run_prompt(self._session, window, outputs, **self._artifact.cache_shape):
            self._active += np.array(counts, np.int64)
            yield logits[0]

    def traffic(self, tokens: int) -> Traffic:
        """What each of so many tokens read on average."""
        active = dict(zip(self._counts, (self._active / tokens).tolist(), strict=True))
        selections = {projection.name: projection.selection for projection in self._weights.projections}
        return self._weights.of({name: active[node.name] for name, node in selections.items() if node is not None})


def _open(model: ir.Model, artifact: Artifact, threads: int, device: Device) -> InferenceSession | ExecutorSession:
    if device is Device.CUDA:
        from sparsecc.runtime_ops.triton.decoding import require_gpu
        from sparsecc.runtime_ops.triton.executor_session import ExecutorSession

        return ExecutorSession(model, require_gpu())
    return open_session(
        ir.to_proto(model).SerializeToString(),
        data_folder=artifact.directory,
        ops_library=artifact.ops_library,
        threads=threads,
    )
