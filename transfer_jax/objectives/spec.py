"""What a stage minimises, as configured: ordered updates of named, weighted terms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from transfer_jax.core.spec import Component, Spec


class TermSpec(Component):
    """One loss term: a function of the registry `TERMS` and where its arguments come from.

    `kind` "task" stands for the loss of the task named by `task`. A term reads one stream (`stream`), or several under
    the role names that its function's parameters carry (`streams={"source": ..., "target": ...}`). Features are those
    of `tap`, or of all `taps` for a term that compares layers. A statistic of the start (`objectives/statistics.py`) is
    measured over `measured_on`, by default the term's stream, or over about
    `measured_examples` of it.
    """

    stream: str | None = None
    streams: dict[str, str] = {}
    task: str | None = None
    head: str | None = None
    tap: str = "pooled"
    taps: tuple[str, ...] = ()
    measured_on: str | None = None
    measured_examples: int | None = Field(default=None, ge=1)
    weight: float = 1.0
    weight_schedule: Component = Component(kind="constant")

    @model_validator(mode="after")
    def _one_way(self) -> TermSpec:
        if self.stream and self.streams:
            raise ValueError("give either 'stream' or 'streams', not both")
        if self.kind == "task" and not self.task:
            raise ValueError("kind 'task' needs the name of a task: task='...'")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """Role -> stream name; the role of a single stream is the empty string."""
        return {"": self.stream} if self.stream else dict(self.streams)


class AffinitySpec(Spec):
    """Measures every so many steps how much a step on each term's loss helps the others; see `training/affinity.py`."""

    every: int = Field(default=10, ge=1)
    rate: float = Field(default=0.01, gt=0)  # of the plain gradient step


class CombiningSpec(Spec):
    """How the losses, or the gradients, of an update's terms become one.

    `gradients_of` says what a rule for gradients combines: those of the parameters that two or more terms reach
    ("shared"; a head gets its own term's gradient), of all that move ("parameters"), or of the features of a tap. With
    `on_bad_task` "skip" a term whose loss or gradient is not finite is left out of that step. `lookahead`: stream ->
    the stream whose batches take its place in a rule that looks ahead.

    With `sampling` a step trains one task, drawn from shares that follow from the sizes of their data (a kind of
    `sampling.SAMPLINGS`): its terms and those of no task run, and groups that these do not reach stay.
    """

    combine: Component = Component(kind="fixed")
    gradients_of: str = "shared"
    on_bad_task: Literal["error", "skip"] = "error"
    lookahead: dict[str, str] = {}
    sampling: Component | None = None
    affinity: AffinitySpec | None = None


class UpdateSpec(CombiningSpec):
    """One optimizer step: which terms, how they combine, which groups move and how often."""

    terms: dict[str, TermSpec]
    groups: tuple[str, ...] | None = None  # None: every group that trains
    repeats: int = Field(default=1, ge=1)


class ObjectiveSpec(CombiningSpec):
    """An ordered list of updates. A single update may be written as its `terms` and how they combine."""

    terms: dict[str, TermSpec] = {}
    updates: tuple[UpdateSpec, ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> ObjectiveSpec:
        if self.terms and self.updates:
            raise ValueError("give either 'terms' (one update) or 'updates', not both")
        fields = CombiningSpec.model_fields  # what a workdir's config.json tells of them may be the default
        named = [name for name in self.model_fields_set & set(fields)
                 if getattr(self, name) != fields[name].get_default(call_default_factory=True)]
        if self.updates and named:
            raise ValueError(f"{', '.join(sorted(named))} beside 'updates' would do nothing; write it in each update")
        return self

    @property
    def ordered(self) -> tuple[UpdateSpec, ...]:
        if self.updates or not self.terms:
            return self.updates
        combining = {name: getattr(self, name) for name in CombiningSpec.model_fields}
        return (UpdateSpec(terms=self.terms, **combining),)

    def streams(self) -> list[str]:
        """Names of the streams that the terms read, or that a rule looks ahead on, in order of first use."""
        names: dict[str, Any] = {}
        for update in self.ordered:
            for term in update.terms.values():
                names.update(dict.fromkeys(term.roles.values()))
            names.update(dict.fromkeys(update.lookahead.values()))
        return list(names)
