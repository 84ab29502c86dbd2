"""Adapters, prompts and prefixes that a stage's result holds: its own and those of the results that it starts from."""

from __future__ import annotations

from collections import Counter

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.params.peft import PeftSpec

Methods = dict[str, PeftSpec]


def inherited_methods(spec: ExperimentSpec, stage: str) -> Methods:
    """Name -> method of the leaves that stay in what the stage starts from.

    Raises:
      UserError: if the stage starts from a mean of models with different ones, or names one of its own like them.
    """
    names, where = list(spec.stages), f"config.stages.{stage}"
    before = names[names.index(stage) - 1] if stage != names[0] else "fresh"
    found = [_of_source(spec, before if init == "previous" else init) for init in spec.stages[stage].sources]
    if any(methods != found[0] for methods in found):
        raise UserError(f"{where}.init: a mean of models needs the same adapters and prompts in all of them; they have "
                        f"{'; '.join(', '.join(methods) or 'none' for methods in found)}")
    for name in set(found[0]) & set(spec.stages[stage].peft):
        raise UserError(f"{where}.peft: the model that the stage starts from has {name!r} already; leave it out, or "
                        f"give the new one another name")
    return found[0]


def kept_methods(spec: ExperimentSpec, stage: str) -> Methods:
    """Name -> method of the leaves that stay in the stage's result."""
    found = inherited_methods(spec, stage) | {
        name: method for name, method in spec.stages[stage].peft.items() if method.stays}
    places = Counter(target for method in found.values() if method.kind == "prompts" for target in method.targets)
    if places and max(places.values()) > 1:
        raise UserError(f"config.stages.{stage}.peft: {places.most_common(1)[0][0]!r} would get two sets of prompts; "
                        f"one with a larger 'count' does the same")
    return found


def all_methods(spec: ExperimentSpec) -> Methods:
    """Name -> method of all leaves that stay, over the stages; one name means one method."""
    methods: Methods = {}
    for stage in spec.stages:
        try:
            found = kept_methods(spec, stage)
        except UserError:  # told when the stage is prepared; a finished run answers without the one that it began with
            found = {name: method for name, method in spec.stages[stage].peft.items() if method.stays}
        for name, method in found.items():
            if methods.setdefault(name, method) != method:
                raise UserError(f"config.stages.{stage}.peft: another stage has another method called {name!r}; its "
                                f"leaves stay in the model, so give each a name of its own")
    return methods


def _of_source(spec: ExperimentSpec, init: str) -> Methods:
    if init in ("fresh", "random"):
        return {}
    if not init.startswith("checkpoint:"):
        return kept_methods(spec, init)
    folder, _, stage = init.partition(":")[2].partition("@")
    other = Workdir(folder).spec()
    stage = stage or list(other.stages)[-1]
    return kept_methods(other, stage) if stage in other.stages else {}
