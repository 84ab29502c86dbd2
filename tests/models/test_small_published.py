"""Tiny Darknet, DoodleNet, CREPE: sizes, cuts, precision, recomputation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.applying import applied, drawn
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import STATISTICS, leaf_shapes, published_head

# Parameters with the published number of classes, without statistics of BatchNorm.
PARAMETERS = {"tiny_darknet": (1000, 1_042_104), "doodlenet": (345, 544_201), "crepe_tiny": (360, 486_552),
              "crepe_full": (360, 22_239_976)}
SHAPES = {"tiny_darknet": ((1, 50, 33, 3), {"stage1": (1, 50, 33, 16), "stage3": (1, 13, 9, 128),
                                            "stage5": (1, 4, 3, 128), "pooled": (1, 128)}),
          "doodlenet": ((2, 8, 64, 3), {"stage1": (2, 4, 32, 16), "stage3": (2, 1, 8, 64), "pooled": (2, 512)}),
          "crepe_tiny": ((2, 3000, 1), {"block1": (2, 375, 128), "block6": (2, 11, 64), "pooled": (2, 64)})}


def taps_of(shape, **component):
    module = build_backbone(Component(**component))
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0],
                          jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("kind", PARAMETERS)
def test_number_of_parameters_is_the_published_one(kind):
    classes, expected = PARAMETERS[kind]
    module = build_backbone(Component(kind=kind))
    leaves = leaf_shapes(module, published_head(module, classes))
    assert sum(np.prod(leaf.shape) for path, leaf in leaves.items()
               if path.rpartition("/")[2] not in STATISTICS) == expected


@pytest.mark.parametrize("kind", SHAPES)
def test_other_sizes_of_the_input(kind):
    shape, expected = SHAPES[kind]
    found = taps_of(shape, kind=kind)
    assert {tap: found[tap].shape for tap in expected} == expected
    assert set(found) == set(build_backbone(Component(kind=kind)).tap_names)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_cut_network_has_no_parameters_behind_the_cut(kind):
    whole = build_backbone(Component(kind=kind))
    everything, before = leaf_shapes(whole), 0
    for tap in whole.tap_names:
        leaves = leaf_shapes(build_backbone(Component(kind=kind, until=tap)))
        assert set(leaves) <= set(everything) and len(leaves) >= before
        before = len(leaves)
    assert before == len(everything)
    assert len(leaf_shapes(build_backbone(Component(kind=kind, until=whole.tap_names[0])))) < len(everything) / 3


@pytest.mark.parametrize("kind", SHAPES)
def test_half_precision_and_recomputation(kind):
    x = jnp.zeros(SHAPES[kind][0])
    half = build_backbone(Component(kind=kind), jnp.bfloat16)
    taps, variables = jax.eval_shape(lambda: half.init_with_output(jax.random.key(0), x))
    assert all(tap.dtype == jnp.bfloat16 for tap in taps.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    again = build_backbone(Component(kind=kind, remat=True))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(lambda: again.init(jax.random.key(0), x)))
    rngs = {"dropout": jax.random.key(1)}
    program = jax.make_jaxpr(jax.grad(lambda v: again.apply(v, x, train=True, rngs=rngs, mutable=["batch_stats"])[0][
        "pooled"].sum()))(variables)
    assert "remat" in str(program)


def test_dropout_acts_in_training_only():
    for kind, shape in (("doodlenet", (1, 28, 28, 1)), ("crepe_tiny", (1, 1024))):
        module = build_backbone(Component(kind=kind))
        x = jax.random.normal(jax.random.key(0), shape)
        variables = drawn(module, x)

        @jax.jit
        def run(seed, module=module, variables=variables, x=x):
            found, _ = module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)},
                                    mutable=["batch_stats"])
            return found["pooled"]

        assert not np.array_equal(run(2), run(3))
        applied(module, variables, x)  # needs no rng


@pytest.mark.parametrize(("samples", "tap"), [(5, "block1"), (13, "block2"), (253, None), (253, "block6")])
def test_least_lengths_of_sound(samples, tap):
    found = taps_of((1, samples), kind="crepe_tiny", until=tap)
    assert all(0 not in value.shape for value in found.values())
    with pytest.raises(UserError, match=f"{samples - 1} samples is too short .* at least {samples}"):
        taps_of((1, samples - 1), kind="crepe_tiny", until=tap)


@pytest.mark.parametrize(("shape", "component", "words"), [
    ((1, 1024, 2), {"kind": "crepe_tiny"}, "takes mono audio"), ((1, 8, 8, 1), {"kind": "crepe_tiny"}, "mono audio"),
    ((1, 1024), {"kind": "crepe_tiny", "size": "smal"}, "did you mean 'small'"),
    ((1, 7, 9, 1), {"kind": "doodlenet"}, "at least 8 x 8")])
def test_mistakes_become_one_sentence(shape, component, words):
    with pytest.raises(UserError, match=words) as caught:
        taps_of(shape, **component)
    assert "\n" not in str(caught.value)
