"""Our settings of the compiler apply where it knows them, and cost nothing but speed where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core import compilation


@pytest.fixture(autouse=True)
def _forgotten():
    compilation.compiler_settings.cache_clear()
    yield
    compilation.compiler_settings.cache_clear()


def test_compiled_computes_the_same_and_takes_over_donated_buffers():
    x = jnp.arange(6.0).reshape(2, 3)
    expected = np.asarray(x) * 2 + 1
    run = compilation.compiled(lambda x, y: x * 2 + y, donate_argnums=0)
    np.testing.assert_array_equal(run(x, 1.0), expected)
    assert x.is_deleted()


def test_unknown_settings_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "CPU_SETTINGS", {"no_such_setting": "1"})
    assert compilation.compiler_settings() == {}
    assert compilation.compiled(lambda: jnp.float32(3))() == 3


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="settings of the CPU's compiler")
def test_convolutions_stay_with_the_compiler_itself():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def program(function):
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 32), (3, 3, 32, 32)))
        return function.lower(*shapes).compile().as_text()

    if "__ynn" not in program(jax.jit(convolve)):
        pytest.skip("this version of the compiler keeps convolutions to itself anyway")
    assert "__ynn" not in program(compilation.compiled(convolve))
