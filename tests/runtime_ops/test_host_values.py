"""Copies of what the host knows, on a device."""

import weakref

import torch

from sparsecc.runtime_ops.triton.operators.host_values import copy_on


def test_a_copy_outlives_any_number_of_others():
    """A CUDA graph reads the copies that were made when it was captured."""
    device = torch.device("meta")
    first = weakref.ref(copy_on(torch.tensor([-1]), device))
    for entry in range(5000):
        copy_on(torch.tensor([entry]), device)
    assert first() is not None
    assert copy_on(torch.tensor([-1]), device) is first()
