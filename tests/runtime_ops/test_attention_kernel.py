"""Which attention the kernel of one token takes; all else is torch's, to compute or to refuse."""

import dataclasses
from typing import Any

import pytest
import torch

from sparsecc.runtime_ops.triton.operators import attention

SETTING = attention.AttentionSetting(6, 2, None, 0, 0.0, rotates=True, interleaved=False)
PARTS = {
    "queries": torch.zeros(1, 6, 1, 32),
    "keys": torch.zeros(1, 2, 1, 32),
    "values": torch.zeros(1, 2, 1, 32),
    "cache": (torch.zeros(1, 2, 40, 32), torch.zeros(1, 2, 40, 32)),
    "position": torch.tensor([3], dtype=torch.int32),
    "rotation": (torch.zeros(40, 16), torch.zeros(40, 16)),
    "setting": SETTING,
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "is_for_triton", lambda *_tensors: True)


def test_takes_what_fits() -> None:
    assert attention._has_kernel(**PARTS)
    assert attention._has_kernel(
        **PARTS | {"setting": dataclasses.replace(SETTING, rotates=False), "rotation": (None, None)}
    )


@pytest.mark.parametrize(
    "misfit",
    [
        {"queries": torch.zeros(2, 6, 1, 32)},
        {"keys": torch.zeros(1, 2, 1, 64)},
        {"values": torch.zeros(1, 2, 1, 16)},
        {"cache": (torch.zeros(1, 2, 40, 64), torch.zeros(1, 2, 40, 64))},
        {"cache": (torch.zeros(1, 1, 40, 32), torch.zeros(1, 1, 40, 32))},
        {"cache": (torch.zeros(1, 2, 40, 32), torch.zeros(1, 2, 20, 32))},
        {"cache": (torch.zeros(1, 2, 40, 32), torch.zeros(1, 40, 2, 32).transpose(1, 2))},
        {"cache": (torch.zeros(1, 2, 40, 32), torch.zeros(1, 2, 40, 32).half())},
        {"position": torch.tensor([3, 4])},
        {"rotation": (torch.zeros(40, 8), torch.zeros(40, 8))},
        {"rotation": (torch.zeros(40, 16), torch.zeros(20, 16))},
        {"rotation": (torch.zeros(0, 16), torch.zeros(0, 16))},
        {"rotation": (None, None)},
        {"setting": dataclasses.replace(SETTING, kv_heads=4)},
        {"setting": dataclasses.replace(SETTING, interleaved=True)},
    ],
)
def test_leaves_what_does_not_fit(misfit: dict[str, Any]) -> None:
    assert not attention._has_kernel(**PARTS | misfit)
