"""Writes a workdir as the engine would leave it, with invented numbers: reports are built from files alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from transfer_jax.training.writers import MetricWriter

METHODS = {  # method -> (score at one label per class, gain per decade of labels, labels it is trained with)
    "source model as it is": (0.31, 0.0, [None]),
    "from scratch": (0.14, 0.26, [1, 5, 10]),
    "linear classifier on frozen features": (0.22, 0.25, [1, 5, 10]),
    "frozen backbone, new head": (0.21, 0.27, [1, 5, 10]),
    "full fine-tuning": (0.24, 0.34, [1, 5, 10]),
    "probe, then fine-tuning": (0.25, 0.35, [1, 5, 10]),
    "L2 toward the source": (0.26, 0.32, [1, 5, 10]),
    "gradual unfreezing": (0.25, 0.31, [1, 5]),
    "domain-adversarial": (0.55, 0.0, [None]),
    "covariance alignment": (0.47, 0.0, [None]),
}
CLASSES = [str(i) for i in range(10)]
BACKBONE, HEAD = 272474, 650


def make_workdir(path: Path, seeds: int = 5, methods: tuple[str, ...] | None = None, points: int = 60,
                 segmentation: bool = False, shift: float = 0.0, selections: tuple[str, ...] = ("last", "oracle")):
    """A run with a pretraining stage and one stage per method and number of labels; returns its path."""
    path.mkdir(parents=True)
    random = np.random.default_rng(0)
    stages = {"pretrain": _stage("Source pretraining", {}, "fresh", frozen=False)}
    results = [_result("pretrain", {}, "source_test", "last", _seeds(random, 0.97, seeds), random)]
    paired = random.normal(0, 0.02, seeds)
    for method in methods or METHODS:
        level, gain, labels = METHODS[method]
        for count in labels:
            stage = method.replace(",", "").replace(" ", "_") + (f"_{count}" if count else "")
            tags = {"method": method} | ({"labels": count} if count else {})
            title = method + (f", {count} labels" if count else "")
            stages[stage] = _stage(title, tags, "pretrain", frozen="frozen" in method)
            scores = level + gain * np.log10(count or 1) + shift + paired + random.normal(0, 0.01, seeds)
            for selection in selections:
                better = 0.02 * (selection != "last")
                results.append(_result(stage, tags, "target_test", selection, scores + better, random))
    _write_metrics(path, stages, seeds, points, random)
    for stage in ["pretrain", *list(stages)[-1:], "full_fine-tuning_10", "probe_then_fine-tuning_10"]:
        if stage in stages:
            _write_predictions(path, stage, random, spread=1.0 if stage == "pretrain" else 2.5, masks=segmentation)
    config = {"name": "quickstart", "seeds": list(range(seeds)),
              "report": {"metric": "accuracy", "streams": ["target_test"], "row": "method", "x": "labels"}}
    for name, content in (("config", config), ("stages", stages), ("results", results)):
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def _seeds(random, mean, seeds):
    return mean + random.normal(0, 0.005, seeds)


def _stage(title, tags, init, frozen):
    groups = [{"group": "backbone", "tensors": 24, "parameters": BACKBONE, "share": BACKBONE / (BACKBONE + HEAD),
               "lr": None if frozen else 1e-3, "weight_decay": None if frozen else 1e-4,
               "optimizer": None if frozen else "adamw", "optimizer_bytes": 0 if frozen else 8 * BACKBONE,
               "frozen": frozen},
              {"group": "head", "tensors": 2, "parameters": HEAD, "share": HEAD / (BACKBONE + HEAD), "lr": 1e-2,
               "weight_decay": 0.0, "optimizer": "adamw", "optimizer_bytes": 8 * HEAD, "frozen": False}]
    trainable = HEAD if frozen else HEAD + BACKBONE
    return {"title": title, "tags": tags, "seconds": 2.1 if frozen else 6.4, "steps": 600, "trainable": trainable,
            "total": HEAD + BACKBONE, "optimizer_bytes": 8 * trainable, "init": init, "groups": groups,
            "select": "last step", "notes": [], "skipped_examples": {"target_train": 3} if tags else {}}


def _result(stage, tags, stream, selection, scores, random):
    accuracy = float(np.mean(scores))
    confusion = np.full((10, 10), 30 * (1 - accuracy)) + np.diag(np.full(10, 1000 * accuracy))
    confusion[3, 8] += 90
    confusion = random.poisson(confusion)
    return {"stage": stage, "tags": tags, "stream": stream, "selection": selection,
            "metrics": {"accuracy": scores.tolist(), "loss": (2.3 - 2 * scores).tolist(),
                        "calibration_error": _seeds(random, 0.08, len(scores)).tolist()},
            "per_class": {"accuracy": (scores[:, None] + random.normal(0, 0.05, (len(scores), 10))).tolist()},
            "confusion": confusion.tolist(), "class_names": CLASSES}


def _write_metrics(path, stages, seeds, points, random):
    with MetricWriter(path, tensorboard=False) as writer:
        for k, stage in enumerate(stages):
            for step in np.linspace(10, 600, points).astype(int):
                loss = 0.2 + 2.1 * np.exp(-step / 150) + random.normal(0, 0.05, seeds)
                writer.write(stage, step, "train", {"loss": np.float32(loss)})
                if step % 6 == 0:
                    accuracy = (0.3 + 0.02 * k) * (1 - np.exp(-step / 200)) + random.normal(0, 0.01, seeds)
                    stream = "target_test" if k else "source_test"
                    writer.write(stage, step, "eval", {"accuracy": np.float32(accuracy)}, stream)


def _write_predictions(path, stage, random, spread, masks):
    count, worst, size = 900, 24, 32
    label, domain = random.integers(0, 10, count), np.array(["digits", "photos"])[np.arange(count) % 2]
    prediction = np.where(random.random(count) < 0.6, label, random.integers(0, 10, count))
    centers = np.random.default_rng(1).normal(size=(10, 64))
    features = spread * centers[label] + random.normal(size=(count, 64)) + 1.5 * (domain == "photos")[:, None]
    confidence = np.clip(random.beta(5, 2, count), 0.1, 1)
    loss = random.exponential(size=count)
    arrays = {"label": label, "prediction": prediction, "confidence": confidence, "loss": loss,
              "index": np.arange(count), "thumbnails": random.integers(0, 255, (worst, size, size, 3), np.uint8),
              "thumbnail_rows": np.argsort(-loss)[:worst], "features": features.astype(np.float32),
              "feature_labels": label, "feature_domains": domain}
    if masks:
        shape = (worst, size, size)
        arrays |= {"masks_true": random.integers(0, 3, shape, np.uint8),
                   "masks_predicted": random.integers(0, 3, shape, np.uint8)}
    folder = path / "predictions" / stage
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / ("source_test.npz" if stage == "pretrain" else "target_test.npz"), **arrays)
