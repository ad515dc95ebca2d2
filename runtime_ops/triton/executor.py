"""Run an ONNX graph with torch: on a GPU with kernels for the sparse operators, on a CPU without."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.constants import Constants
from sparsecc.runtime_ops.triton.current_device import on_device
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN
from sparsecc.runtime_ops.triton.failures import executor_failures
from sparsecc.runtime_ops.triton.operators import OPERATORS
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Placement, name_of

_OLDEST_OPSET = 13
_KEPT_PLANS = 64
Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class _Step:
    """One node: what it computes, from which constants and named values, and under which names."""

    node_name: str
    kernel: Kernel
    arguments: tuple[torch.Tensor | str | None, ...]
    results: tuple[str, ...]

    @property
    def reads(self) -> Iterator[str]:
        return (argument for argument in self.arguments if isinstance(argument, str))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The steps that some outputs need, each with the values that nothing reads after it."""

    steps: tuple[tuple[_Step, tuple[str, ...]], ...]
    inputs: frozenset[str]


class GraphExecutor:
    """A graph whose constants are loaded and whose nodes are functions of torch tensors.

    Every operator is functional but one: a GroupQueryAttention whose cache is given as an input of the graph, longer
    than what it holds, writes new keys and values into it, as onnxruntime does where past and present share a buffer.
    All else can be differentiated by torch.autograd, with respect to anything that is given or edited.

    Args:
        model: a decoder or any other graph of operators that the executor knows; functions of its own are inlined.
            It is not changed.
        device: where to compute. Constants are loaded there once; small integers stay on the host.
        dtype: what stands for the graph's float32, constants included.
        passes: rewrite the executor's copy of the model first, also to operators that no file may name.

    Raises:
        SparseccError: a node's operator, or what it asks of it, is not known; the message names both.
    """

    def __init__(
        self,
        model: ir.Model,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        passes: Sequence[ir.passes.InPlacePass] = (),
    ) -> None:
        self.placement = Placement(torch.device(device), dtype)
        with executor_failures("the executor cannot read the graph", self.placement.device):
            model = _rewritten(model, passes)
        if model.opset_imports.get("", _OLDEST_OPSET) < _OLDEST_OPSET:
            raise SparseccError(f"the executor reads opset {_OLDEST_OPSET} and newer; run the model with --device cpu")
        constants = Constants(self.placement)
        self.input_names = tuple(str(value.name) for value in model.graph.inputs)
        self.output_names = tuple(str(value.name) for value in model.graph.outputs)
        self._steps = tuple(_bind(node, self.placement, constants) for node in model.graph)
        self._plan_for = functools.lru_cache(_KEPT_PLANS)(self._plan)

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Sequence[str],
        edits: Mapping[str, Edit] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute some values of the graph, and nothing that they do not need.

        Args:
            inputs: what is known, by name: inputs of the graph, or any values in it, which then are not computed.
            outputs: the names of the values to compute.
            edits: functions of values by name: what one returns takes the value's place for all that follows, and in
                what is returned. With ``{hidden_state: lambda h: h.detach().requires_grad_()}`` gradients reach back
                to that hidden state, as with ``torch.autograd.grad(loss, results[hidden_state])``.

        Raises:
            SparseccError: a value is not in the graph or needs an input that is missing, or a node cannot be computed.
        """
        plan = self._plan_for(tuple(outputs), frozenset(inputs))
        device = self.placement.device
        with executor_failures("the executor cannot take its inputs", device):
            values = {name: inputs[name].to(device) for name in plan.inputs}
        edits = edits or {}
        for name in values.keys() & edits.keys():
            values[name] = edits[name](values[name])
        with on_device(device):
            for step, unused in plan.steps:
                results = self._computed(step, values)
                if any(name and name not in unused for name in step.results[len(results) :]):
                    raise SparseccError(f"{step.node_name} has {len(step.results)} outputs and gives {len(results)}")
                for name, result in zip(step.results, results, strict=False):
                    if name:
                        values[name] = edits[name](result) if name in edits else result
                for name in unused:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _computed(self, step: _Step, values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        arguments = [values[slot] if isinstance(slot, str) else slot for slot in step.arguments]
        with executor_failures(f"the executor cannot compute {step.node_name}", self.placement.device):
            results = step.kernel(*arguments)
        return results if isinstance(results, tuple) else (results,)

    def _plan(self, outputs: tuple[str, ...], given: frozenset[str]) -> _Plan:
        """Walk back from the outputs to what is given."""
        wanted, chosen = set(outputs), []
        for step in reversed(self._steps):
            if any(name in wanted and name not in given for name in step.results if name):
                chosen.append(step)
                wanted.update(step.reads)
        computed = {name for step in chosen for name in step.results}
        missing = wanted - computed - given
        if missing:
            raise SparseccError(f"the graph computes no {', '.join(sorted(missing))}; give it as an input")
        computing = [
            dataclasses.replace(step, results=tuple("" if name in given else name for name in step.results))
            for step in chosen
        ]
        return _Plan(_with_last_uses(computing, frozenset(outputs)), frozenset(wanted & given))


def _with_last_uses(last_to_first: Sequence[_Step], kept: frozenset[str]) -> tuple[tuple[_Step, tuple[str, ...]], ...]:
    seen, steps = set(kept), []
    for step in last_to_first:
        mentioned = {*step.reads, *filter(None, step.results)}
        steps.append((step, tuple(mentioned - seen)))
        seen |= mentioned
    return tuple(reversed(steps))


def _rewritten(model: ir.Model, passes: Sequence[ir.passes.InPlacePass]) -> ir.Model:
    """A copy after the passes, without the functions whose operators the executor has no kernels for."""
    copy = model.clone()
    graphs: list[ir.Graph | ir.Function] = [copy.graph, *copy.functions.values()]
    for node in (node for graph in graphs for node in graph.all_nodes()):
        if node.domain == EXECUTOR_DOMAIN:
            raise _unknown(node)
    for graph_pass in passes:
        graph_pass(copy)
    InlinePass(criteria=lambda function: (function.domain, function.name) not in OPERATORS)(copy)
    return copy


def _bind(node: ir.Node, placement: Placement, constants: Constants) -> _Step:
    operator = OPERATORS.get((node.domain, node.op_type))
    if operator is None:
        raise _unknown(node)
    name = f"{node.op_type} {name_of(node)}"
    with executor_failures(f"the constants of {name} cannot be loaded", placement.device):
        arguments = tuple(
            _argument(value, constants, as_stored=index in operator.as_stored)
            for index, value in enumerate(node.inputs)
        )
    with executor_failures(f"{name} is damaged", placement.device):
        kernel = operator.bind(node, placement)
    results = tuple(value.name or "" for value in node.outputs)
    return _Step(name, kernel, arguments, results)


def _unknown(node: ir.Node) -> SparseccError:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return SparseccError(f"node {name_of(node)} is a {name}, which the executor does not know; run with --device cpu")


def _argument(value: ir.Value | None, constants: Constants, *, as_stored: bool) -> torch.Tensor | str | None:
    if value is None or not value.name:
        return None
    if value.is_initializer() and value.const_value is not None:
        return constants.tensor(value, as_stored=as_stored)
    return value.name
