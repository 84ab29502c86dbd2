"""Speed of the layers against flax and PyTorch: one gradient step inside a loop, ratios of interleaved runs.

    PYTHONPATH=. python benchmarks/layers.py [--members 5] [--batch 64] [--repeats 9] [--only TEXT]

Below 1 means that we are faster. With members, flax is `vmap` over `nn.Conv` and PyTorch runs once per member.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from jax import lax

from transfer_jax.layers.convolution import convolve
from transfer_jax.layers.normalization import BatchNorm
from transfer_jax.layers.pooling import avg_pool, max_pool

STEPS = 4
# image side, channels, features, kernel, stride, groups
CONVOLUTIONS = [(16, 3, 16, 3, 1, 1), (16, 16, 16, 3, 1, 1), (16, 16, 32, 3, 2, 1), (8, 32, 32, 3, 1, 1),
                (8, 32, 64, 3, 2, 1), (4, 64, 64, 3, 1, 1), (16, 3, 20, 5, 1, 1), (8, 20, 50, 5, 1, 1),
                (2, 64, 64, 3, 1, 1), (8, 64, 64, 1, 1, 1), (16, 32, 32, 3, 1, 32), (28, 96, 96, 3, 1, 96),
                (28, 96, 96, 3, 2, 96), (7, 320, 320, 3, 1, 320), (14, 96, 96, 7, 1, 96), (14, 64, 64, 3, 1, 8),
                (14, 256, 256, 3, 1, 32), (64, 3, 64, 7, 2, 1), (64, 3, 64, 4, 4, 1), (64, 3, 64, 16, 16, 1)]
POOLS = [(16, 20, 2, 2), (8, 50, 2, 2), (32, 16, 3, 2), (56, 64, 3, 2)]  # image side, channels, window, stride
AVERAGES = [(28, 64, 2, 2), (14, 64, 3, 1)]
NORMS = [(16, 16), (4, 64)]  # image side, channels


def loop(function: Callable, members: bool) -> Callable:
    """Gradient descent on both arguments in a compiled loop: shows what the layer costs inside a training loop."""
    gradient = jax.grad(lambda x, p: jnp.square(jnp.tanh(function(x, p))).sum(), (0, 1))
    gradient = jax.vmap(gradient) if members else gradient

    @jax.jit
    def run(x, p):
        def body(carry):
            i, x, p = carry
            to_x, to_p = gradient(x, p)
            return i + 1, x - 1e-6 * to_x, p - 1e-6 * to_p
        return lax.while_loop(lambda carry: carry[0] < STEPS, body, (0, x, p))
    return lambda x, p: jax.block_until_ready(run(x, p))


def torch_loop(function: Callable, x: np.ndarray, p: np.ndarray, members: int) -> Callable:
    """The same descent in PyTorch, eager, once per member."""
    images = torch.tensor(x).movedim(-1, -3).contiguous().requires_grad_(True)
    weights = torch.tensor(p).requires_grad_(True)

    def run():
        for _ in range(STEPS * members):
            images.grad = weights.grad = None
            function(images, weights).tanh().square().sum().backward()
            with torch.no_grad():
                images.sub_(images.grad, alpha=1e-6)
                if weights.grad is not None:
                    weights.sub_(weights.grad, alpha=1e-6)
    return run


def conv_case(side: int, channels: int, features: int, kernel: int, stride: int, groups: int):
    """Name, our function, flax's, PyTorch's, shapes of image (without batch) and parameters."""
    padding = 0 if kernel == stride else kernel // 2
    layer = nn.Conv(features, (kernel, kernel), stride, padding, feature_group_count=groups, use_bias=False)
    name = f"conv {side}x{side} {channels}->{features} k{kernel} s{stride}" + (f" g{groups}" if groups > 1 else "")
    return (name, lambda x, p: convolve(x, p, (stride, stride), padding, groups),
            lambda x, p: layer.apply({"params": {"kernel": p}}, x),
            lambda x, p: torch.nn.functional.conv2d(x, p.permute(3, 2, 0, 1), None, stride, padding, 1, groups),
            (side, side, channels), (kernel, kernel, channels // groups, features))


def pool_case(kind: str, side: int, channels: int, window: int, stride: int):
    pad = (window - 1) // 2
    ours, flax = (max_pool, nn.max_pool) if kind == "max" else (avg_pool, nn.avg_pool)
    theirs = getattr(torch.nn.functional, f"{kind}_pool2d")
    return (f"{kind} pool {side}x{side}x{channels} k{window} s{stride}",
            lambda x, p: ours(x, window, stride, pad) + p.sum(),
            lambda x, p: flax(x, (window, window), (stride, stride), ((pad, pad), (pad, pad))) + p.sum(),
            lambda x, p: theirs(x, window, stride, pad) + p.sum(), (side, side, channels), (1,))


def norm_case(side: int, channels: int):
    stats = {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}

    def apply(layer, x, p, **mode):
        variables = {"params": {"scale": p, "bias": p}, "batch_stats": stats}
        return layer.apply(variables, x, mutable=["batch_stats"], **mode)[0]

    return (f"batch norm {side}x{side}x{channels}", functools.partial(apply, BatchNorm(), train=True),
            functools.partial(apply, nn.BatchNorm(), use_running_average=False),
            lambda x, p: torch.nn.functional.batch_norm(x, None, None, p, p, True), (side, side, channels), (channels,))


def measure(case, batch: int, members: int, repeats: int) -> tuple[float, float, float]:
    """Our milliseconds per step, and the medians of our time over flax's and over PyTorch's, run in turn."""
    _, ours, flax, theirs, image, shape = case
    lead = (members,) if members > 1 else ()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*lead, batch, *image)).astype(np.float32)
    p = (0.1 * rng.normal(size=(*lead, *shape))).astype(np.float32)
    one_x, one_p = (x[0], p[0]) if lead else (x, p)
    on_device = jnp.asarray(x), jnp.asarray(p)
    runs = [functools.partial(loop(f, bool(lead)), *on_device) for f in (ours, flax)]
    runs.append(torch_loop(theirs, one_x, one_p, members))
    for run in runs:
        run()
    seconds: list[list[float]] = []
    for number in range(repeats):
        row = [0.0, 0.0, 0.0]
        for i in (0, 1, 2) if number % 2 else (2, 1, 0):  # no one always runs in the wake of the same other
            time.sleep(0.05)  # the threads of the run before spin for a while and would slow down this one
            start = time.perf_counter()
            runs[i]()
            row[i] = time.perf_counter() - start
        seconds.append(row)
    return (1e3 * statistics.median(row[0] for row in seconds) / STEPS,
            statistics.median(row[0] / row[1] for row in seconds),
            statistics.median(row[0] / row[2] for row in seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=5, help="how many seeds are trained together")
    parser.add_argument("--batch", type=int, default=64, help="images per member")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved runs per case")
    parser.add_argument("--only", default="", help="run the cases whose name holds this text")
    flags = parser.parse_args()
    cases = [*(conv_case(*c) for c in CONVOLUTIONS), *(pool_case("max", *c) for c in POOLS),
             *(pool_case("avg", *c) for c in AVERAGES), *(norm_case(*c) for c in NORMS)]
    print(f"{flags.members} members, batch {flags.batch}, {jax.default_backend()}, forward + backward in a loop")
    print(f"{'case':32} {'ours ms':>9} {'/ flax':>8} {'/ torch':>8}")
    for case in cases:
        if flags.only in case[0]:
            ms, flax, theirs = measure(case, flags.batch, flags.members, flags.repeats)
            print(f"{case[0]:32} {ms:9.2f} {flax:8.3f} {theirs:8.2f}", flush=True)


if __name__ == "__main__":
    main()
