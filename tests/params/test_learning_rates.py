"""Learning rates that listen to the loss, and optimizers that need no schedule, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.params.optimizer_tree import (
    GroupDefaults,
    apply_groups,
    averaged_leaves,
    learning_rate,
    make_optimizer,
    peak_rates,
)
from transfer_jax.params.partition import GroupSpec, partition

RNG = np.random.default_rng(0)
START = {"a": RNG.normal(size=(3, 2)), "b": RNG.normal(size=3)}
CENTRE, CURVE = RNG.normal(size=9), RNG.uniform(0.5, 2, size=9)


def gradient(params):
    """Of 1/2 sum c (w - m)^2 over all leaves, and the loss."""
    flat = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in params.values()])
    grads, place = CURVE * (flat - CENTRE), 0
    found = {}
    for path, leaf in params.items():
        found[path] = grads[place:place + leaf.size].reshape(leaf.shape)
        place += leaf.size
    return found, float(0.5 * np.sum(CURVE * (flat - CENTRE) ** 2))


def engine(kind, steps, losses=None, group=None, **more):
    """Parameters of every step as the engine makes them, and the averages."""
    base = GroupDefaults(**{"optimizer": Component(kind=kind, **more.pop("arguments", {})), "lr": 0.2,
                            "schedule": Component(kind="constant"), "warmup_steps": 0, "weight_decay": 0.0, **more})
    groups = {"all": group or GroupSpec()}
    parts = partition(list(START), ((".*", "all"),), groups)
    optimizer = make_optimizer(parts, base, steps, dict.fromkeys(START, 0), peak_rates(groups, base))
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in START.items()}
    state = optimizer.init(params)
    step = jax.jit(lambda grads, state, params, loss: apply_groups(optimizer, grads, state, params, parts,
                                                                   frozenset(groups), loss))
    seen = []
    for number in range(steps):
        grads, loss = gradient(params)
        params, state = step(jax.tree.map(jnp.float32, grads), state, params,
                             jnp.float32(loss if losses is None else losses[number]))
        seen.append((params, averaged_leaves(parts, base, state, params)))
    return seen


def by_definition(steps, rates, beta, decay=0.0, adam=None):
    """x and y of schedule-free SGD or AdamW (Defazio et al. 2024), float64."""
    x, z = ({path: leaf.copy() for path, leaf in START.items()} for _ in range(2))
    v = {path: np.zeros_like(leaf) for path, leaf in START.items()}
    y, total, highest, seen = dict(x), 0.0, 0.0, []
    for t in range(steps):
        grads, _ = gradient(y)
        highest = max(highest, rates[t])
        total += highest ** 2
        c = highest ** 2 / total
        for path in x:
            g = grads[path]
            if adam:
                v[path] = adam * v[path] + (1 - adam) * g ** 2
                g = g / (np.sqrt(v[path] / (1 - adam ** (t + 1))) + 1e-8)
            g = g + (decay * y[path] if y[path].ndim > 1 else 0)
            z[path] = z[path] - rates[t] * g
            x[path] = (1 - c) * x[path] + c * z[path]
            y[path] = (1 - beta) * z[path] + beta * x[path]
        seen.append((dict(y), dict(x)))
    return seen


@pytest.mark.parametrize(("kind", "arguments", "adam"), [
    ("schedule_free_sgd", {"beta": 0.9}, None), ("schedule_free_sgd", {"beta": 0.6}, None),
    ("schedule_free_adamw", {"beta": 0.9, "b2": 0.99}, 0.99)])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0.0), (3, 0.1)])
def test_schedule_free_steps_and_averages(kind, arguments, adam, warmup, decay):
    rates = [0.2 * min((t + 1) / (warmup + 1), 1) for t in range(8)]
    found = engine(kind, 8, arguments=arguments, warmup_steps=warmup, weight_decay=decay)
    expected = by_definition(8, rates, arguments["beta"], decay, adam)
    for ours, theirs in zip(found, expected, strict=True):
        for now, then in zip(ours, theirs, strict=True):
            for path in START:
                np.testing.assert_allclose(now[path], then[path], rtol=2e-4, atol=2e-5, err_msg=path)
    assert np.abs(found[-1][0]["a"] - found[-1][1]["a"]).max() > 1e-3


def scales_by_definition(losses, every, patience, factor, cooldown, threshold):
    """Learning-rate factor of each step: windows of `every` losses against the best one."""
    scale, best, bad, waiting, scales = 1.0, np.inf, 0, 0, []
    for number in range(len(losses)):
        if (number + 1) % every == 0:
            value = np.mean(losses[number + 1 - every:number + 1])
            improved = value < (1 - threshold) * best
            best = value if improved else best
            bad = 0 if improved else bad + 1
            if waiting:
                waiting, bad = waiting - 1, 0
            elif bad == patience:
                scale, bad, waiting = scale * factor, 0, cooldown
        scales.append(scale)
    return scales


@pytest.mark.parametrize(("every", "patience", "cooldown"), [(1, 2, 0), (2, 1, 0), (2, 1, 2)])
def test_plateau_lowers_the_rate_when_the_loss_stands_still(every, patience, cooldown):
    losses = [5, 4, 3, 3, 3, 3, 2.9, 2.9, 2.9, 2.9, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    schedule = Component(kind="plateau", every=every, patience=patience, factor=0.5, cooldown=cooldown, threshold=0.01)
    found = engine("sgd", 20, losses, schedule=schedule, arguments={"momentum": 0.0}, lr=0.05)
    scales = scales_by_definition(losses, every, patience, 0.5, cooldown, 0.01)
    assert 0.0 < scales[-1] < 0.6
    params = {path: leaf.copy() for path, leaf in START.items()}
    for scale, (now, _) in zip(scales, found, strict=True):
        grads, _ = gradient(params)
        params = {path: leaf - 0.05 * scale * grads[path] for path, leaf in params.items()}
        for path in params:
            np.testing.assert_allclose(now[path], params[path], rtol=1e-4, atol=1e-5)


def test_plateau_follows_warm_up_and_stops_at_the_least():
    base = GroupDefaults(Component(kind="adam"), 0.4, Component(kind="plateau"), 3, 0.0)
    rate = learning_rate(GroupSpec(), base, 10, 0.4)
    np.testing.assert_allclose([rate(t) for t in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    schedule = Component(kind="plateau", every=1, patience=1, factor=0.1, least=0.01)
    found = engine("sgd", 9, [1.0] * 9, schedule=schedule, arguments={"momentum": 0.0}, lr=0.01)
    step = np.asarray(found[-1][0]["b"] - found[-2][0]["b"], np.float64)
    np.testing.assert_allclose(step, -0.01 * 0.01 * gradient(found[-2][0])[0]["b"], rtol=2e-2)


@pytest.mark.parametrize(("more", "words"), [
    ({"kind": "schedule_free_sgd", "schedule": Component(kind="plateau")}, "would change"),
    ({"kind": "schedule_free_sgd", "group": GroupSpec(layer_decay=0.5)}, "would change"),
    ({"kind": "schedule_free_sgd", "arguments": {"beta": 0.0}}, "a number above 0"),
    ({"kind": "sgd", "schedule": Component(kind="plateau", factor=2.0)}, "do not fit"),
    ({"kind": "sgd", "schedule": Component(kind="platau")}, "did you mean 'plateau'"),
])
def test_faults_are_named(more, words):
    with pytest.raises(UserError, match=words):
        engine(steps=1, **more)
