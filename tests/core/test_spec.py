"""Strict specifications, components and the spelling help."""

import pytest

from transfer_jax.core.errors import UserError, nearest, unknown
from transfer_jax.core.spec import Component, Spec, bind, build, lookup


class Inner(Spec):
    rate: float = 0.1
    count: int = 1


class Outer(Spec):
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    maybe: Inner | None = None
    pairs: tuple[tuple[str, str], ...] = ()


def fault(values) -> str:
    with pytest.raises(UserError) as caught:
        build(Outer, values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("values", "message"), [
    ({"name": "x", "iner": {}}, "unknown key 'iner' in config; did you mean 'inner'?"),
    ({"nmae": "x"}, "unknown key 'nmae' in config; did you mean 'name'?"),
    ({"name": "x", "inner": {"rat": 1.0}}, "unknown key 'rat' in config.inner; did you mean 'rate'?"),
    ({"name": "x", "many": {"a": {"cuont": 1}}}, "unknown key 'cuont' in config.many.a; did you mean 'count'?"),
    ({"name": "x", "maybe": {"cout": 1}}, "unknown key 'cout' in config.maybe; did you mean 'count'?"),
    ({"name": "x", "qqqq": 1}, "unknown key 'qqqq' in config; valid: inner, many, maybe, name, pairs."),
    ({}, "config.name is missing; give it a value"),
])
def test_unknown_and_missing_keys(values, message):
    assert fault(values) == message


@pytest.mark.parametrize(("values", "parts"), [
    ({"name": 3}, ["config.name = 3 does not fit", "string"]),
    ({"name": "x", "inner": {"count": 1.5}}, ["config.inner.count = 1.5 does not fit", "integer"]),
    ({"name": "x", "inner": {"count": "1"}}, ["config.inner.count = '1' does not fit", "integer"]),
    ({"name": "x", "inner": {"count": True}}, ["config.inner.count = True does not fit"]),
    ({"name": "x", "pairs": (("a",),)}, ["config.pairs.0.1"]),
])
def test_wrong_types(values, parts):
    message = fault(values)
    assert all(part in message for part in parts), message


def test_lists_become_tuples_whole_numbers_become_floats_and_records_are_frozen():
    found = build(Outer, {"name": "x", "inner": {"rate": 1}, "pairs": [["a", "b"]]})
    assert found.inner.rate == 1.0 and found.pairs == (("a", "b"),)
    with pytest.raises(ValueError, match="frozen"):
        found.name = "y"


def scaled(values, *, factor: float, shift: float = 0.0):
    return factor * values + shift


def test_bind_checks_arguments_against_the_signature():
    registry = {"scaled": scaled}
    bound = bind(registry, Component(kind="scaled", factor=3.0), "function", supplied=("values",))
    assert bound(2.0) == 6.0
    for component, message in [
            (Component(kind="scale", factor=1.0), "unknown function 'scale'; did you mean 'scaled'?"),
            (Component(kind="scaled", factor=1.0, shfit=1.0), "unknown argument 'shfit' in function (kind 'scaled'); "
                                                              "did you mean 'shift'?"),
            (Component(kind="scaled", factor=1.0, values=1.0), "unknown argument 'values'"),
            (Component(kind="scaled"), "needs the argument 'factor'")]:
        with pytest.raises(UserError) as caught:
            bind(registry, component, "function", supplied=("values",))
        assert message in str(caught.value)


def test_lookup_and_nearest():
    assert lookup({"a": 1}, "a", "thing") == 1
    assert nearest("acuracy", ["accuracy", "mean_iou", "cross_entropy"])[0] == "accuracy"
    assert nearest("zzz", ["accuracy"]) == []
    assert str(unknown("thing", "zzz", [], "place")) == "unknown thing 'zzz' in place; valid: none."
