"""`model/`: the parameters of one result with all that is needed to use them, in standard formats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from transfer_jax import __version__
from transfer_jax.core.errors import UserError
from transfer_jax.core.inputs import entries, read_inputs
from transfer_jax.core.mesh import batch_spec, make_mesh, place, replicate
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.core.spec import Component, build
from transfer_jax.data import StreamSpec, preprocessing
from transfer_jax.experiment.assembly import DTYPES, Assembly
from transfer_jax.experiment.evaluators import labelled
from transfer_jax.experiment.low_rank_files import write_low_rank
from transfer_jax.experiment.results import stage_variables, with_peft
from transfer_jax.experiment.staying import all_methods
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.models.domains import main_statistics, reading
from transfer_jax.models.model import MAIN, Model, ModelSpec, build_model
from transfer_jax.params.inserts import PREFIX, make_insert
from transfer_jax.params.peft import PeftSpec
from transfer_jax.pretrained.conversion import HEAD, STATISTICS
from transfer_jax.pretrained.description import Description
from transfer_jax.tasks import TaskSpec, predict
from transfer_jax.training.checkpoint import write_json

PARAMETERS, DESCRIPTION = "parameters.safetensors", "model.json"


def exported_stage(assembly: Assembly) -> str:
    """The stage whose result becomes `model/`: the one that the config names, else the last that trains a task."""
    if assembly.spec.export is not None:
        return assembly.spec.export
    trained = [name for name, stage in assembly.spec.stages.items() if stage.objective.ordered and stage.evaluate]
    return (trained or list(assembly.spec.stages))[-1]


def export_model(assembly: Assembly, workdir: Workdir, folder: Path, stage: str | None = None, seed: int | None = None,
                 select: str = "last") -> Path:
    """Writes parameters, statistics and description of one seed of a stage's result to `folder`, and leaves of
    `lora` and `dora` alone to `folder/peft/`."""
    spec = assembly.spec
    stage = stage or exported_stage(assembly)
    seed = spec.seeds[0] if seed is None else seed
    if seed not in spec.seeds:
        raise UserError(f"the run has no seed {seed}; it has {', '.join(map(str, spec.seeds))}")
    own, methods = stage_variables(workdir, spec, stage, select), spec.stages[stage].peft
    params, batch_stats = with_peft(methods, own)
    index = spec.seeds.index(seed)
    tensors = {f"params/{path}": leaf for path, leaf in params.items() if not path.startswith("objective/")}
    tensors |= {f"batch_stats/{path}": leaf for path, leaf in flatten(main_statistics(batch_stats)).items()}
    write_low_rank(folder, methods, {path: np.asarray(leaf)[index] for path, leaf in own[0].items()
                                     if path.startswith(PREFIX)}, assembly.model)
    _write(folder, {name: np.asarray(leaf)[index] for name, leaf in tensors.items()},
           _description(assembly, stage, seed, select, {
               name: method for name, method in all_methods(spec).items()
               if any(path.startswith(f"{PREFIX}{name}/") for path in params)}))
    return folder


def write_converted(folder: Path, backbone: Component, head: Component | None, leaves: Mapping[str, np.ndarray],
                    source: Description, image_shape: tuple[int, ...]) -> None:
    """Writes a model that was not trained here in the same form, ready for `predict` if it has a classifier.

    Args:
        leaves: of the backbone, and of the head under 'head/'.
        source: what came with the parameters: class names and preprocessing.
        image_shape: (H, W, C) of the inputs.
    """
    name = "classify"
    tensors = {}
    for path, leaf in leaves.items():
        kind = "batch_stats" if path.rpartition("/")[2] in STATISTICS else "params"
        place = f"heads/{name}/{path.removeprefix(HEAD)}" if path.startswith(HEAD) else f"{MAIN}/{path}"
        tensors[f"{kind}/{place}"] = leaf
    tasks = {}
    if head is not None:
        classes = list(source.classes or (f"class {i}" for i in range(head.arguments["classes"])))
        spec = StreamSpec(data=Component(kind="folder"), batch_size=1, **source.stream_arguments())
        tasks[name] = {"task": json.loads(TaskSpec(kind="classification", head=name).model_dump_json()),
                       "class_names": classes, "inputs": {MAIN: "image"}, "preprocessing": preprocessing(spec),
                       "evaluated_here": False, "image_shape": list(image_shape)}
    model = ModelSpec(backbones={MAIN: backbone}, heads={name: head} if head else {})
    _write(folder, tensors, {"format": 1, "transfer_jax": __version__, "source": source.source,
                             "precision": "float32", "model": json.loads(model.model_dump_json()), "tasks": tasks})


def _write(folder: Path, tensors: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}, folder / PARAMETERS)
    write_json(folder / DESCRIPTION, description)


def _description(assembly: Assembly, stage: str, seed: int, select: str,
                 methods: Mapping[str, PeftSpec]) -> dict[str, Any]:
    spec = assembly.spec
    tasks = {}
    for name, task in spec.tasks.items():
        used = [stream for stream, evaluated in labelled(spec.stages[stage]).values() if evaluated == name]
        for stream in (used or assembly.task_streams(name))[:1]:
            tasks[name] = {"task": json.loads(task.model_dump_json()), "class_names": list(assembly.class_names(name)),
                           "inputs": spec.streams[stream].inputs, "preprocessing": assembly.stream(stream).description,
                           "evaluated_here": bool(used),
                           "image_shape": list(assembly.stream(stream).example_shapes.get("image", ((),))[0])}
    heads = {name: {"kind": head.kind, **head.arguments} for name, head in assembly.sized_heads.items()}
    return {"format": 1, "transfer_jax": __version__, "experiment": spec.name, "stage": stage, "seed": seed,
            "select": select, "peft": {name: json.loads(method.model_dump_json()) for name, method in methods.items()},
            "precision": spec.precision,
            "model": {**json.loads(spec.model.model_dump_json()), "heads": heads}, "tasks": tasks}


class ExportedModel:
    """A model read from a `model/` folder, ready to answer."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            self.description = json.loads((folder / DESCRIPTION).read_text())
            tensors = load_file(folder / PARAMETERS)
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no exported model: {Path(error.filename or PARAMETERS).name} is missing; "
                            f"run the training to its end first") from error
        except (json.JSONDecodeError, SafetensorError) as error:
            raise UserError(f"{folder} is damaged ({error}); export the model again") from error
        model = build(ModelSpec, self.description["model"], str(folder / DESCRIPTION))
        inserts = {name: make_insert(build(PeftSpec, method), f"peft.{name}")
                   for name, method in self.description.get("peft", {}).items()}
        self.model: Model = dataclasses.replace(
            build_model(model, model.heads, DTYPES[self.description["precision"]]), inserts=inserts)
        self.variables = {kind: unflatten({name.removeprefix(f"{kind}/"): leaf for name, leaf in tensors.items()
                                           if name.startswith(f"{kind}/")}) for kind in ("params", "batch_stats")}

    def task(self, name: str | None) -> str:
        """The task to answer: the one named, else the only one that the exported stage was evaluated on."""
        tasks = self.description["tasks"]
        if name is None:
            usable = [task for task, entry in tasks.items() if entry["evaluated_here"]] or list(tasks)
            if len(usable) != 1:
                raise UserError(f"the model has the tasks {', '.join(usable)}; choose one with --task")
            return usable[0]
        if name not in tasks:
            raise UserError(f"the model has no task {name!r}; it has {', '.join(tasks)}")
        return name

    def predictor(self, task: str) -> Any:
        """A jitted function images float32 [B, H, W, C] -> {'prediction', 'confidence', 'probabilities'}; the images
        are split over all devices where B divides evenly."""
        entry = self.description["tasks"][task]
        spec = build(TaskSpec, entry["task"])
        others = [name for name in entries(entry["inputs"]) if name != "image"]
        if others:
            raise UserError(f"the task {task!r} reads {', '.join(others)} beside or in place of images, and "
                            f"predictions are of image files; score it on a stream with `evaluate`")

        @jax.jit
        def answer(variables: Mapping[str, Any], images: jax.Array) -> dict[str, jax.Array]:
            with reading(None, spec.head):
                taps, _ = self.model.taps(variables, read_inputs(entry["inputs"], {"image": images}))
            outputs, _ = self.model.head(variables, spec.head, taps, images.shape[1:3])
            return predict(spec, outputs)

        mesh = make_mesh({"data": -1})
        variables = replicate(mesh, self.variables)
        return lambda images: answer(variables, place(images, NamedSharding(mesh, batch_spec(mesh, len(images)))))
