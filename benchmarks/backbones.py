"""Time and peak memory of backbones against PyTorch: forward, a step with frozen backbone, a full training step.

    PYTHONPATH=. python benchmarks/backbones.py [--models resnet18,vit_tiny] [--batch 16] [--size 224] [--rounds 7]

Each side (ours, PyTorch eager, PyTorch channels-last, with --compile also torch.compile) is a process of its own, which
keeps its compiled program; the sides take turns, and the ratios ours / theirs of the rounds are summed up by their
median and quartiles, for elapsed and for processor time. Below 1 means that we are faster or smaller. Memory is the
peak of the resident set with everything (imports, compiler), on a GPU that of the arrays.
Both sides draw the same number of examples from memory, use cross-entropy over ten classes, SGD with momentum, no
dropout. On a GPU (--dtype bfloat16) images per second and the share of the peak are printed too. Needs `torch`,
`torchvision`, `timm` and `transformers`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "vit_tiny", "bert")
STEPS = ("forward", "frozen", "full")
CLASSES, BATCHES, MOMENTUM, RATE = 10, 2, 0.9, 1e-3
BERT = {"width": 384, "layers": 6, "heads": 12, "mlp_width": 1536}
ARGUMENTS = {"bert": {**BERT, "dropout": 0.0}, "mobilenet_v2": {"dropout": 0.0}}  # of our backbones
TEXT_LENGTH = 128
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "V100": 125e12}  # dense half precision, FLOP/s
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40),
             "MALLOC_TOP_PAD_": str(2**26)}
ROOT = Path(__file__).resolve().parent.parent


def is_text(model: str) -> bool:
    return model == "bert"


def examples(job: dict[str, Any]) -> tuple[Any, Any]:
    """Two batches of inputs [2, B, ...] (NHWC or tokens) and labels [2, B]."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (BATCHES, job["batch"]))
    if is_text(job["model"]):
        return rng.integers(1000, 30000, (BATCHES, job["batch"], TEXT_LENGTH)).astype(np.int32), labels
    return rng.normal(size=(BATCHES, job["batch"], job["size"], job["size"], 3)).astype(np.float32), labels


# Our side

def ours(job: dict[str, Any]) -> Callable[[int], None]:
    """A function that runs n steps of the job in one compiled loop, as training does."""
    import jax
    import jax.numpy as jnp
    import optax

    from transfer_jax.core.compilation import compiled
    from transfer_jax.core.spec import Component
    from transfer_jax.models import build_backbone, build_head

    dtype = jnp.dtype(job["dtype"])
    backbone = build_backbone(Component(kind=job["model"], **ARGUMENTS.get(job["model"], {})), dtype)
    head = build_head(Component(kind="linear", classes=CLASSES), dtype)
    inputs, labels = map(jnp.asarray, examples(job))
    variables = jax.jit(lambda key, x: backbone.init(key, x))(jax.random.key(0), inputs[0])
    pooled = jax.eval_shape(lambda v, x: backbone.apply(v, x)["pooled"], variables, inputs[0])
    params = {"backbone": variables["params"],
              "head": head.init(jax.random.key(1), jnp.zeros(pooled.shape, dtype))["params"]}
    stats = variables.get("batch_stats", {})

    def logits(params: Any, stats: Any, x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        taps, moved = backbone.apply({"params": params["backbone"], "batch_stats": stats}, x, train,
                                     mutable=["batch_stats"] if train else [])
        return head.apply({"params": params["head"]}, taps), moved.get("batch_stats", stats)

    predict = compiled(lambda params, stats, x: logits(params, stats, x, False)[0])
    if job["step"] == "forward":
        return lambda count: jax.block_until_ready([predict(params, stats, inputs[i % BATCHES])
                                                    for i in range(count)][-1])
    frozen = job["step"] == "frozen"

    def step(number: jax.Array, state: Any, constants: Any) -> Any:
        trained, velocity, stats = state

        def loss(trained: Any) -> tuple[jax.Array, Any]:
            outputs, moved = logits({**constants, **trained}, stats, inputs[number % BATCHES], not frozen)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels[number % BATCHES]).mean(), moved

        gradients, moved = jax.grad(loss, has_aux=True)(trained)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        return jax.tree.map(lambda p, v: p - RATE * v, trained, velocity), velocity, moved

    @functools.partial(compiled, donate_argnums=0)
    def chunk(state: Any, constants: Any, count: jax.Array) -> Any:
        def body(carry: Any) -> Any:
            return carry[0] + 1, step(*carry, constants)

        return jax.lax.while_loop(lambda carry: carry[0] < count, body, (jnp.int32(0), state))[1]

    trained = {name: part for name, part in params.items() if name == "head" or not frozen}
    constants = {name: part for name, part in params.items() if name not in trained}
    holder = {"state": (trained, jax.tree.map(jnp.zeros_like, trained), stats)}

    def run(count: int) -> Any:
        holder["state"] = jax.block_until_ready(chunk(holder["state"], constants, jnp.int32(count)))
        return holder["state"]

    return run


def device_facts(job: dict[str, Any]) -> dict[str, Any]:
    """Operations of one forward pass of one example of the published size, and which device we run on."""
    import jax

    from transfer_jax.core.spec import Component
    from transfer_jax.models import build_backbone
    from transfer_jax.models.cost import forward_flops

    flops = forward_flops(build_backbone(Component(kind=job["model"])))
    return {"flops": flops, "device": jax.devices()[0].device_kind, "platform": jax.default_backend()}


# PyTorch's side

def network(model: str) -> Any:
    """The same network with ten classes and without dropout."""
    from tests.parity.oracle import framework

    torch = framework("torch")
    if model in ("resnet18", "resnet50"):
        return framework("torchvision").models.get_model(model, num_classes=CLASSES)
    if model == "mobilenet_v2":
        return framework("torchvision").models.mobilenet_v2(num_classes=CLASSES, dropout=0.0)
    if model.startswith("vit"):
        return framework("timm").create_model(f"{model}_patch16_224", num_classes=CLASSES, dynamic_img_size=True)
    transformers = framework("transformers")
    config = transformers.BertConfig(
        hidden_size=BERT["width"], num_hidden_layers=BERT["layers"], num_attention_heads=BERT["heads"],
        intermediate_size=BERT["mlp_width"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = transformers.BertModel(config)
            self.head = torch.nn.Linear(BERT["width"], CLASSES)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.encoder(tokens).pooler_output)

    return Classifier()


def torchs(job: dict[str, Any]) -> Callable[[int], None]:
    """A function that runs n steps of the job in PyTorch: eager, channels-last or compiled."""
    from tests.parity.oracle import framework

    torch = framework("torch")
    torch.set_num_threads(os.cpu_count())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = network(job["model"]).to(device)
    inputs, labels = (torch.tensor(a).to(device) for a in examples(job))
    labels = labels.long()
    if is_text(job["model"]):
        inputs = list(inputs.long())
    else:
        last = job["side"] != "torch"
        form = torch.channels_last if last else torch.contiguous_format
        inputs = [x.permute(0, 3, 1, 2).contiguous(memory_format=form) for x in inputs]
        net = net.to(memory_format=form)
    full = job["step"] == "full"
    net.train(full)
    head = next(m for m in reversed(list(net.modules())) if isinstance(m, torch.nn.Linear))
    for parameter in net.parameters():
        parameter.requires_grad_(full)
    for parameter in head.parameters():
        parameter.requires_grad_(job["step"] != "forward")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad] or [torch.zeros(1)], RATE, MOMENTUM)
    forward = torch.compile(net) if job["side"] == "torch compiled" else net
    lower = torch.autocast(device.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16")

    def run(count: int) -> None:
        for number in range(count):
            with lower, torch.set_grad_enabled(job["step"] != "forward"):
                outputs = forward(inputs[number % BATCHES])
                loss = torch.nn.functional.cross_entropy(outputs, labels[number % BATCHES])
            if job["step"] != "forward":
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


# One process per side

def work(job: dict[str, Any]) -> None:
    """Builds the side, then for each number read from the input runs that many steps and prints what they took."""
    run = (ours if job["side"] == "ours" else torchs)(job)
    for count in (1, 2):
        run(count)
    print("ready", flush=True)
    for line in sys.stdin:
        elapsed, busy = time.perf_counter(), time.process_time()
        run(int(line))
        print(json.dumps({"elapsed": (time.perf_counter() - elapsed) / int(line),
                          "busy": (time.process_time() - busy) / int(line), "memory": peak_memory(job)}), flush=True)


def peak_memory(job: dict[str, Any]) -> float:
    """MiB."""
    if job["side"] == "ours":
        import jax
        on_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") if job["gpu"] else None
    else:
        import torch
        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return (on_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20


class Side:
    """The process of one side."""

    def __init__(self, job: dict[str, Any], allocator: str) -> None:
        tuned = allocator == "both" or (allocator == "ours" and job["side"] == "ours")
        environment = {**os.environ, **(ALLOCATOR if tuned else {}), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, __file__, "--worker", json.dumps(job)], text=True, cwd=ROOT,
                                        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer("ready")

    def run(self, count: int) -> dict[str, float]:
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return json.loads(self._answer("{"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self, start: str) -> str:
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit("a side of the benchmark ended before its answer; its message is above")


def compare(job: dict[str, Any], sides: list[str], rounds: int, seconds: float, allocator: str) -> dict[str, list]:
    """For each side the answers of all rounds, taken in turn."""
    workers = {side: Side({**job, "side": side}, allocator) for side in sides}
    counts = {side: max(1, round(seconds / worker.run(1)["elapsed"])) for side, worker in workers.items()}
    answers: dict[str, list] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else sides[::-1]:  # no one always runs in the wake of the same other
            time.sleep(0.1)  # the threads of the side before spin for a while
            answers[side].append(workers[side].run(counts[side]))
    for worker in workers.values():
        worker.close()
    return answers


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def summary(answers: dict[str, list]) -> list[list[str]]:
    """One row per other side: its name, our milliseconds, ratios of elapsed time, processor time and memory."""
    mine = answers["ours"]
    rows = []
    for side, theirs in answers.items():
        if side != "ours":
            ratios = {key: [a[key] / b[key] for a, b in zip(mine, theirs, strict=True)] for key in ("elapsed", "busy")}
            rows.append([side, f"{1e3 * statistics.median(a['elapsed'] for a in mine):.1f}",
                         quartiles(ratios["elapsed"]), quartiles(ratios["busy"]),
                         f"{mine[-1]['memory']:.0f}", f"{mine[-1]['memory'] / theirs[-1]['memory']:.2f}"])
    return rows


def throughput(job: dict[str, Any], answers: dict[str, list], facts: dict[str, Any], peak: float) -> str:
    """Examples per second of each side and, at the published size, the share of the peak; backward counts twice."""
    passes = {"forward": 1, "frozen": 1, "full": 3}[job["step"]]
    parts = []
    for side, rounds in answers.items():
        rate = job["batch"] / statistics.median(a["elapsed"] for a in rounds)
        share = f", {rate * passes * facts['flops'] / peak:.1%} of the peak" if peak and job["size"] == 224 else ""
        parts.append(f"{side} {rate:.0f} examples/s{share}")
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; vit_base too")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one turn of a side takes")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile (channels-last)")
    parser.add_argument("--allocator", default="ours", choices=("ours", "both", "none"),
                        help="who runs with the allocator setting of launch/environment.sh")
    parser.add_argument("--peak", type=float, default=0.0, help="FLOP/s of the device, if it is not known here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(json.loads(flags.worker))
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a GPU
    import jax

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"{jax.devices()[0].device_kind}; jax {jax.__version__}; batch {flags.batch} at {flags.size}, {flags.dtype}, "
          f"{flags.rounds} rounds, allocator setting: {flags.allocator}")
    gpu = jax.default_backend() == "gpu"
    peak = flags.peak or next((p for name, p in PEAKS.items() if name in jax.devices()[0].device_kind), 0.0)
    print(f"{'model':13} {'step':8} {'against':15} {'ours ms':>8} {'time ratio':>18} {'processor ratio':>18} "
          f"{'ours MiB':>9} {'ratio':>6}")
    for model in flags.models.split(","):
        sides = ["ours", "torch", *([] if is_text(model) else ["torch chan.last"]),
                 *(["torch compiled"] if flags.compile else [])]
        for step in flags.steps.split(","):
            job = {"model": model, "step": step, "batch": flags.batch, "size": flags.size, "dtype": flags.dtype,
                   "gpu": gpu}
            answers = compare(job, sides, flags.rounds, flags.seconds, flags.allocator)
            for side, ms, elapsed, busy, memory, ratio in summary(answers):
                print(f"{model:13} {step:8} {side:15} {ms:>8} {elapsed:>18} {busy:>18} {memory:>9} {ratio:>6}",
                      flush=True)
            if gpu or flags.peak:
                print("   " + throughput(job, answers, device_facts(job), peak), flush=True)


if __name__ == "__main__":
    main()
