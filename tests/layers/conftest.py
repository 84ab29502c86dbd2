"""Layers are tested as users run them: what the compiler makes of their lowering is half of the point."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compilation():
    """The compiler's own settings."""
