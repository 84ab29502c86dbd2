"""Layers are tested as users run them: what the compiler makes of their lowering is half of the point.

Values and gradients, that is. Tests of what is built on those ask for `quick_unless_all`.
"""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compilation():
    """The compiler's own settings."""
