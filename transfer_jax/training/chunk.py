"""The compiled program of a dispatch: many steps, of all seeds, of one stage or of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from transfer_jax.core.compilation import compiled
from transfer_jax.core.members import over_members
from transfer_jax.training.state import Constants, State
from transfer_jax.training.step import Program, train_step


def compile_chunk(lanes: Sequence[tuple[Program, frozenset[str]]], members: int, shardings: Any = None) -> Any:
    """The jitted `(states, constants, feeds, seeds, firsts, counts) -> states` that runs steps of one stage or more.

    Every argument has an entry for each lane, as `train_step` takes it but with a member axis; `firsts` and `counts`,
    int32 [L], say from which step on each goes and how far. They are dynamic, so every length shares one program; a
    lane of count 0 stays as it is. Each lane has a loop of its own: it computes the same bits whatever is beside it.
    The states' buffers are donated; their arrays stay where `shardings` (a tree like the states) says.

    Args:
      lanes: programs and the names of the groups that move in these steps.
    """
    runs = [_steps(program, members, active) for program, active in lanes]

    def chunk(states: Sequence[State], constants: Sequence[Constants], feeds: Sequence[Any], seeds: Sequence[Any],
              firsts: jax.Array, counts: jax.Array) -> tuple[State, ...]:
        return tuple(run(*given, firsts[lane], counts[lane]) for lane, (run, *given) in
                     enumerate(zip(runs, states, constants, feeds, seeds, strict=True)))

    return compiled(chunk, donate_argnums=0, out_shardings=shardings)


def _steps(program: Program, members: int, active: frozenset[str]) -> Callable[..., State]:
    """`(state, constants, feeds, seeds, first, count) -> state` of one stage."""
    axes = (0, 0, feed_axes(program), 0)

    def run(state: State, constants: Constants, feeds: Any, seeds: Any, first: jax.Array, count: jax.Array) -> State:
        def steps(state: State, constants: Constants, feeds: Any, seeds: Any) -> State:
            def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
                step, state = carry
                known = _kept_in_parts(program.mesh, constants, step)
                return step + 1, train_step(program, active, state, known, feeds, seeds, step)

            return jax.lax.while_loop(lambda carry: carry[0] < first + count, body, (first, state))[1]

        return over_members(steps, members, axes, program.members)(state, constants, feeds, seeds)

    return run


def _kept_in_parts(mesh: Mesh | None, constants: Constants, step: jax.Array) -> Constants:
    """Constants that seem to depend on the step. What the compiler knows to stay the same it computes before the loop:
    frozen parameters that `fsdp` splits would be gathered there, all at once, and lie whole on every device."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return constants
    return jax.lax.optimization_barrier((constants, step))[0]


def feed_axes(program: Program) -> dict[str, Any]:
    """Member axes of the feeds: data on the device is shared by all seeds, their example lists are not."""
    return {name: program.streams[name].feed_axes() for name in
            dict.fromkeys(stream for update in program.updates for stream in update.fed)}
