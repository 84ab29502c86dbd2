"""Networks are tested at a few small inputs: compilation is what takes the time."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick(quick_compilation):
    """For all tests of this folder."""
