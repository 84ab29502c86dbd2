"""Answers of an exported model for image files, as CSV, JSON or mask pictures."""

from __future__ import annotations

import csv
import glob
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.data import preprocess_image
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.sources.folders import SUFFIXES
from transfer_jax.experiment import answer_files
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.export import ExportedModel, export_model
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.tasks import TASKS


def predict_paths(folder: Path, inputs: Sequence[str], out: Path | None, *, task: str | None = None,
                  stage: str | None = None, seed: int | None = None, batch_size: int = 64,
                  skip_bad: bool = False) -> None:
    """Answers for all images that `inputs` name; see the command `predict`."""
    if out is not None and out.suffix not in (".csv", ".json", ""):
        raise UserError(f"--out {out} must end in .csv or .json (or be a folder, for masks)")
    paths = find_images(inputs)
    model = open_model(folder, stage, seed)
    task = model.task(task)
    answers = list(answer(model, task, paths, batch_size, skip_bad))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    entry = model.description["tasks"][task]
    kind, names = TASKS[entry["task"]["kind"]].answers, entry["class_names"]
    if kind == "boxes":
        write_boxes(out, answers, names)
    elif kind == "masks":
        write_masks(out, answers, names or ("inside", "boundary"))
    elif kind in answer_files.FILES:
        answer_files.write_files(out, answers, kind, entry["preprocessing"])
    elif kind in answer_files.ROWS:
        _write_rows(out, answer_files.ROWS[kind](answers, names))
    else:
        write_answers(out, answers, names)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and globs name, each once, in order."""
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            new = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.is_file():
            new = [path]
        else:
            new = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())
        if not new:
            raise UserError(f"--input {text!r} names no image; give a file, a folder of images or a glob")
        found.update(dict.fromkeys(new))
    return list(found)


def open_model(folder: Path, stage: str | None, seed: int | None) -> ExportedModel:
    """The exported model of a run; another stage or seed than the exported one is exported for the occasion."""
    if stage is None and seed is None:
        return ExportedModel(folder / "model" if (folder / "model").is_dir() else folder)
    workdir = Workdir(folder)
    with tempfile.TemporaryDirectory() as place:
        return ExportedModel(export_model(Assembly(workdir.spec()), workdir, Path(place), stage, seed))


def answer(model: ExportedModel, task: str, paths: Sequence[Path], batch_size: int,
           skip_bad: bool) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """(path, prediction and probabilities of that image) in the order of the paths."""
    entry = model.description["tasks"][task]
    predictor = model.predictor(task)
    shape = tuple(entry["image_shape"])
    for start in range(0, len(paths), batch_size):
        read = [(path, image) for path in paths[start:start + batch_size]
                if (image := _read(path, entry["preprocessing"], skip_bad)) is not None]
        if not read:
            continue
        images = np.zeros((batch_size, *shape), np.float32)  # one shape, one program
        images[:len(read)] = np.stack([image for _, image in read])
        found = {name: np.asarray(values) for name, values in predictor(images).items()}
        for row, (path, _) in enumerate(read):
            yield path, {name: values[row] for name, values in found.items()}


def _read(path: Path, description: dict[str, Any], skip_bad: bool) -> np.ndarray | None:
    try:
        return preprocess_image(path, description)
    except UnreadableImage as error:
        if not skip_bad:
            raise
        print(f"skipped: {error}", file=sys.stderr)
        return None


def write_answers(out: Path | None, answers: Sequence[tuple[Path, dict[str, np.ndarray]]],
                  classes: Sequence[str]) -> None:
    """A row an image: path, class, confidence, and the probability of every class."""
    _write_rows(out, [_row(path, found, classes) for path, found in answers])


def _write_rows(out: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    if out is not None and out.suffix == ".json":
        out.write_text(json.dumps(rows, indent=1) + "\n")
    elif out is not None:
        with open(out, "w", newline="") as file:
            _write_csv(file, rows)
    else:
        _write_csv(sys.stdout, rows)
    if out is not None:
        print(f"{len(rows)} answers: {out}")


def write_boxes(out: Path | None, answers: Sequence[tuple[Path, dict[str, np.ndarray]]],
                classes: Sequence[str]) -> None:
    """A row a box: path, class, score and its edges in units of what the network saw of the image; JSON also names
    images without a box."""
    found = {str(path): [{"class": classes[int(row[4])], "score": float(row[5]),
                          **dict(zip(("ymin", "xmin", "ymax", "xmax"), map(float, row[:4]), strict=True))}
                         for row in one["prediction"] if row[4] >= 0] for path, one in answers}
    rows = [{"path": path, **box} for path, boxes in found.items() for box in boxes]
    if out is not None and out.suffix == ".json":
        out.write_text(json.dumps(found, indent=1) + "\n")
    elif out is not None and not out.suffix:
        raise UserError(f"--out {out}: boxes are written as .csv or .json; give such a file")
    elif out is not None:
        with open(out, "w", newline="") as file:
            _write_csv(file, rows)
    else:
        _write_csv(sys.stdout, rows)
    if out is not None:
        print(f"{len(rows)} boxes in {len(found)} images: {out}")


def _row(path: Path, found: dict[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    if not classes:
        return {"path": str(path), **{f"output_{i}": float(v) for i, v in enumerate(np.ravel(found["prediction"]))}}
    return {"path": str(path), "class": classes[int(found["prediction"])], "confidence": float(found["confidence"]),
            **{f"p({name})": float(p) for name, p in zip(classes, found["probabilities"], strict=True)}}


def _write_csv(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["path"])
    writer.writeheader()
    writer.writerows(rows)


def write_masks(out: Path | None, answers: Sequence[tuple[Path, dict[str, np.ndarray]]],
                classes: Sequence[str]) -> None:
    """A palette PNG an image, whose pixel values are class numbers, and `classes.json`."""
    if out is None or out.suffix:
        raise UserError("a segmentation model writes masks; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    palette = np.random.default_rng(7).integers(40, 256, (256, 3), np.uint8)
    palette[0] = 0
    for number, (path, found) in enumerate(answers):
        picture = Image.fromarray(found["prediction"].astype(np.uint8), mode="P")
        picture.putpalette(palette.tobytes())
        picture.save(out / f"{number:05d}_{path.stem}.png")
    (out / "classes.json").write_text(json.dumps(list(classes)) + "\n")
    print(f"{len(answers)} masks: {out}")
