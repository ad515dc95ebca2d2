"""Which method `best` takes, and that it says why another was left out."""

import sys

import pytest

from sparsecc.errors import SparseccError
from sparsecc.methods import METHODS

SPARSITY = 0.5


def refusing(_model, _sparsity):
    raise SparseccError("it does not fit this model; use another")


@pytest.mark.parametrize(
    ("unfit", "taken"),
    [((), "rotated_fisher"), (("rotated_fisher",), "fisher"), (("rotated_fisher", "fisher"), "teal")],
)
def test_the_best_method_that_fits_is_taken(unfit, taken, monkeypatch, capsys):
    for name in ("rotated_fisher", "fisher", "teal"):
        monkeypatch.setattr(
            sys.modules["sparsecc.methods.best"],
            name,
            refusing if name in unfit else lambda model, sparsity, name=name: (name, model),
        )
    assert METHODS["best"]("a model", SPARSITY) == (taken, "a model")
    assert capsys.readouterr().err.count("it does not fit this model") == len(unfit)
