"""Ordered regex rules over parameter paths: every leaf lands in one named group, or is frozen.

Rules are strict. A rule that matches nothing, a leaf that no rule covers and a group that no leaf uses are errors,
because each of them silently trains the wrong parameters in codebases that let it pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, field_validator

from transfer_jax.core.errors import UserError, nearest, unknown
from transfer_jax.core.spec import Component, Spec

FROZEN = "frozen"
UNUSED = "unused"
Rules = Sequence[tuple[str, str]]


class GroupSpec(Spec):
    """How one group of parameters moves. What is left out is taken from the stage."""

    optimizer: Component | None = None
    lr: float | None = Field(default=None, gt=0)  # frozen parameters are those of the group "frozen", never lr = 0
    lr_multiplier: float = Field(default=1.0, gt=0)
    schedule: Component | None = None
    warmup_steps: int | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # lr x layer_decay^(layers above this one)
    unfreeze_at: int | float = Field(default=0, ge=0)  # step of the stage, or below 1 a share of its steps

    @field_validator("unfreeze_at")
    @classmethod
    def _step_or_share(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"unfreeze_at = {value:g} is neither a step (a whole number) nor a share below 1")
        return value if 0 < value < 1 else int(value)

    def in_steps(self, total_steps: int) -> GroupSpec:
        """The same with `unfreeze_at` as a step."""
        if isinstance(self.unfreeze_at, int):
            return self
        step = min(round(self.unfreeze_at * total_steps), max(0, total_steps - 1))  # never beyond the last one
        return self.model_copy(update={"unfreeze_at": step})


@dataclass(frozen=True)
class Partition:
    """The group of every parameter path, and the settings of the groups that train."""

    group_of: dict[str, str]
    groups: dict[str, GroupSpec]

    def paths(self, *groups: str) -> list[str]:
        """Paths of the leaves in the named groups, in the order of the tree."""
        return [path for path, group in self.group_of.items() if group in groups]

    @property
    def trainable(self) -> list[str]:
        return [path for path, group in self.group_of.items() if group in self.groups]

    def active(self, step: int) -> frozenset[str]:
        """Names of the groups that move at this step: those whose `unfreeze_at` has come."""
        return frozenset(name for name, group in self.groups.items() if group.unfreeze_at <= step)

    def boundaries(self) -> list[int]:
        """The steps after 0 at which a group unfreezes, ascending."""
        return sorted({group.unfreeze_at for group in self.groups.values()} - {0})

    def frozen_norms(self, norm_paths: Sequence[str], active: frozenset[str]) -> frozenset[str]:
        """The normalisation layers that must use, and keep, their stored statistics while `active` groups move.

        A layer is frozen when all its parameters are; one without parameters follows the nearest module around it.
        """
        still = {path for path, group in self.group_of.items() if group not in active}
        return frozenset(norm for norm in norm_paths if self._siblings(norm) <= still)

    def _siblings(self, module: str) -> set[str]:
        while module:
            found = {path for path in self.group_of if path.startswith(module + "/")}
            if found:
                return found
            module = module.rpartition("/")[0]
        return set(self.group_of)


def partition(paths: Sequence[str], rules: Rules, groups: Mapping[str, GroupSpec], *, used: Sequence[str] | None = None,
              where: str = "partition") -> Partition:
    """Assigns every path to the group of the first rule whose regex matches the whole path.

    Args:
      paths: all parameter paths, `backbone/stage1/conv1/kernel`.
      rules: ordered (regex, group) pairs; the group `frozen` is reserved.
      groups: the settings of every other group that the rules name.
      used: the paths that the stage computes with; the rest is put into the group `unused`. None means all.
      where: the place in the config, for messages.

    Raises:
      UserError: for an invalid regex, a rule that matches nothing or is covered by earlier rules, an uncovered
        path, an undeclared group, or a group without parameters.
    """
    first: dict[str, int] = {}
    for number, (pattern, group) in enumerate(rules):
        if group != FROZEN and group not in groups:
            raise unknown("group", group, [*groups, FROZEN], f"{where}, rule {pattern!r}")
        matches = _matches(pattern, paths, where)
        if not matches:
            raise UserError(f"{where}: rule {pattern!r} -> {group!r} matches no parameter; nearest paths: "
                            f"{', '.join(_near(pattern, paths))}")
        new = [path for path in matches if path not in first]
        if not new:
            raise UserError(f"{where}: rule {pattern!r} -> {group!r} never applies, earlier rules cover all "
                            f"{len(matches)} parameters that it matches; move it up or delete it")
        first.update(dict.fromkeys(new, number))
    missing = [path for path in paths if path not in first]
    if missing:
        raise UserError(f"{where}: no rule covers {len(missing)} parameters ({', '.join(missing[:3])}"
                        f"{', ...' if len(missing) > 3 else ''}); add a rule, for example ('.*', 'frozen')")
    in_use = set(paths if used is None else used)
    group_of = {path: rules[first[path]][1] if path in in_use else UNUSED for path in paths}
    for name in groups:
        if name not in group_of.values():
            raise UserError(f"{where}: the group {name!r} has no parameters; "
                            f"delete it or add a rule that gives it some")
    return Partition(group_of, dict(groups))


def _matches(pattern: str, paths: Sequence[str], where: str) -> list[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
    return [path for path in paths if regex.fullmatch(path)]


def _near(pattern: str, paths: Sequence[str]) -> list[str]:
    plain = re.sub(r"[\\.*+?()\[\]|^$]+", "", pattern)
    return nearest(plain, paths) or [path for path in paths[:3]]
