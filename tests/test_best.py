"""Which method `best` takes, and that it says why another was left out."""

import sys

import pytest

from sparsecc.errors import SparseccError
from sparsecc.methods import METHODS

ORDER = ("rotated_fisher", "fisher", "teal")


@pytest.mark.parametrize("unfit", range(len(ORDER)))
def test_the_first_method_that_fits_is_taken(unfit, monkeypatch, capsys):
    def method_of(index):
        def method(*given):
            if index < unfit:
                raise SparseccError("it does not fit this model; use another")
            return ORDER[index], *given

        return method

    for index, name in enumerate(ORDER):
        monkeypatch.setattr(sys.modules["sparsecc.methods.best"], name, method_of(index))
    assert METHODS["best"]("a model", 0.5) == (ORDER[unfit], "a model", 0.5)
    assert capsys.readouterr().err.count("it does not fit this model") == unfit
