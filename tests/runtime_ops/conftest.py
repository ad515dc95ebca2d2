"""What every test of the operators may run with."""

from collections.abc import Iterator

import pytest

from .one_op import cached_session


@pytest.fixture(params=["fastest", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once with each set of kernels, of which it gives the name."""
    monkeypatch.setenv("SPARSECC_KERNELS", request.param)
    cached_session.cache_clear()
    yield request.param
    cached_session.cache_clear()
