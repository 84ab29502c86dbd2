"""MMD, joint MMD and local MMD against loops over all pairs, and the conventions of other libraries."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.definitions import agrees, finite, softmax
from transfer_jax.core.errors import UserError
from transfer_jax.objectives import joint_mmd, local_mmd, mmd
from transfer_jax.objectives import kernels as kernel_module
from transfer_jax.objectives.kernels import _distance_bits, order_statistic

PAIR = ("source_features", "target_features")


def draw(rng, equal=False, least=2):
    sources = rng.integers(least, 8)
    targets = sources if equal else rng.integers(least, 8)
    length = rng.integers(1, 5)
    return {"source_features": rng.normal(size=(sources, length)),
            "target_features": rng.normal(0.5, 1.5, size=(targets, length))}


def squared(x, y):
    return float(sum((a - b)**2 for a, b in zip(x, y, strict=True)))


def both(x):
    return [*x["source_features"], *x["target_features"]]


def width_of(x, rule):
    rows = both(x)
    distinct = [squared(a, b) for a, b in itertools.combinations(rows, 2)]
    every = [squared(a, b) for a in rows for b in rows]
    source = sorted(squared(a, b) for a in x["source_features"] for b in x["source_features"])
    return {"mean": np.mean(distinct), "mean_with_self": np.mean(every), "median": np.median(distinct),
            "source_median": source[(len(source) - 1) // 2]}.get(rule, rule)


def in_pairs(x, kernel, estimator):
    """The estimators, pair by pair, for any kernel of two row numbers (domain, row)."""
    source, target = ([(d, i) for i in range(len(x[name]))] for d, name in enumerate(PAIR))
    if estimator in ("linear", "ring"):
        count = min(len(source), len(target)) // 2
        pairs = [(2 * i, 2 * i + 1) for i in range(count)]
        if estimator == "ring":
            pairs = [(i, (i + 1) % len(source)) for i in range(len(source))]
        return np.mean([kernel(source[i], source[j]) + kernel(target[i], target[j]) - kernel(source[i], target[j])
                        - kernel(source[j], target[i]) for i, j in pairs])
    total = -2 * np.mean([kernel(a, b) for a in source for b in target])
    for rows in (source, target):
        total += np.mean([kernel(a, b) for a in rows for b in rows if estimator == "biased" or a != b])
    return total


def plain_mmd(x, constants, rule, multipliers, kernels, estimator):
    width = width_of(constants, rule) or 1.0

    def kernel(a, b):
        distance = squared(x[PAIR[a[0]]][a[1]], x[PAIR[b[0]]][b[1]])
        values = [np.exp(-distance / (m * width)) for m in multipliers]
        return np.mean(values) if kernels == "mean" else np.sum(values)

    return in_pairs(x, kernel, estimator)


VARIANTS = (("biased", "mean", "mean"), ("unbiased", "median", "sum"), ("linear", "source_median", "mean"),
            ("ring", "mean_with_self", "sum"), ("unbiased", 1.7, "mean"))


def test_mmd_is_its_definition():
    for seed in range(20):
        estimator, rule, kernels = VARIANTS[seed % len(VARIANTS)]
        options = {"multipliers": (0.5, 1.0, 3.0), "kernels": kernels, "estimator": estimator}
        arrays = draw(np.random.default_rng(seed), equal=estimator == "ring", least=3)
        agrees(functools.partial(mmd, bandwidth=rule, **options),
               functools.partial(plain_mmd, rule=rule, **options), arrays, seed)


# Each convention once more in the words of its library.


def tllib(x, constants, linear=False):
    z, fixed, n = np.array(both(x)), np.array(both(constants)), len(x["source_features"])
    distances = np.array([[squared(a, b) for b in z] for a in z])
    scale = np.mean([[squared(a, b) for b in fixed] for a in fixed])
    matrix = sum(np.exp(-distances / (2 * 2.0**k * scale)) for k in range(-3, 2))
    index = np.zeros_like(matrix)
    for i in range(n):
        if linear:
            j = (i + 1) % n
            for a, b, sign in ((i, j, 1), (i + n, j + n, 1), (i, j + n, -1), (j, i + n, -1)):
                index[a, b] += sign / n
            continue
        for j in range(n):
            if i != j:
                index[i, j] = index[i + n, j + n] = 1 / (n * (n - 1))
            index[i, j + n] = index[i + n, j] = -1 / n**2
    return np.sum(matrix * index) + 2 / (n - 1)


def five_kernels(x, constants):
    z, fixed = np.array(both(x)), np.array(both(constants))
    count = len(z)
    bandwidth = sum(squared(a, b) for a in fixed for b in fixed) / (count**2 - count) / 2**(5 // 2)
    distances = np.array([[squared(a, b) for b in z] for a in z])
    return [np.exp(-distances / (bandwidth * 2**k)) for k in range(5)]


def xlearn(x, constants):
    matrix, n = sum(five_kernels(x, constants)) / 5, len(x["source_features"])
    first = second = 0.0
    for a in range(n):
        first += sum(matrix[a, b] + matrix[a + n, b + n] for b in range(a + 1, n))
        second += sum(matrix[a, b + n] + matrix[b, a + n] for b in range(n))
    return first / (n * (n - 1) / 2) - second / n**2


def jindongwang(x, constants):
    matrix, n = sum(five_kernels(x, constants)), len(x["source_features"])
    return np.mean(matrix[:n, :n] + matrix[n:, n:] - matrix[:n, n:] - matrix[n:, :n])


def pytorch_adapt(x, constants):
    n = len(x["source_features"])
    scale = 1 / width_of(constants, "source_median")

    def mean(a, b, divisor, skip):
        return sum(np.exp(-scale * squared(p, q)) for i, p in enumerate(a) for j, q in enumerate(b)
                   if not (skip and i == j)) / divisor

    source, target = x["source_features"], x["target_features"]
    return (mean(source, source, n * (n - 1), True) + mean(target, target, n * (n - 1), True)
            - 2 * mean(source, target, n * n, False))


def domainbed(x, _):
    def mean(a, b):
        return np.mean([[sum(np.exp(-gamma * squared(p, q)) for gamma in (1e-3, 1e-2, 0.1, 1, 10, 100, 1000))
                         for q in b] for p in a])

    source, target = x["source_features"], x["target_features"]
    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


@pytest.mark.parametrize("library", [tllib, xlearn, jindongwang, pytorch_adapt, domainbed])
def test_conventions_of_other_libraries(library):
    for seed in range(5):
        arrays = draw(np.random.default_rng(seed), equal=True, least=3)
        agrees(functools.partial(mmd, convention=library.__name__), library, arrays, seed)
    ours = [float(jax.jit(functools.partial(mmd, convention=name))(**arrays)) for name in kernel_module.CONVENTIONS]
    assert len({round(value, 4) for value in ours}) == len(ours)  # none is another in disguise


def test_the_linear_estimate_of_tllib_runs_around_the_ring():
    for seed in range(5):
        agrees(functools.partial(mmd, convention="tllib", estimator="ring"), functools.partial(tllib, linear=True),
               draw(np.random.default_rng(seed), equal=True, least=3), seed)


def layers_of(rng, sources, targets):
    arrays = {}
    for domain, rows in (("source", sources), ("target", targets)):
        shapes = {"hidden": (rows, 2, 3), "pooled": (rows, 4), "logits": (rows, 3)}
        arrays |= {f"{domain}_{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    return arrays


def joint(source_hidden, source_pooled, source_logits, target_hidden, target_pooled, target_logits, **options):
    return joint_mmd((source_hidden, source_pooled), source_logits, (target_hidden, target_pooled), target_logits,
                     **options)


def joint_definition(x, constants, rule, multipliers, kernels, estimator, offset=0.0, sigma=0.92):
    def flat(x, name):
        return {f"{domain}_features": x[f"{domain}_{name}"].reshape(len(x[f"{domain}_{name}"]), -1)
                for domain in ("source", "target")}

    layers = [(flat(x, name), width_of(flat(constants, name), rule)) for name in ("hidden", "pooled")]

    def kernel(a, b):
        product = 1.0
        for now, width in layers:
            distance = squared(now[PAIR[a[0]]][a[1]], now[PAIR[b[0]]][b[1]])
            values = [np.exp(-distance / (m * width)) for m in multipliers]
            product *= np.mean(values) if kernels == "mean" else np.sum(values)
        p, q = (softmax(x[f"{('source', 'target')[d]}_logits"][i]) for d, i in (a, b))
        return product * np.exp(-squared(p, q) / (2 * sigma**2))

    return in_pairs({name: x[f"{domain}_pooled"] for name, domain in zip(PAIR, ("source", "target"), strict=True)},
                    kernel, estimator) + offset / (len(x["source_pooled"]) - 1)


def test_joint_mmd_multiplies_the_kernels_of_the_layers():
    for seed in range(20):
        estimator = ("biased", "unbiased", "linear")[seed % 3]
        rng = np.random.default_rng(seed)
        arrays = layers_of(rng, *rng.integers(2, 6, 2))
        agrees(functools.partial(joint, estimator=estimator),
               functools.partial(joint_definition, rule="mean", multipliers=(0.25, 0.5, 1, 2, 4), kernels="mean",
                                 estimator=estimator), arrays, seed)


def test_joint_mmd_of_tllib():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        arrays = layers_of(rng, *[rng.integers(3, 6)] * 2)
        agrees(functools.partial(joint, convention="tllib"),
               lambda x, c: joint_definition(x, c, "mean_with_self", (0.25, 0.5, 1, 2, 4), "sum", "unbiased", 2.0),
               arrays, seed)


def local_definition(x, constants, kernels="mean"):
    width, labels = width_of(constants, "mean"), x["source_labels"]
    probabilities = softmax(constants["target_task_logits"])
    present = set(labels.tolist()) & set(np.argmax(probabilities, axis=1).tolist())

    def kernel(a, b):
        values = [np.exp(-squared(a, b) / (m * width)) for m in (0.25, 0.5, 1, 2, 4)]
        return np.mean(values) if kernels == "mean" else np.sum(values)

    total = 0.0
    for c in present:
        source = [(float(label == c) / np.sum(labels == c), row) for label, row in zip(labels, x["source_features"],
                                                                                        strict=True)]
        target = [(p[c] / probabilities[:, c].sum(), row) for p, row in zip(probabilities, x["target_features"],
                                                                            strict=True)]
        signed = source + [(-share, row) for share, row in target]
        total += sum(p * q * kernel(a, b) for p, a in signed for q, b in signed)
    return total / max(len(present), 1)


def test_local_mmd_is_mmd_by_class_with_absent_classes_left_out():
    met = set()
    for seed in range(20):
        convention, kernels = (("default", "mean"), ("jindongwang", "sum"))[seed % 2]
        rng = np.random.default_rng(seed)
        arrays = draw(rng, least=1)
        arrays |= {"source_labels": rng.integers(0, 3, len(arrays["source_features"])),
                   "target_task_logits": rng.normal(0, 2, (len(arrays["target_features"]), 3))}
        agrees(functools.partial(local_mmd, convention=convention),
               functools.partial(local_definition, kernels=kernels), arrays, seed)
        met.add(local_definition(arrays, arrays) == 0)
    assert met == {True, False}  # also batches without a class in common


def test_local_mmd_sees_what_mmd_cannot():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(-2, 0.1, (6, 2)), rng.normal(2, 0.1, (6, 2))])
    labels = np.repeat([0, 1], 6)
    right, swapped = (10 * np.eye(2)[order] for order in (labels, 1 - labels))
    assert mmd(features, features) < 1e-6
    assert local_mmd(features, labels, features, right) < 1e-3 < 0.3 < local_mmd(features, labels, features, swapped)


def test_equal_samples_orders_and_origins():
    rng = np.random.default_rng(1)
    arrays = draw(rng)
    source, target = arrays.values()
    np.testing.assert_allclose(mmd(source, source), 0, atol=1e-6)
    shuffled = mmd(rng.permutation(source), rng.permutation(target))
    np.testing.assert_allclose(shuffled, mmd(source, target), rtol=1e-5)
    np.testing.assert_allclose(mmd(source + 300, target + 300), mmd(source, target), rtol=1e-3)
    np.testing.assert_allclose(mmd(target, source), mmd(source, target), rtol=1e-5)
    np.testing.assert_allclose(mmd(3 * source, 3 * target), mmd(source, target), rtol=1e-4)  # the width follows


@pytest.mark.parametrize("estimator", ["unbiased", "linear", "ring"])
def test_unbiased_estimates_are_zero_on_average_under_equality(estimator):
    draws = jnp.asarray(np.random.default_rng(2).normal(size=(600, 2, 8, 3)), jnp.float32)
    values = jax.jit(jax.vmap(lambda x: mmd(x[0], x[1], bandwidth=3.0, estimator=estimator)))(draws)
    error = values.std() / np.sqrt(600)
    assert abs(values.mean()) < 4 * error and values.min() < 0 < values.max()
    apart = jax.jit(jax.vmap(lambda x: mmd(x[0], x[1] + 1, bandwidth=3.0, estimator=estimator)))(draws)
    assert apart.mean() > 10 * error


def test_blocks_give_what_one_matrix_gives(monkeypatch):
    rng = np.random.default_rng(3)
    arrays = {name: jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32)
              for name, rows in zip(PAIR, (37, 23), strict=True)}
    labels, logits = rng.integers(0, 4, 37), jnp.asarray(rng.normal(size=(23, 4)))
    terms = [functools.partial(mmd, bandwidth=rule, estimator=estimator) for rule in ("median", "source_median")
             for estimator in ("biased", "unbiased")]
    terms.append(lambda source_features, target_features: local_mmd(source_features, labels, target_features, logits))
    whole = [jax.jit(jax.value_and_grad(lambda x, term=term: term(**x)))(arrays) for term in terms]
    monkeypatch.setattr(kernel_module, "BLOCK", 100)
    for term, (value, gradient) in zip(terms, whole, strict=True):
        blocked = jax.jit(jax.value_and_grad(lambda x, term=term: term(**x)))(arrays)
        np.testing.assert_allclose(blocked[0], value, rtol=1e-4, atol=1e-6)
        for name in arrays:
            np.testing.assert_allclose(blocked[1][name], gradient[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_4096_against_4096_vectors_need_less_than_a_gigabyte(rule):
    """All of it, gradients too; a single kernel matrix of both domains has 256 MiB, and there are five."""
    jax.config.update("jax_disable_most_optimizations", False)
    shape = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    program = jax.jit(jax.value_and_grad(functools.partial(mmd, bandwidth=rule), (0, 1))).lower(shape, shape).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 10**9
    if rule == "mean":
        assert memory.temp_size_in_bytes < 2 * 10**8


def test_order_statistics_are_those_of_sorting():
    rng = np.random.default_rng(4)
    values = np.concatenate([np.zeros(5), rng.gamma(0.1, size=50), [1e-30, 1e30, 7, 7, 7]]).astype(np.float32)
    bits = jnp.asarray(values).view(jnp.int32)
    found = jax.jit(jax.vmap(lambda index: order_statistic(bits, index)))(jnp.arange(len(values)))
    np.testing.assert_array_equal(found, np.sort(values))
    x = rng.normal(size=(9, 2)).astype(np.float32)
    distances = np.sort(np.asarray(_distance_bits(jnp.asarray(x)).view(jnp.float32)).ravel())[:81]
    np.testing.assert_allclose(distances, np.sort(((x[:, None] - x[None])**2).sum(-1).ravel()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["mean", "mean_with_self", "median", "source_median"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "ring"])
def test_equal_vectors_have_finite_values_and_slopes(rule, estimator):
    same = {name: np.ones((4, 3)) for name in PAIR}
    value = finite(functools.partial(mmd, bandwidth=rule, estimator=estimator), same)
    np.testing.assert_allclose(value, 0, atol=1e-6)


def test_degenerate_batches_of_the_others_stay_finite():
    zeros = {name: np.zeros(x.shape) for name, x in layers_of(np.random.default_rng(0), 2, 3).items()}
    finite(joint, zeros)
    features = {name: np.zeros((1, 2)) for name in PAIR}
    for label in (0, 1, 7):
        value = finite(lambda label=label, **x: local_mmd(x["source_features"], np.array([label]),
                                                          x["target_features"], np.array([[9.0, 0.0]])), features)
        assert value == 0


@pytest.mark.parametrize(("options", "words"), [
    ({"convention": "tlib"}, "did you mean 'tllib'"), ({"kernels": "max"}, "'mean' or 'sum'"),
    ({"bandwidth": "mode"}, "'mean'"), ({"bandwidth": -1.0}, "number > 0"), ({"multipliers": ()}, "numbers > 0"),
    ({"convention": "tllib"}, "equally many"), ({"estimator": "ring"}, "equally many")])
def test_misfits_are_told(options, words):
    with pytest.raises(UserError, match=words):
        mmd(np.ones((4, 2)), np.ones((3, 2)), **options)
