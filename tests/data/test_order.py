"""The random-access shuffle: permutations, uniform ones, equal in numpy and JAX, right beyond 32 bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from transfer_jax.data import order


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 799])
def test_every_epoch_is_a_permutation(n):
    for epoch in range(4):
        assert sorted(order.permute(np.arange(n), epoch, n, 11).tolist()) == list(range(n))


def test_batches_cut_epochs_without_loss():
    n, batch = 23, 5
    drawn = np.concatenate([order.draw(step, batch, n, 3) for step in range(23)])
    for epoch in range(5):
        assert sorted(drawn[epoch * n:(epoch + 1) * n].tolist()) == list(range(n))
    assert (drawn == np.concatenate([order.permute(np.array([p % n]), p // n, n, 3) for p in range(23 * 5)])).all()


def test_numpy_and_jax_agree_also_for_traced_arguments():
    draw = jax.jit(lambda step, n, seed: order.draw(step, 32, n, seed, xp=jnp))
    for step, n, seed in [(0, 100, 0), (7, 33, 5), (2**31 - 1, 50000, 2**31 - 1), (1000, 1, 3), (12, 10, 77)]:
        there = draw(jnp.uint32(step), n, seed)
        assert (order.draw(step, 32, n, seed) == np.asarray(there)).all()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_permutations_are_equally_likely(n):
    epochs = 24000
    codes = (order.permute(np.arange(n)[None], np.arange(epochs)[:, None], n, 9) * n ** np.arange(n)).sum(1)
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_pairs_of_places_are_uniform_over_pairs_of_indices():
    n = 12
    pairs = order.permute(np.array([[2, 7]]), np.arange(40000)[:, None], n, 4)
    counts = np.bincount(pairs[:, 0] * n + pairs[:, 1], minlength=n * n).reshape(n, n)
    assert (np.diag(counts) == 0).all()
    assert stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-3


@pytest.mark.parametrize("step,batch,n", [(2**31 - 1, 4096, 1300003), (2**31 - 1, 32, 10), (5, 7, 3),
                                          (123456789, 1024, 2**30), (0, 1, 1)])
def test_place_of_a_step_is_exact_integer_arithmetic(step, batch, n):
    epoch, offset = order.locate(step, batch, n, np.arange(batch))
    for slot in (0, batch // 2, batch - 1):
        position = step * batch + slot
        assert int(offset[slot]) == position % n
        assert int(epoch[slot]) == (position // n) % 2**32


def test_scaling_a_word_is_the_exact_high_half_of_the_product():
    generator = np.random.default_rng(0)
    words = np.concatenate([generator.integers(0, 2**32, 5000), [0, 1, 2**32 - 1]]).astype(np.uint32)
    for n in (1, 2, 10, 65535, 65536, 65537, 1300003, 2**31 - 1):
        exact = words.astype(np.uint64) * np.uint64(n) >> np.uint64(32)
        assert (order._below(words, np.uint32(n), np) == exact).all()
        assert (order._below(jnp.asarray(words), jnp.uint32(n), jnp) == exact.astype(np.uint32)).all()


def test_words_of_any_size_and_sign_hash_alike_in_numpy_and_jax():
    for words in [(2**32 - 1, 0), (-1, 0), (2**40 + 3, 7), (3, 2**31)]:
        assert int(order.hashed(*words)) == int(order.hashed(*words, xp=jnp))
    assert int(order.hashed(-1)) == int(order.hashed(2**32 - 1)) != int(order.hashed(0))
    assert int(order.hashed(1, 2)) != int(order.hashed(2, 1))


def test_seeds_and_epochs_differ():
    first = order.permute(np.arange(50), 0, 50, 1)
    assert (first != order.permute(np.arange(50), 0, 50, 2)).any()
    assert (first != order.permute(np.arange(50), 1, 50, 1)).any()
