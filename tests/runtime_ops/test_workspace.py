"""What kernels leave notes in."""

import torch

from sparsecc.runtime_ops.triton.decode_attention import _notes
from sparsecc.runtime_ops.triton.workspace import Workspace, workspace

CPU = torch.device("cpu")


def test_grows_and_keeps_what_was_given() -> None:
    space = Workspace(CPU)
    for part, content in ((space.indices, None), (space.sums, None), (space.slots, -1), (space.tickets, 0)):
        first = part(10)
        larger = part(first.numel() + 1)
        assert larger.numel() > first.numel()
        assert part(10) is larger
        assert content is None or bool((larger == content).all())
        assert any(kept[0] is first for kept in vars(space).values())


def test_attention_leaves_its_notes_in_the_workspace_of_the_stream() -> None:
    largest, weight, partial, tickets = _notes(CPU, 2, 32)
    assert tickets is workspace(CPU).tickets(2)
    whole = workspace(CPU).sums(0).data_ptr()
    assert [largest.data_ptr() - whole, weight.data_ptr() - whole] == [0, largest.nbytes]
    assert partial.numel() == 32 * weight.numel()
