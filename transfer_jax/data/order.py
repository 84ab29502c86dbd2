"""Random access to shuffled epochs: the example at any position of the endless order, without storing a permutation.

The permutation of an epoch is the swap-or-not shuffle (Hoang, Morris & Rogaway 2012, "An Enciphering Scheme Based on
a Card Shuffle", CRYPTO): in round r an index x may be swapped with its partner (k_r - x) mod n, and one hashed bit
of the larger of the two decides. Each index is computed alone, so a batch costs the same at step 0 and at step 10^9,
and a run resumes from its step number. One code serves numpy (host) and jax.numpy (inside a compiled step, where
`n`, `seed` and `step` may be traced); both give the same numbers.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import numpy as np

ROUNDS = 32
UNROLL = 8
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive counters over the 32-bit range


def _mix(x: Any, xp: ModuleType) -> Any:
    """A bijective 32-bit hash (the "lowbias32" multiply-xorshift of Wellons 2018)."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x7FEB352D)
    x = (x ^ (x >> xp.uint32(15))) * xp.uint32(0x846CA68B)
    return x ^ (x >> xp.uint32(16))


def _word(value: Any, xp: ModuleType) -> Any:
    """`value` modulo 2^32 as uint32 (Python integers of any size and sign included)."""
    if isinstance(value, int):
        return xp.uint32(value & 0xFFFFFFFF)
    return xp.asarray(value).astype(xp.uint32)


def hashed(*words: Any, xp: ModuleType = np) -> Any:
    """One uint32 from several integers (arrays broadcast); the order of the words matters."""
    with np.errstate(over="ignore"):
        state = xp.uint32(GOLDEN)
        for word in words:
            state = _mix(_mix(_word(word, xp) + xp.uint32(GOLDEN), xp) ^ (state * xp.uint32(0x85EBCA6B)), xp)
        return state


def permute(offset: Any, epoch: Any, n: Any, seed: Any, xp: ModuleType = np) -> Any:
    """The index in [0, n) at place `offset` of the permutation number `epoch` of `seed`; int32, shape of `offset`.

    `offset` and `epoch` are integers or arrays that broadcast, 0 <= offset < n < 2^31. For a fixed epoch and seed
    the map from offsets to indices is a permutation.
    """
    n = _word(n, xp)
    key = hashed(seed, epoch, xp=xp)
    x = _word(offset, xp) + xp.zeros_like(key)
    with np.errstate(over="ignore"):
        if xp is np:
            for number in range(ROUNDS):
                x = _round(np.uint32(number), x, key, n, np)
        else:
            # A loop, because XLA would fuse straight-line code into the gather that uses the index, and the gather
            # into what follows, and shuffle anew for every pixel (measured: 200 times slower with a flip behind it).
            x = jax.lax.fori_loop(0, ROUNDS, lambda number, x: _round(_word(number, xp), x, key, n, xp), x,
                                  unroll=UNROLL)
    return x.astype(xp.int32)


def _below(word: Any, n: Any, xp: ModuleType) -> Any:
    """floor(word * n / 2^32): uniform in [0, n) for a uniform word. The high half of the product, put together from
    16-bit halves: processors divide integers one by one, and n is seldom known when the step is compiled."""
    low, half = xp.uint32(0xFFFF), xp.uint32(16)
    middle = (word >> half) * (n & low) + ((word & low) * (n & low) >> half)
    return (word >> half) * (n >> half) + (middle >> half) + ((word & low) * (n >> half) + (middle & low) >> half)


def _round(number: Any, x: Any, key: Any, n: Any, xp: ModuleType) -> Any:
    """One round of the shuffle on uint32 indices x."""
    round_key = _mix(key + number * xp.uint32(2 * GOLDEN & 0xFFFFFFFF) + xp.uint32(GOLDEN), xp)
    partner = _below(round_key, n, xp) + n - x
    partner = xp.where(partner >= n, partner - n, partner)
    # The high bit: in a multiplicative hash the low bits depend on low bits of the input only.
    bit = _mix(xp.maximum(x, partner) ^ (round_key * xp.uint32(GOLDEN)), xp) >> xp.uint32(31)
    return xp.where(bit == 1, partner, x)


def locate(step: Any, batch: Any, n: Any, slots: Any, xp: ModuleType = np) -> tuple[Any, Any]:
    """(epoch, offset) of position `step * batch + slots` in epochs of n examples, both uint32, without overflow.

    The product is never formed: it is divided by n while it is built bit by bit (double and add), so it is right for
    every 0 <= step < 2^31, n < 2^31 and batch < 2^31 - n. The epoch number is taken modulo 2^32. `batch` is a number
    or, like the others, an array.
    """
    n, step = _word(n, xp), _word(step, xp)
    whole, part = step // n, step % n
    quotient, remainder = xp.zeros_like(part), xp.zeros_like(part)
    known = isinstance(batch, int)
    with np.errstate(over="ignore"):
        for place in range(batch.bit_length() if known else 31)[::-1]:
            remainder, quotient = remainder * xp.uint32(2), quotient * xp.uint32(2)
            remainder, quotient = _carry(remainder, quotient, n, xp)
            if not known:
                bit = _word(batch, xp) >> xp.uint32(place) & xp.uint32(1)
                remainder, quotient = _carry(remainder + bit * part, quotient, n, xp)
            elif batch >> place & 1:
                remainder, quotient = _carry(remainder + part, quotient, n, xp)
        total = remainder + _word(slots, xp)
        return whole * _word(batch, xp) + quotient + total // n, total % n


def _carry(remainder: Any, quotient: Any, n: Any, xp: ModuleType) -> tuple[Any, Any]:
    over = remainder >= n
    return xp.where(over, remainder - n, remainder), quotient + over.astype(xp.uint32)


def draw(step: Any, batch: int, n: Any, seed: Any, slots: Any = None, xp: ModuleType = np) -> Any:
    """Indices in [0, n) of the examples in the batch of `step`; int32 [batch], or one per entry of `slots`.

    Batches cut one endless sequence of shuffled epochs, so a batch may straddle two epochs, and every epoch shows
    every example once, whatever the batch size.
    """
    slots = xp.arange(batch, dtype=xp.uint32) if slots is None else slots
    epoch, offset = locate(step, batch, n, slots, xp)
    return permute(offset, epoch, n, seed, xp)


def draw_mixed(step: Any, batch: int, sizes: Any, shares: Any, seed: Any, slots: Any = None,
               xp: ModuleType = np) -> Any:
    """Indices of the examples in the batch of `step`, drawn from parts of `sizes` that stand one after the other; int32
    [batch], or one per entry of `slots`.

    sizes, shares: int32 [P]. An epoch has sum(shares) places, of which the part p has exactly shares[p], spread at
    random. Each part goes round its own shuffled epochs of sizes[p] examples, whatever the others do: so it shows every
    example once before it shows one again, and its examples of an epoch are known without those before.
    """
    slots = xp.arange(batch, dtype=xp.uint32) if slots is None else slots
    sizes, shares = _word(sizes, xp), _word(shares, xp)
    ends = xp.cumsum(shares, dtype=xp.uint32)
    epoch, offset = locate(step, batch, ends[-1], slots, xp)
    place = permute(offset, epoch, ends[-1], seed, xp).astype(xp.uint32)
    part = (place[:, None] >= ends).sum(axis=1)
    inner = place - (ends - shares)[part]
    own_epoch, own_offset = locate(epoch, shares[part], sizes[part], inner, xp)
    first = (xp.cumsum(sizes, dtype=xp.uint32) - sizes)[part].astype(xp.int32)
    return first + permute(own_offset, own_epoch, sizes[part], hashed(seed, part + 1, xp=xp), xp)
