"""Which method `best` takes, and that it says why another was left out."""

import sys
from types import SimpleNamespace

import pytest

from sparsecc.errors import MisfitError, SparseccError
from sparsecc.methods import METHODS

ORDER = ("rotated_fisher", "fisher", "teal")


@pytest.mark.parametrize("unfit", range(len(ORDER)))
def test_the_first_method_that_fits_is_taken(unfit, monkeypatch, capsys):
    def method_of(index):
        def method(*given):
            if index < unfit:
                raise MisfitError(f"{index} does not fit this model; use another")
            return ORDER[index], *given

        return method

    for index, name in enumerate(ORDER):
        monkeypatch.setattr(sys.modules["sparsecc.methods.best"], name, method_of(index))
    model = SimpleNamespace(projections=[], weights="fp32")
    assert METHODS["best"](model, 0.5) == (ORDER[unfit], model, 0.5)
    assert capsys.readouterr().err.count("does not fit this model") == unfit


def test_a_model_that_is_large_for_the_memory_is_not_differentiated(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["sparsecc.methods.best"], "teal", lambda *given: given)
    read = SimpleNamespace(name="hidden")
    model = SimpleNamespace(
        projections=[SimpleNamespace(weight_count=10**14, channels=10**7, input=read)], weights="fp32"
    )
    assert METHODS["best"](model, 0.5) == (model, 0.5)
    assert capsys.readouterr().err.count("GB of memory") == 2


def test_a_mistake_is_not_passed_over(monkeypatch):
    def mistaken(*_given):
        raise SparseccError("gradients are not finite; check the checkpoint")

    monkeypatch.setattr(sys.modules["sparsecc.methods.best"], "rotated_fisher", mistaken)
    with pytest.raises(SparseccError, match="not finite"):
        METHODS["best"](SimpleNamespace(projections=[], weights="fp32"), 0.5)


@pytest.mark.parametrize(("weights", "sparsity", "taken"), [("int4", 0.25, "fisher"), ("int8", 0.25, "rotated_fisher")])
def test_int4_weights_are_not_rotated_for_a_low_sparsity(monkeypatch, weights, sparsity, taken):
    for name in ORDER:
        monkeypatch.setattr(sys.modules["sparsecc.methods.best"], name, lambda *_given, name=name: name)
    assert METHODS["best"](SimpleNamespace(projections=[], weights=weights), sparsity) == taken
