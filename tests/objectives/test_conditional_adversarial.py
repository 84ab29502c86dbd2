"""CDAN: features and predictions together behind a reversed gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import conditional_adversarial, domain_adversarial
from transfer_jax.objectives.conditional import outer_product, randomized_product

FOUR = ("source_features", "source_task_logits", "target_features", "target_task_logits")


def draw(rng, sources=None, targets=None):
    sources, targets = sources or rng.integers(1, 9), targets or rng.integers(1, 9)
    length, classes = rng.integers(1, 6), rng.integers(2, 6)
    shapes = ((sources, length), (sources, classes), (targets, length), (targets, classes))
    arrays = {name: rng.normal(0, 1.5, shape) for name, shape in zip(FOUR, shapes, strict=True)}
    return arrays, rng.normal(size=(length * classes, 1))


def written_out(x, constants, head, entropy_weights, through_predictions):
    """The mean over the domains of sum_i w_i loss_i / sum_i w_i, element by element."""
    total = 0.0
    for domain, sign in (("source", 1), ("target", -1)):
        above = below = 0.0
        for i in range(len(x[f"{domain}_features"])):
            scores = (x if through_predictions else constants)[f"{domain}_task_logits"][i]
            certain = softmax(constants[f"{domain}_task_logits"][i])
            weight = 1 + np.exp(np.sum(certain * np.log(certain))) if entropy_weights else 1.0
            joint = [g * f for g in softmax(scores) for f in x[f"{domain}_features"][i]]
            above += weight * np.log1p(np.exp(-sign * np.dot(joint, head[:, 0])))
            below += weight
        total += above / below / 2
    return total


def test_the_loss_is_its_definition_and_the_gradient_is_reversed():
    for seed in range(20):
        arrays, head = draw(np.random.default_rng(seed))
        options = {"entropy_weights": seed % 2 == 0, "through_predictions": seed % 4 < 2}

        def term(head=head, options=options, **x):
            return conditional_adversarial(*(x[name] for name in FOUR), lambda joint: joint @ jnp.asarray(head),
                                           jnp.asarray(0.5), schedule="constant", max_scale=0.7, **options)

        def definition(x, constants, head=head, options=options):
            return written_out(x, constants, head, **options)

        agrees(term, definition, arrays, seed, slope_of=lambda x, c, d=definition: -0.7 * d(x, c))


def test_the_critic_descends_while_the_features_ascend():
    arrays, head = draw(np.random.default_rng(3), 6, 5)

    def loss(features, head):
        return conditional_adversarial(features, arrays["source_task_logits"], arrays["target_features"],
                                       arrays["target_task_logits"], lambda joint: joint @ head, jnp.ones(()))[0]

    features, head = jnp.asarray(arrays["source_features"], jnp.float32), jnp.asarray(head, jnp.float32)
    slopes = jax.grad(loss, (0, 1))(features, head)
    assert loss(features - 0.05 * slopes[0], head) > loss(features, head)
    assert loss(features, head - 0.05 * slopes[1]) < loss(features, head)


def test_no_gradient_reaches_the_predictions_through_the_weights():
    arrays, head = draw(np.random.default_rng(4), 6, 5)

    def loss(logits):
        return conditional_adversarial(arrays["source_features"], logits, arrays["target_features"],
                                       arrays["target_task_logits"], lambda joint: joint @ head, jnp.ones(()),
                                       entropy_weights=True)[0]

    assert not np.any(jax.grad(loss)(jnp.asarray(arrays["source_task_logits"])))


def test_randomized_inner_products_approach_the_exact_ones():
    rng = np.random.default_rng(0)
    features, probabilities = rng.normal(size=(6, 40)).astype(np.float32), softmax(rng.normal(size=(6, 7)))
    exact = outer_product(features, probabilities)
    exact = exact @ exact.T
    errors = []
    for size in (64, 1024, 16384):
        product = randomized_product(features, jnp.asarray(probabilities, jnp.float32), size, seed=1)
        assert product.shape == (6, size)
        errors.append(np.abs(product @ product.T - exact).max() / np.abs(exact).max())
    assert errors[2] < 0.1 and errors[2] < errors[1] < errors[0]
    several = [randomized_product(features, jnp.asarray(probabilities, jnp.float32), 256, seed) for seed in range(200)]
    products = np.stack([x @ x.T for x in several])
    error = products.std(0) / np.sqrt(200)
    assert np.all(np.abs(products.mean(0) - exact) < 5 * error)


def test_the_projection_is_fixed_and_used_for_large_products_alone():
    shapes = {}

    def head(joint):
        shapes["last"] = joint.shape
        return jnp.sum(jnp.sin(joint), axis=-1)

    def loss(length, **options):
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=shape) for shape in ((3, length), (3, 5), (2, length), (2, 5))]
        return conditional_adversarial(*arrays, head, jnp.ones(()), **options)[0], shapes["last"]

    assert loss(819)[1] == (5, 4095) and loss(820)[1] == (5, 1024)
    assert loss(10, randomized=True, size=32)[1] == (5, 32)
    assert loss(820)[0] == loss(820)[0] != loss(820, seed=1)[0]


def test_it_differs_from_the_unconditional_term():
    arrays, _ = draw(np.random.default_rng(5), 6, 5)
    plain = domain_adversarial(arrays["source_features"], arrays["target_features"], lambda x: jnp.sum(x, -1),
                               jnp.ones(()))[0]
    values = [conditional_adversarial(*arrays.values(), lambda x: jnp.sum(x * x, -1), jnp.ones(()),
                                      entropy_weights=weighted)[0] for weighted in (False, True)]
    assert len({round(float(value), 4) for value in (plain, *values)}) == 3


def test_sure_predictions_and_single_examples_stay_finite():
    arrays, head = draw(np.random.default_rng(6), 1, 1)
    arrays["source_task_logits"] *= 1e4
    finite(lambda **x: conditional_adversarial(*(x[name] for name in FOUR), lambda joint: joint @ head, jnp.ones(()),
                                               entropy_weights=True, through_predictions=True), arrays)


def test_maps_are_refused():
    with pytest.raises(UserError, match="pooled tap"):
        conditional_adversarial(np.ones((2, 3, 3, 4)), np.ones((2, 3)), np.ones((2, 4)), np.ones((2, 3)), jnp.sum,
                                jnp.ones(()))
