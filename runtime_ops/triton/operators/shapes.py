"""Operators that say, change or make shapes, and move entries without computing with them."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.operators.host_values import copy_on
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement, integers, name_of, require


def tensor_of(constant: ir.TensorProtocol, placement: Placement) -> torch.Tensor:
    """A small constant of a graph: integers on the host, where shapes are computed, floats on the device."""
    dtype = placement.torch_type(constant.dtype)
    tensor = torch.from_numpy(np.array(constant.numpy())).to(dtype)
    return tensor.to(placement.device) if tensor.is_floating_point() else tensor


def _bind_constant(node: ir.Node, placement: Placement) -> Kernel:
    (attribute,) = node.attributes.values()
    if attribute.name == "value":
        constant = tensor_of(attribute.as_tensor(), placement)
    else:
        kind = attribute.name.removeprefix("value_")
        require(kind in ("int", "ints", "float", "floats"), node, f"has a {attribute.name}")
        dtype = placement.dtype if kind.startswith("float") else torch.int64
        constant = torch.tensor(attribute.value, dtype=dtype)
        constant = constant.to(placement.device) if kind.startswith("float") else constant
    return lambda: constant


def _bind_constant_of_shape(node: ir.Node, placement: Placement) -> Kernel:
    attribute = node.attributes.get("value")
    fill = (
        tensor_of(attribute.as_tensor(), placement)
        if attribute
        else torch.zeros(1, dtype=placement.dtype, device=placement.device)
    )
    return lambda shape: fill.expand(integers(shape)) if integers(shape) else fill.reshape(())


def _bind_shape(node: ir.Node, _placement: Placement) -> Kernel:
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return lambda tensor: torch.tensor(tensor.shape[start:end], dtype=torch.int64)


def _bind_reshape(node: ir.Node, _placement: Placement) -> Kernel:
    takes_zeros = bool(node.attributes.get_int("allowzero", 0))

    def reshape(tensor: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        sizes = integers(shape)
        if not takes_zeros:
            sizes = [size or tensor.shape[axis] for axis, size in enumerate(sizes)]
        return tensor.reshape(sizes)

    return reshape


def _bind_flatten(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", 1)

    def flatten(tensor: torch.Tensor) -> torch.Tensor:
        place = axis if axis >= 0 else axis + tensor.dim()
        return tensor.reshape(math.prod(tensor.shape[:place]), math.prod(tensor.shape[place:]))

    return flatten


def _bind_transpose(node: ir.Node, _placement: Placement) -> Kernel:
    order = tuple(node.attributes.get_ints("perm", ()))
    return lambda tensor: tensor.permute(order or tuple(reversed(range(tensor.dim()))))


def _bind_unsqueeze(node: ir.Node, _placement: Placement) -> Kernel:
    fixed = list(node.attributes.get_ints("axes", ()))

    def unsqueeze(tensor: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        chosen = fixed if axes is None else integers(axes)
        rank = tensor.dim() + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            tensor = tensor.unsqueeze(axis)
        return tensor

    return unsqueeze


def _bind_squeeze(node: ir.Node, _placement: Placement) -> Kernel:
    fixed = list(node.attributes.get_ints("axes", ()))

    def squeeze(tensor: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        chosen = fixed if axes is None else integers(axes)
        return tensor.squeeze(tuple(chosen)) if chosen else tensor.squeeze()

    return squeeze


def _expand(tensor: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    sizes = integers(shape)
    own = [1] * (len(sizes) - tensor.dim()) + list(tensor.shape)
    given = [1] * (tensor.dim() - len(sizes)) + sizes
    return tensor.expand([other if size == 1 else size for size, other in zip(own, given, strict=True)])


def _bind_concat(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis")

    def concat(*tensors: torch.Tensor) -> torch.Tensor:
        device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))
        return torch.cat([copy_on(tensor, device) for tensor in tensors], axis)

    return concat


def _bind_split(node: ir.Node, _placement: Placement) -> Kernel:
    axis, pieces = node.attributes.get_int("axis", 0), len(node.outputs)

    def split(tensor: torch.Tensor, widths: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        sizes = -(-tensor.shape[axis] // pieces) if widths is None else integers(widths)
        parts = torch.split(tensor, sizes, axis)
        if len(parts) != pieces:
            raise SparseccError(f"Split {name_of(node)} has {pieces} outputs and gives {len(parts)}")
        return parts

    return split


def _slice(
    tensor: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    axes: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    places = integers(axes) if axes is not None else range(starts.numel())
    strides = integers(steps) if steps is not None else [1] * starts.numel()
    for axis, start, end, stride in zip(places, integers(starts), integers(ends), strides, strict=True):
        chosen = range(tensor.shape[axis])[start:end:stride]
        if stride > 0:
            cut = [slice(None)] * tensor.dim()
            cut[axis] = slice(chosen.start, chosen.stop, chosen.step)
            tensor = tensor[tuple(cut)]
        else:
            tensor = tensor.index_select(axis, copy_on(torch.tensor(list(chosen), dtype=torch.int64), tensor.device))
    return tensor


def _range(start: torch.Tensor, limit: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype, device=start.device)


def _bind_gather(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", 0)

    def gather(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        place = axis % tensor.dim()
        indices = copy_on(indices, tensor.device).long()
        indices = torch.where(indices < 0, indices + tensor.shape[place], indices)
        rows = tensor.index_select(place, indices.reshape(-1))
        return rows.reshape((*tensor.shape[:place], *indices.shape, *tensor.shape[place + 1 :]))

    return gather


def _bind_gather_elements(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", 0)

    def gather_elements(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        indices = copy_on(indices, tensor.device).long()
        return tensor.gather(axis, torch.where(indices < 0, indices + tensor.shape[axis], indices))

    return gather_elements


def _bind_scatter_elements(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", 0)
    require(node.attributes.get_string("reduction", "none") == "none", node, "reduces what it scatters")

    def scatter_elements(tensor: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        indices = copy_on(indices, tensor.device).long()
        return tensor.scatter(axis, torch.where(indices < 0, indices + tensor.shape[axis], indices), updates)

    return scatter_elements


OPERATORS = {
    ("", "Concat"): Operator(_bind_concat),
    ("", "Constant"): Operator(_bind_constant),
    ("", "ConstantOfShape"): Operator(_bind_constant_of_shape),
    ("", "Expand"): Operator(lambda _node, _placement: _expand),
    ("", "Flatten"): Operator(_bind_flatten),
    ("", "Gather"): Operator(_bind_gather),
    ("", "GatherElements"): Operator(_bind_gather_elements),
    ("", "NonZero"): Operator(lambda _node, _placement: lambda tensor: torch.nonzero(tensor).t()),
    ("", "Range"): Operator(lambda _node, _placement: _range),
    ("", "Reshape"): Operator(_bind_reshape),
    ("", "ScatterElements"): Operator(_bind_scatter_elements),
    ("", "Shape"): Operator(_bind_shape),
    ("", "Size"): Operator(lambda _node, _placement: lambda tensor: torch.tensor(tensor.numel())),
    ("", "Slice"): Operator(lambda _node, _placement: _slice),
    ("", "Split"): Operator(_bind_split),
    ("", "Squeeze"): Operator(_bind_squeeze),
    ("", "Tile"): Operator(lambda _node, _placement: lambda tensor, repeats: tensor.repeat(integers(repeats))),
    ("", "Transpose"): Operator(_bind_transpose),
    ("", "Unsqueeze"): Operator(_bind_unsqueeze),
}
