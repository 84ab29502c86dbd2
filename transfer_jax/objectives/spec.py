"""What a stage minimises, as configured: ordered updates of named, weighted terms."""

from __future__ import annotations

from typing import Any

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


class UpdateSpec(Spec):
    """One optimizer step: which terms, how their losses combine, which groups move and how often.

    With `sampling` a step trains one task, drawn from shares that follow from the sizes of their data (a kind of
    `sampling.SAMPLINGS`): its terms and those of no task run, and groups that these do not reach stay.
    """

    terms: dict[str, TermSpec]
    groups: tuple[str, ...] | None = None  # None: every group that trains
    repeats: int = Field(default=1, ge=1)
    combine: Component = Component(kind="fixed")
    sampling: Component | None = None


class ObjectiveSpec(Spec):
    """An ordered list of updates. A single update may be written as its `terms` and `combine` alone."""

    terms: dict[str, TermSpec] = {}
    combine: Component = Component(kind="fixed")
    sampling: Component | None = None
    updates: tuple[UpdateSpec, ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> ObjectiveSpec:
        if self.terms and self.updates:
            raise ValueError("give either 'terms' (one update) or 'updates', not both")
        if self.updates and self.sampling:
            raise ValueError("'sampling' belongs to one update; write it there")
        return self

    @property
    def ordered(self) -> tuple[UpdateSpec, ...]:
        one = UpdateSpec(terms=self.terms, combine=self.combine, sampling=self.sampling)
        return self.updates or ((one,) if self.terms else ())

    def streams(self) -> list[str]:
        """Names of the streams that the terms read, in order of first use."""
        names: dict[str, Any] = {}
        for update in self.ordered:
            for term in update.terms.values():
                names.update(dict.fromkeys(term.roles.values()))
        return list(names)
