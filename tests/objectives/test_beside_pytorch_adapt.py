"""Values and gradients beside pytorch-adapt, where it is installed; it is no requirement."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.evaluation import validators
from transfer_jax.objectives import TERMS

SOURCE, TARGET = (np.random.default_rng(seed).normal(seed, 1, (12, 5)).astype(np.float32) for seed in (0, 1))
ONES = jnp.ones(12)


def peer(module):
    """A module of theirs; it asks for torchvision and others, which may be missing too."""
    try:
        return importlib.import_module(f"pytorch_adapt.{module}")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"compares with pytorch-adapt, which cannot be imported here: {error}")


def total(name, features, **options):
    """The term over both domains where it is one of each."""
    return sum(TERMS[name](each, ONES, **options) for each in features)


CASES = {
    "mmd": (lambda s, t: TERMS["mmd"](s, t, convention="pytorch_adapt"),
            lambda layers, s, t: layers.MMDLoss(mmd_type="quadratic")(s, t)),
    "deep_coral": (lambda s, t: TERMS["deep_coral"](s, t), lambda layers, s, t: layers.CORALLoss()(s, t)),
    "class_confusion": (lambda s, t: total("class_confusion", (s, t), temperature=2.0),
                        lambda layers, s, t: layers.MCCLoss(T=2.0)(s) + layers.MCCLoss(T=2.0)(t)),
    "nuclear_norm": (lambda s, t: total("nuclear_norm", (s, t)),
                     lambda layers, s, t: layers.BNMLoss()(s) + layers.BNMLoss()(t)),
    "feature_norm": (lambda s, t: total("feature_norm", (s, t)),
                     lambda layers, s, t: layers.AdaptiveFeatureNorm()(s) + layers.AdaptiveFeatureNorm()(t)),
    "batch_spectral_penalization": (
        lambda s, t: TERMS["batch_spectral_penalization"](s, t, strength=1.0, count=2),
        lambda layers, s, t: layers.BatchSpectralLoss(k=2)(s) + layers.BatchSpectralLoss(k=2)(t)),
}


@pytest.mark.parametrize("name", CASES)
def test_terms_and_their_gradients(name):
    layers, torch = peer("layers"), pytest.importorskip("torch", reason="compares with PyTorch, not installed here")
    ours, theirs = CASES[name]
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(SOURCE, TARGET)
    inputs = [torch.from_numpy(x.copy()).requires_grad_() for x in (SOURCE, TARGET)]
    expected = theirs(layers, *inputs)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
    for found, given in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(found, given.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_scores_without_labels():
    found, torch = peer("validators"), pytest.importorskip("torch", reason="compares with PyTorch, not installed here")
    logits = torch.from_numpy(3 * TARGET)
    answers = torch.softmax(logits, 1)
    probabilities = answers.numpy()
    given = {"target_train": {"logits": logits, "preds": answers}}
    score = {name: getattr(found, f"{name}Validator")()(**given) for name in ("SND", "Entropy", "IM", "BNM")}
    np.testing.assert_allclose(validators.soft_neighborhood_density(probabilities), score["SND"], rtol=1e-4)
    np.testing.assert_allclose(-validators.mean_entropy(probabilities), score["Entropy"], rtol=1e-4)
    np.testing.assert_allclose(validators.information(probabilities), score["IM"], rtol=1e-4)
    np.testing.assert_allclose(validators.batch_nuclear_norm(probabilities), score["BNM"], rtol=1e-4)


def test_risk_with_a_control_variate():
    found, torch = peer("validators.deep_embedded_validator"), pytest.importorskip(
        "torch", reason="compares with PyTorch, not installed here")
    rng = np.random.default_rng(0)
    weights, losses = rng.gamma(2, 0.5, 40), rng.random(40)
    theirs = found.get_dev_risk(torch.from_numpy(weights)[:, None], torch.from_numpy(losses)[:, None], None)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    np.testing.assert_allclose(validators.control_variate_risk(losses, weights), float(theirs), rtol=1e-6)
