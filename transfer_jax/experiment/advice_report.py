"""Advice for people: tables in the terminal, reasons in sentences, the command to run, and `advice.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import build
from transfer_jax.experiment.advice import SMALL, Advice, advise, chosen
from transfer_jax.experiment.advising import (
    measure,
    measure_model,
    on_network,
    recipe_reference,
    takes_recipe,
    trained_on,
    try_out,
    verify,
    with_recipe,
)
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.export import exported_stage
from transfer_jax.experiment.features import trained_model
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import output_console, print_table


def give_advice(config: str, overrides: Sequence[str] = (), *, source: str | None = None, small: int = SMALL,
                verified: bool = False, share: float = 0.3, workdir: Path | None = None) -> Advice:
    """Measures, advises, prints and, with a workdir, writes `advice.json`; see the command `advise`."""
    if verified and workdir is None:
        raise UserError("--verify trains models and needs a folder for them; add --workdir DIR")
    if not 0 < share <= 1 or small < 1:
        raise UserError(f"--share {share} and --small {small} do not fit; use a share up to 1 and a number above 0")
    spec = build(ExperimentSpec, load_config(config, overrides))
    _check_source(spec, source)
    found = advise(measure(spec, source), small)
    if verified:
        found = verify(found, lambda recipe: with_recipe(config, overrides, recipe), workdir / "verify", share)
    show(found, command(found, config))
    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "advice.json", {**dataclasses.asdict(found), "config": config, "overrides": [*overrides]})
    return found


def advise_on_run(folder: Path, stage: str | None, stream: str, source: str | None = None, small: int = SMALL,
                  steps: int = 0) -> dict[int, Advice]:
    """Advice for the network that a stage of a run left, of every seed, on the training examples of a stream; prints
    it and writes it to `FOLDER/advice/<stream>.json`. Nothing that was trained on the stream has a say.

    Args:
        steps: above 0, the candidates are trained for so many steps, from that network, below
            `FOLDER/advice/verify/<stream>/`, on four fifths of the examples, and the best on the rest is advised.
    """
    if small < 1 or steps < 0:
        raise UserError(f"--small {small} and --steps {steps} do not fit; use numbers above 0")
    spec = Workdir(folder).spec()
    _check_source(spec, source)
    trained_on(spec, stream)  # a misspelt stream shows before the models are read
    stage = stage or exported_stage(Assembly(spec))
    found = {}
    for seed in spec.seeds:
        evidence = measure_model(*trained_model(folder, stage, seed), stream=stream, source=source, quiet=True)
        found[seed] = advise(evidence, small)
    if steps:
        recipes = dict.fromkeys(recipe for advice in found.values() for recipe in advice.candidates)
        tried = try_out([*recipes], lambda recipe: on_network(spec, folder.resolve(), stage, stream, steps, recipe),
                        folder / "advice" / "verify" / stream)
        found = {seed: chosen(advice, tried) for seed, advice in found.items()}
    first, *others = found
    show(found[first])
    for seed in others:
        print(f"seed {seed}: {found[seed].situation.replace('_', ', ')}, {found[seed].recipe}")
    path = folder / "advice" / f"{stream}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"stage": stage, "stream": stream, "small": small, "steps": steps,
                      "advice": {str(seed): dataclasses.asdict(advice) for seed, advice in found.items()}})
    print(f"written: {path}")
    return found


def _check_source(spec: ExperimentSpec, source: str | None) -> None:
    if source is not None and source not in spec.streams:
        raise unknown("stream", source, spec.streams, "--source")


def show(advice: Advice, how: str = "") -> None:
    """Prints the evidence, the reasons and, where there is one, the command."""
    console = output_console()
    rows = [(tap, f"{row.accuracy:.3f}", f"{row.low:.3f} to {row.high:.3f}")
            for tap, row in advice.evidence.by_tap.items()]
    print_table(("features behind", "linear probe", "95 % interval"), rows, console)
    scores = [(name, f"{value:.4g}") for name, value in advice.evidence.scores.items()]
    print_table(("transferability", "value"), scores, console)
    if advice.verified:
        print_table(("trained briefly", "accuracy", "seeds"),
                    [(recipe, f"{np.mean(values):.3f}", ", ".join(f"{value:.3f}" for value in values))
                     for recipe, values in advice.verified.items()], console)
    print(f"\nsituation: {advice.situation.replace('_', ', ')}")
    for reason in advice.reasons:
        print(f"  - {reason}")
    print(f"recipe: {advice.recipe}")
    if how:
        print(f"  {how}")


def command(advice: Advice, config: str) -> str:
    """What to run."""
    if takes_recipe(config):
        return f"python -m transfer_jax.train --config '{recipe_reference(config, advice.recipe)}' --workdir runs/mine"
    return (f"in the config: **transfer_jax.recipes.expand({advice.recipe!r}, Setting(...)) in place of model, "
            "pretrained, tasks and stages")
