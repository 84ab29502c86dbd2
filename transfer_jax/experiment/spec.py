"""The whole experiment as one strict record: what a config file may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from transfer_jax.core.spec import Component, Spec
from transfer_jax.data.spec import StreamSpec
from transfer_jax.models.model import ModelSpec
from transfer_jax.objectives.spec import ObjectiveSpec
from transfer_jax.params.optimizers import SCHEDULE_FREE
from transfer_jax.params.partition import GroupSpec
from transfer_jax.params.peft import PeftSpec
from transfer_jax.params.weight_noise import WeightNoiseSpec
from transfer_jax.pretrained.loading import PretrainedSpec
from transfer_jax.tasks import TaskSpec
from transfer_jax.training.writers import VALIDATED


class BestSpec(Spec):
    """Keep, beside the last parameters, those with the best value of one declared metric (per seed)."""

    stream: str
    metric: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    oracle: bool = False  # allow, and label as such, a choice by target labels in an unsupervised stage

    @property
    def by_validator(self) -> bool:
        """Whether the metric is one of `validation`, for which no label of the stream is read."""
        return self.metric.startswith(VALIDATED)


class ValidationSpec(Spec):
    """Judges the stage's result without target labels, at its start and whenever it is evaluated.

    Each validator (see `evaluation/validators.py`) becomes the metric `validator/<name>` of each target stream, which
    `best` may name. Labels of a target stream are never looked at.
    """

    target: str | tuple[str, ...]  # streams, each judged by itself
    task: str  # whose head answers; of kind classification or binary
    source: str | None = None  # a labelled stream from which no stage has learnt; None: target outputs alone
    tap: str = "pooled"
    validators: tuple[str, ...] = ()  # (): all that go with these streams
    examples: int = Field(default=1000, ge=2)  # at most, of each stream

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target


class ImportanceSpec(Component):
    """Weights of a labelled stream's examples, by which it looks like the target: `kind` is a name of
    `adaptation.WEIGHTS`, with its arguments, on the features `tap`; or 'class_shares', by the predictions of `task`.

    They are found at the stage's start, with `renewed` anew whenever `measure_every` says.
    """

    target: str  # a stream; its labels are not looked at
    tap: str = "pooled"
    task: str | None = None
    renewed: bool = False


class MixStyleSpec(Spec):
    """Feature maps of training batches take on the style of other examples; see `layers/mix_style.py`."""

    taps: tuple[str, ...] = Field(min_length=1)
    probability: float = Field(default=0.5, ge=0, le=1)
    alpha: float = Field(default=0.1, gt=0)
    across_domains: bool = False  # the other example is of another domain: batches then carry its number


class EmaSpec(Spec):
    """Exponential moving average of the trainable parameters and the BatchNorm statistics."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    warmup: bool = True  # decay min(decay, (1 + t) / (10 + t)), so that short runs are not dominated by the start
    use: bool = True  # the stage's result is the average (`raw_` metrics beside it); False: `ema_` metrics only


class StageSpec(Spec):
    """Where parameters come from, what moves, toward what, for how long, and what is evaluated."""

    title: str = ""
    tags: dict[str, str | int | float] = {}
    # previous, fresh, random, the name of an earlier stage, checkpoint:WORKDIR[@stage]; or {name: weight}, the mean of
    # several, statistics of norms included: WiSE-FT (Wortsman et al. 2022), model soups, task arithmetic
    init: str | dict[str, float] = "previous"
    select: Literal["last", "best"] = "last"  # which parameters of the stage named by `init`
    new: tuple[str, ...] = ()  # regexes of parameters to initialise afresh, for example "heads/digits/.*"
    initializer: Component | None = None  # of kernels in init="random" and `new`, in place of the layers' own
    refit: tuple[Component, ...] = ()  # closed forms over a stream that change the start, in order; see refitting.py
    objective: ObjectiveSpec = ObjectiveSpec()
    peft: dict[str, PeftSpec] = {}  # new leaves peft/<name>/... that change layers, in this order
    partition: tuple[tuple[str, str], ...] = ((".*", "all"),)
    groups: dict[str, GroupSpec] = {}
    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    examples: int | None = Field(default=None, gt=0)
    optimizer: Component = Component(kind="adam")
    lr: float = Field(default=1e-3, gt=0)
    schedule: Component = Component(kind="constant")
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)  # global norm over the leaves that an update moves
    accumulate: int = Field(default=1, ge=1)  # micro-batches a step
    cache: Literal["auto", "never"] = "auto"  # frozen first layers without random inputs run once; see caching.py
    # Every stream's batch normalises by itself and moves the same stored statistics ("follow"; frozen layers stay);
    # or stored statistics everywhere ("stored"); or all streams in one pass, as one batch ("joint"); or each domain
    # with statistics of its own, the last stream's being the main ones ("separate"); or the first stream's domain as
    # in "follow" and all others on its stored statistics ("source").
    batch_norm: Literal["follow", "stored", "joint", "separate", "source"] = "follow"
    importance: dict[str, ImportanceSpec] = {}  # stream -> how its examples are weighted
    measure_every: int = Field(default=0, ge=0)  # steps after which renewed statistics are measured anew; 0: never
    gradient_scale: dict[str, float] = {}  # stream -> factor on all gradients that its batches send to parameters
    stochastic_norm: float | None = Field(default=None, ge=0, le=1)  # share of channels that normalise by their batch
    weight_noise: WeightNoiseSpec | None = None  # in training steps, for example mixout toward the start
    mix_style: MixStyleSpec | None = None
    ema: EmaSpec | None = None
    evaluate: dict[str, str | tuple[str, ...]] = {}  # stream -> task or tasks
    eval_every: int = Field(default=0, ge=0)  # steps; 0: only at the stage's end
    best: BestSpec | None = None
    validation: ValidationSpec | None = None
    embed: tuple[str, ...] = ()  # evaluated streams whose features the report shows before and after
    embed_tap: str = "pooled"

    @field_validator("partition", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        return tuple(tuple(rule) for rule in value) if isinstance(value, list | tuple) else value

    @field_validator("init")
    @classmethod
    def _mean(cls, init: str | dict[str, float]) -> str | dict[str, float]:
        if not isinstance(init, str) and abs(sum(init.values()) - 1) > 1e-6:
            raise ValueError(f"the weights of init sum to {sum(init.values()):g}; a mean needs a sum of 1")
        return init

    @property
    def sources(self) -> dict[str, float]:
        """Where parameters come from -> its weight."""
        return {self.init: 1.0} if isinstance(self.init, str) else dict(self.init)

    @property
    def schedule_free(self) -> bool:
        """Whether an optimizer keeps averages that are the stage's result."""
        return any((group.optimizer or self.optimizer).kind in SCHEDULE_FREE for group in self.group_specs.values())

    @property
    def averaged(self) -> bool:
        """Whether the stage's result are averaged parameters."""
        return self.schedule_free or bool(self.ema and self.ema.use)

    @model_validator(mode="after")
    def _consistent(self) -> StageSpec:
        if self.ema and self.schedule_free:
            raise ValueError("a schedule-free optimizer keeps its own average; leave 'ema' out")
        if self.initializer and "random" not in self.sources and not self.new:
            raise ValueError("initializer draws nothing here; set init='random', or name what is `new`")
        lengths = [name for name in ("steps", "epochs", "examples") if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise ValueError(f"give one duration, not {' and '.join(lengths)}")
        if not lengths and self.objective.ordered:
            raise ValueError("give a duration: steps, epochs or examples")
        if self.best and self.best.by_validator:
            if self.validation is None or self.best.stream not in self.validation.targets:
                raise ValueError(f"best.metric {self.best.metric!r} needs {self.best.stream!r} to be a target of "
                                 f"'validation'")
            if self.best.mode != "max":
                raise ValueError("validators are better when larger; leave best.mode at 'max'")
        elif self.best and self.best.stream not in self.evaluate:
            raise ValueError(f"best.stream {self.best.stream!r} is not evaluated; add it to 'evaluate'")
        return self

    @property
    def group_specs(self) -> dict[str, GroupSpec]:
        """Declared groups; the default partition has the one group `all`."""
        if not self.groups and self.partition == ((".*", "all"),):
            return {"all": GroupSpec()}
        return dict(self.groups)


class ReportSpec(Spec):
    """What the report shows first: a metric on streams, a row for each `row` tag, a column for each `x` tag."""

    title: str = ""
    metric: str = "accuracy"
    streams: tuple[str, ...] = ()
    row: str = "method"
    x: str | None = None
    reference: str | None = None  # the row that others are compared with
    tasks: dict[str, str] = {}  # stream -> metric: of each task, for the mean change against the reference (Delta_m)


class ExperimentSpec(Spec):
    """Named streams, tasks and ordered stages over one model.

    `pretrained` names the source of a backbone's parameters. A stage that starts `fresh` has them where they are given
    and random draws elsewhere; one that starts `random` has random draws everywhere.
    """

    name: str
    seeds: tuple[int, ...] = (0,)
    model: ModelSpec
    pretrained: dict[str, PretrainedSpec] = {}
    streams: dict[str, StreamSpec]
    tasks: dict[str, TaskSpec]
    stages: dict[str, StageSpec]
    report: ReportSpec = ReportSpec()
    precision: Literal["float32", "bfloat16"] = "float32"
    eval_batch_size: int = Field(default=256, ge=1)
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=1000, ge=0)  # steps; 0: only at the end of a stage
    keep_checkpoints: int = Field(default=2, ge=1)
    members: Literal["auto", "vmap", "map"] = "auto"  # how the seeds run together: vmap, on a CPU one by one
    parallel: tuple[tuple[str, ...], ...] = ()  # groups of neighbouring stages that train at once, see parallel.py
    # how they are compiled: "joined" in one program, or "apart", one each; by itself apart on a single CPU device
    lanes: Literal["auto", "joined", "apart"] = "auto"
    steps_per_dispatch: int = Field(default=0, ge=0)  # 0: chosen so that the host looks in twice a second
    mesh: dict[str, int] = {"data": -1, "fsdp": 1, "model": 1}  # sizes of the axes; -1: what the others leave
    # (regex, tactic) of parameters, first match; see training/sharding.py. None: the shipped rules
    sharding: tuple[tuple[str, str], ...] | None = None
    frozen_sharding: tuple[tuple[str, str], ...] | None = None  # of parameters that do not train; None: `sharding`
    heartbeat_seconds: int = Field(default=60, ge=2)  # how long a process may be silent before all end
    compilation_cache: str | None = "default"  # a folder, "default" (the user's cache) or None
    export: str | None = None  # stage whose result becomes `model/`; default the last that trains

    @field_validator("sharding", "frozen_sharding", mode="before")
    @classmethod
    def _rules(cls, value: object) -> object:
        return tuple(tuple(rule) for rule in value) if isinstance(value, list | tuple) else value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be distinct non-negative integers, at least one")
        return seeds
