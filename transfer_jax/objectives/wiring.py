"""From configured terms to loss values: a term's parameter names say which quantities it receives.

A positional parameter `[role_]quantity` receives, from the stream of that role (`source_features`; no prefix for a
single stream):

    logits        output of the term's head                 labels       batch entry of the task (`label`, `mask`)
    task_logits   output of the head of the term's `task`   label_probs  mixed labels [B, K], or None
    features      the tap named by the term's `tap`         weights      weight of every example, float32 [B]
    layers        the taps named by its `taps`, a tuple     domains      domain number of every example
    inputs        what the network reads                    examples     number of every example in its stream
    apply_model   function: inputs -> task_logits of other inputs; statistics of norms stay
    start_logits, start_features   the same as the model gave them at the stage's start, without dropout and on stored
                  statistics: constants for the gradient
    teacher_logits   task_logits as the moving average (`ema`) of the model gives them, likewise

and, without a role: `parameters` and `initial_parameters` (flat path -> array of the trainable leaves now and at
the stage's start), `apply_head` (array -> output of the term's head), `progress` (0 to 1 through the stage), `key`, and
the statistics of the start (`fisher` and others of `objectives/statistics.py`), whose options are options of the term.
A term that asks for `carried` keeps arrays from step to step: `objectives/carried.py` says which it has at first, and
it returns (value, metrics, new ones). Keyword-only parameters are the arguments that a config may set. So a new method
is one function in one file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import Component, bind
from transfer_jax.objectives import TERMS
from transfer_jax.objectives.carried import CARRIED
from transfer_jax.objectives.spec import TermSpec, UpdateSpec
from transfer_jax.objectives.statistics import STATISTICS, Statistic
from transfer_jax.params.schedules import SCHEDULES
from transfer_jax.tasks import TASKS, TaskSpec

PER_STREAM = ("start_logits", "start_features", "task_logits", "teacher_logits", "logits", "labels", "label_probs",
              "weights", "features", "layers", "domains", "inputs", "examples", "apply_model")
FROM_START = ("initial_parameters", "start_logits", "start_features")
OF_TASK = ("task_logits", "teacher_logits", "apply_model")  # by the head of the term's task
SHARED = ("parameters", "initial_parameters", "apply_head", "carried", "progress", "key")


@dataclass(frozen=True)
class Term:
    """A bound term: its function, and the (parameter, role, quantity) triples that it is called with."""

    name: str
    spec: TermSpec
    kind: str
    function: Callable[..., Any]
    quantities: tuple[tuple[str, str, str], ...]
    head: str | None
    task_head: str | None
    label_key: str
    task_kind: str
    statistics: Mapping[str, Statistic]  # by quantity

    @property
    def parameters_needed(self) -> frozenset[str]:
        return frozenset(parameter for parameter, _, _ in self.quantities)

    @property
    def needs_start(self) -> bool:
        """Whether the stage has to keep its parameters of the start for this term."""
        return self.reads(FROM_START)

    @property
    def heads(self) -> frozenset[str]:
        """Names of the heads that the term runs."""
        return frozenset(head for head in (self.head, self.task_head if self.reads(OF_TASK) else None) if head)

    def reads(self, quantities: Collection[str]) -> bool:
        """Whether the term asks for one of these quantities."""
        return any(quantity in quantities for _, _, quantity in self.quantities)

    @property
    def labelled_roles(self) -> tuple[str, ...]:
        """The roles of the streams whose labels the term reads."""
        return tuple(dict.fromkeys(role for _, role, quantity in self.quantities
                                   if quantity in ("labels", "label_probs")))

    def first_carried(self, sizes: Mapping[str, int]) -> Any:
        """What the term carries at the stage's start; `sizes`: examples of every stream."""
        function = CARRIED[self.kind]
        options = inspect.signature(function).parameters
        arguments = {name: value for name, value in self.spec.arguments.items() if name in options}
        if "size" in options:
            arguments["size"] = max(sizes[stream] for stream in self.spec.roles.values())
        return function(**arguments)

    @property
    def weight(self) -> Callable[[jax.Array, int], jax.Array]:
        """(step, total steps) -> the term's weight."""
        factor = bind(SCHEDULES, self.spec.weight_schedule, "schedule", supplied=("step", "total_steps"))
        return lambda step, total: self.spec.weight * factor(step, total)


@dataclass(frozen=True)
class Context:
    """What the terms of one update may look at.

    `taps(stream, head)` are those that this head reads (of a term without one: None). `output(stream, head)` and
    `apply(head, array)` run heads, `again(stream, head, inputs)` the model on other inputs; `start_taps(stream, head)`
    and `start_output(stream, head)` run the model of the stage's start, `teacher_output(stream, head)` the averaged one
    (None without an average).
    """

    batches: Mapping[str, Mapping[str, jax.Array]]
    output: Callable[[str, str], jax.Array]
    progress: jax.Array
    key: jax.Array
    taps: Callable[[str, str | None], Mapping[str, jax.Array]] | None = None
    apply: Callable[[str, jax.Array], jax.Array] | None = None
    inputs: Callable[[str], jax.Array] | None = None  # of a stream
    again: Callable[[str, str, jax.Array], jax.Array] | None = None
    start_taps: Callable[[str, str | None], Mapping[str, jax.Array]] | None = None
    start_output: Callable[[str, str], jax.Array] | None = None
    teacher_output: Callable[[str, str], jax.Array] | None = None
    parameters: Mapping[str, jax.Array] = field(default_factory=dict)
    initial_parameters: Mapping[str, jax.Array] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)  # of the start, by `statistic_name`
    carried: Mapping[str, Any] = field(default_factory=dict)  # by the term's name


def make_terms(update: UpdateSpec, tasks: Mapping[str, TaskSpec], where: str) -> list[Term]:
    """Binds the terms of an update, checking names, arguments, streams and heads."""
    return [make_term(name, spec, tasks, f"{where}.{name}") for name, spec in update.terms.items()]


def make_term(name: str, spec: TermSpec, tasks: Mapping[str, TaskSpec], where: str) -> Term:
    """Binds one term; see the module's text for what its function may ask for."""
    if spec.task and spec.task not in tasks:
        raise unknown("task", spec.task, tasks, where)
    task = tasks[spec.task] if spec.task else None
    component = Component(kind=spec.kind, **spec.arguments)
    if spec.kind == "task":
        component = Component(kind=task.loss.kind, **{**task.loss.arguments, **spec.arguments})
    parameters = _parameters(TERMS.get(component.kind))
    component, statistics = _statistics(component, parameters, where)
    function = bind(TERMS, component, "term", where, supplied=tuple(parameters))
    quantities = tuple(_quantity(parameter, spec, where) for parameter in parameters)
    head = spec.head or (task.head if task else None)
    needed = {quantity for _, _, quantity in quantities}
    if head is None and needed & {"logits", "start_logits", "apply_head"}:
        raise UserError(f"{where} (kind {component.kind!r}) needs a head; set head='...' or task='...'")
    if task is None and needed & set(OF_TASK):
        raise UserError(f"{where} (kind {component.kind!r}) needs the outputs of a task; set task='...'")
    if "layers" in needed and len(spec.taps) < 1:
        raise UserError(f"{where} (kind {component.kind!r}) compares several taps; set taps=('...', ...)")
    term = Term(name, spec, component.kind, function, quantities, head, task.head if task else None,
                task.label if task else "label", task.kind if task else "classification", statistics)
    _check_measurable(term, where)
    return term


def _statistics(component: Component, parameters: list[str], where: str) -> tuple[Component, dict[str, Statistic]]:
    """The component less the options of the statistics that it asks for, and these, bound."""
    left, found = component.arguments, {}
    for name in parameters:
        if name in STATISTICS:
            options = inspect.signature(STATISTICS[name]).parameters
            own = Component(kind=name, **{key: left.pop(key) for key in list(left) if key in options})
            found[name] = bind(STATISTICS, own, "statistic", where)()
    return Component(kind=component.kind, **left), found


def _check_measurable(term: Term, where: str) -> None:
    if not term.statistics:
        return
    wanted = {"measured_on": measured_stream(term.spec), "head": term.head}
    wanted |= {"task": term.spec.task} if {"relationship", "channel_weights"} & set(term.statistics) else {}
    for key, value in wanted.items():
        if value is None:
            raise UserError(f"{where} (kind {term.spec.kind!r}) is measured at the start; set {key}='...'")


def measured_stream(spec: TermSpec) -> str | None:
    """The stream over which statistics of the start are measured."""
    return spec.measured_on or spec.stream


def statistic_name(term: str, quantity: str) -> str:
    """Under which name a statistic of the term of this name is kept."""
    return f"{term}/{quantity}"


def _parameters(function: Callable | None) -> list[str]:
    if function is None:
        return []
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.KEYWORD_ONLY]


def _quantity(parameter: str, spec: TermSpec, where: str) -> tuple[str, str, str]:
    if parameter in (*SHARED, *STATISTICS):
        return parameter, "", parameter
    for quantity in PER_STREAM:
        if parameter == quantity or parameter.endswith("_" + quantity):
            role = parameter.removesuffix(quantity).removesuffix("_")
            if role not in spec.roles:
                wanted = f"streams={{'{role}': ...}}" if role else "stream='...'"
                raise UserError(f"{where}: the term needs {parameter!r}; give it {wanted}")
            return parameter, role, quantity
    raise UserError(f"{where}: the engine has no quantity called {parameter!r}; it offers "
                    f"{', '.join(PER_STREAM)} (with a role in front, if there are several streams) and "
                    f"{', '.join((*SHARED, *STATISTICS))}")


def call_term(term: Term, context: Context) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """The value of a term, a float32 scalar, its further metrics, and what it carries on (None: nothing)."""
    arguments = {parameter: _resolve(term, role, quantity, context) for parameter, role, quantity in term.quantities}
    result = term.function(**arguments)
    value, metrics, *carried = result if isinstance(result, tuple) else (result, {})
    return jnp.asarray(value, jnp.float32), metrics, jax.lax.stop_gradient(carried[0]) if carried else None


def _resolve(term: Term, role: str, quantity: str, context: Context) -> Any:
    if quantity == "apply_head":
        return lambda array: context.apply(term.head, array)
    if quantity in STATISTICS:
        return context.statistics[statistic_name(term.name, quantity)]
    if quantity == "carried":
        return context.carried[term.name]
    if quantity in SHARED:
        return getattr(context, quantity)
    return _of_stream(term, role, quantity, context)


def _of_stream(term: Term, role: str, quantity: str, context: Context) -> Any:
    stream, where = term.spec.roles[role], f"term {term.name!r}"
    batch = context.batches[stream]
    if quantity == "logits":
        return context.output(stream, term.head)
    if quantity == "task_logits":
        return context.output(stream, term.task_head)
    if quantity == "start_logits":
        return context.start_output(stream, term.head)
    if quantity == "teacher_logits":
        return context.teacher_output(stream, term.task_head)
    if quantity == "inputs":
        return context.inputs(stream)
    if quantity == "apply_model":
        return lambda inputs: context.again(stream, term.task_head, inputs)
    if quantity in ("features", "start_features"):
        read = context.taps if quantity == "features" else context.start_taps
        return _entry(read(stream, term.head), term.spec.tap, "tap", where)
    if quantity == "layers":
        return tuple(_entry(context.taps(stream, term.head), tap, "tap", where) for tap in term.spec.taps)
    if quantity == "labels":
        return labels_of(term, stream, batch)
    if quantity == "weights" and role in term.labelled_roles:
        return labelled_weights(term, batch)
    key = {"weights": "weight", "domains": "domain", "examples": "position"}.get(quantity, quantity)
    return batch.get(key)


def labelled_weights(term: Term, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The weight of every example, 0 where the label that the term reads is not known."""
    known = batch.get(f"known/{term.label_key}")
    return batch["weight"] if known is None else batch["weight"] * known


def labelled_mass(term: Term, batches: Mapping[str, Mapping[str, jax.Array]]) -> jax.Array | None:
    """What the examples with a label for the term weigh together (of several streams: the least); None where no
    stream of it lacks labels."""
    found = [batches[term.spec.roles[role]] for role in term.labelled_roles]
    masses = [jnp.sum(labelled_weights(term, batch)) for batch in found if f"known/{term.label_key}" in batch]
    return jnp.min(jnp.stack(masses)) if masses else None


def labels_of(term: Term, stream: str, batch: Mapping[str, jax.Array]) -> jax.Array:
    """What the term's task learns of the labels in a batch of this stream."""
    if term.label_key not in batch:
        raise UserError(f"term {term.name!r} needs labels ({term.label_key!r}), but the stream {stream!r} gives "
                        f"{', '.join(batch)}; is it set to labelled=False?")
    return TASKS[term.task_kind].targets(batch[term.label_key])


def _entry(values: Mapping[str, Any], name: str, what: str, where: str) -> Any:
    if name not in values:
        raise unknown(what, name, values, where)
    return values[name]
