"""The executor behind the interface of an onnxruntime session, as far as sparsecc.session.run_prompt uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from sparsecc.runtime_ops.triton.executor import GraphExecutor


@dataclasses.dataclass(frozen=True)
class Argument:
    """An input or output of a graph."""

    name: str


class ExecutorSession:
    """A graph that computes in float32 on a device and takes and gives arrays.

    Raises:
        SparseccError: the executor cannot compute a node of the model.
    """

    def __init__(self, model: ir.Model, device: torch.device | str) -> None:
        self._executor = GraphExecutor(model, device)

    def get_inputs(self) -> list[Argument]:
        return [Argument(name) for name in self._executor.input_names]

    def get_outputs(self) -> list[Argument]:
        return [Argument(name) for name in self._executor.output_names]

    @torch.no_grad()
    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        results = self._executor.run(tensors, outputs)
        return [results[name].cpu().numpy() for name in outputs]
