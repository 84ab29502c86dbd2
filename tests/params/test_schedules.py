"""Schedules against their closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.spec import Component
from transfer_jax.params.optimizer_tree import GroupDefaults, learning_rate
from transfer_jax.params.partition import GroupSpec
from transfer_jax.params.schedules import SCHEDULES

TOTAL = 40
STEPS = np.arange(TOTAL + 1)


@pytest.mark.parametrize(("name", "arguments", "expected"), [
    ("constant", {}, lambda p: np.ones_like(p)),
    ("cosine", {}, lambda p: np.cos(np.pi * p / 2) ** 2),
    ("cosine", {"final": 0.1}, lambda p: 0.1 + 0.9 * np.cos(np.pi * p / 2) ** 2),
    ("linear", {"final": 0.2}, lambda p: 1 - 0.8 * p),
    ("inverse_decay", {}, lambda p: 1 / (1 + 10 * p) ** 0.75),
    ("inverse_decay", {"alpha": 3.0, "beta": 1.0}, lambda p: 1 / (1 + 3 * p)),
    ("polynomial", {}, lambda p: (1 - p) ** 2),
    ("polynomial", {"power": 0.5, "final": 0.1}, lambda p: 0.1 + 0.9 * np.sqrt(1 - p)),
    ("one_cycle", {"rise": 0.25, "start": 0.1, "final": 0.01},
     lambda p: np.where(p < 0.25, 0.1 + 0.9 * np.sin(2 * np.pi * p) ** 2,
                        0.01 + 0.99 * np.cos(2 * np.pi / 3 * (p - 0.25)) ** 2)),
    ("slanted_triangular", {}, lambda p: np.interp(p, [0, 0.1, 1], [1 / 32, 1, 1 / 32])),
    ("slanted_triangular", {"rise": 0.5, "ratio": 4.0}, lambda p: np.interp(p, [0, 0.5, 1], [0.25, 1, 0.25])),
    ("steps_down", {}, lambda p: np.where(p < 0.5, 1, np.where(p < 0.75, 0.1, 0.01))),
    ("ganin", {}, lambda p: np.tanh(5 * p)),
    ("ganin", {"gamma": 4.0}, lambda p: np.tanh(2 * p)),
])
def test_closed_form(name, arguments, expected):
    found = [float(SCHEDULES[name](step, TOTAL, **arguments)) for step in STEPS]
    np.testing.assert_allclose(found, expected(STEPS / TOTAL), atol=1e-6)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_beyond_the_end_it_stays_and_a_stage_of_no_step_is_no_division_by_zero(name):
    schedule = SCHEDULES[name]
    assert float(schedule(2 * TOTAL, TOTAL)) == float(schedule(TOTAL, TOTAL))
    assert np.isfinite(float(schedule(0, 0)))
    assert schedule(jnp.int32(3), TOTAL).dtype == jnp.float32


def rates(group, **defaults):
    base = {"optimizer": Component(kind="sgd"), "lr": 1.0, "schedule": Component(kind="constant"), "warmup_steps": 0,
            "weight_decay": 0.0, **defaults}
    schedule = learning_rate(GroupSpec(**group), GroupDefaults(**base), TOTAL, 2.0)
    return np.array([float(schedule(step)) for step in STEPS])


def test_warm_up_rises_in_a_line_to_the_peak():
    np.testing.assert_allclose(rates({}, warmup_steps=4)[:7], 2.0 * np.array([0.2, 0.4, 0.6, 0.8, 1, 1, 1]), atol=1e-6)


def test_the_schedule_fills_what_the_warm_up_leaves():
    found = rates({}, warmup_steps=4, schedule=Component(kind="linear"))
    np.testing.assert_allclose(found[4:], 2.0 * (1 - np.arange(37) / 36), atol=1e-6)


def test_a_group_warms_up_when_it_unfreezes_and_may_have_its_own_schedule():
    found = rates({"unfreeze_at": 10, "warmup_steps": 1, "schedule": Component(kind="cosine")},
                  schedule=Component(kind="linear"))
    assert found[10] == pytest.approx(found[11] / 2 * np.cos(np.pi * 9 / 78) ** 2 / np.cos(np.pi * 10 / 78) ** 2)
    assert found[-1] == pytest.approx(2.0 * np.cos(np.pi * 39 / 78) ** 2, abs=1e-6)
