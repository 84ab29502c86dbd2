"""Rules over parameter paths are strict, and BatchNorm follows them."""

import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.params.partition import FROZEN, UNUSED, GroupSpec, partition

PATHS = ["backbone/conv1/kernel", "backbone/norm1/bias", "backbone/norm1/scale", "backbone/conv2/kernel",
         "heads/digits/kernel", "heads/digits/bias", "heads/other/kernel"]
NORMS = ("backbone/norm1", "backbone/plain_norm", "heads/digits/bn")


def split(rules, *groups, **more):
    return partition(PATHS, rules, {name: GroupSpec() for name in groups}, **more)


def test_the_first_matching_rule_wins():
    found = split((("heads/digits/.*", "head"), ("heads/.*", "frozen"), (".*", "body")), "head", "body")
    assert found.group_of == {**dict.fromkeys(PATHS[:4], "body"), **dict.fromkeys(PATHS[4:6], "head"),
                              PATHS[6]: FROZEN}
    assert found.paths("head") == PATHS[4:6]
    assert found.trainable == PATHS[:6]


def test_a_rule_must_match_the_whole_path():
    with pytest.raises(UserError, match="matches no parameter; nearest paths: .*heads/digits"):
        split((("heads/digits", "head"), (".*", "frozen")), "head")


@pytest.mark.parametrize(("rules", "groups", "message"), [
    ((("head/.*", "head"), (".*", "frozen")), ("head",), "rule 'head/.*' -> 'head' matches no parameter"),
    (((".*", "all"), ("heads/.*", "head")), ("all", "head"),
     "rule 'heads/.*' -> 'head' never applies, earlier rules cover all 3 parameters"),
    ((("heads/.*", "head"),), ("head",), "no rule covers 4 parameters (backbone/conv1/kernel, backbone/norm1/bias, "
                                         "backbone/norm1/scale, ...)"),
    ((("heads/.*", "heda"), (".*", "frozen")), ("head",), "unknown group 'heda'"),
    (((".*", "all"),), ("all", "idle"), "the group 'idle' has no parameters"),
    ((("heads/(.*", "head"), (".*", "frozen")), ("head",), "'heads/(.*' is not a regular expression"),
])
def test_faulty_rules_are_errors_that_say_where(rules, groups, message):
    with pytest.raises(UserError) as caught:
        split(rules, *groups, where="config.stages.a.partition")
    assert message in str(caught.value) and "config.stages.a.partition" in str(caught.value)


def test_what_the_stage_does_not_run_is_put_aside():
    found = split(((".*", "all"),), "all", used=PATHS[:6])
    assert found.group_of[PATHS[6]] == UNUSED
    assert PATHS[6] not in found.trainable


def test_a_group_whose_parameters_are_all_unused_is_an_error():
    with pytest.raises(UserError, match="the group 'other' has no parameters"):
        split((("heads/other/.*", "other"), (".*", "all")), "other", "all", used=PATHS[:6])


def test_groups_become_active_at_their_step():
    groups = {"head": GroupSpec(), "late": GroupSpec(unfreeze_at=5), "later": GroupSpec(unfreeze_at=9)}
    found = partition(PATHS, (("heads/.*", "head"), (".*conv1.*", "later"), (".*", "late")), groups)
    assert [sorted(found.active(step)) for step in (0, 4, 5, 9)] == [
        ["head"], ["head"], ["head", "late"], ["head", "late", "later"]]
    assert found.boundaries() == [5, 9]


def test_a_norm_is_frozen_exactly_when_all_its_parameters_are():
    frozen = split((("heads/.*", "head"), (".*", "frozen")), "head")
    assert frozen.frozen_norms(NORMS, frozenset({"head"})) == {"backbone/norm1", "backbone/plain_norm"}
    partly = split((("heads/.*", "head"), (".*/bias", "head"), (".*", "frozen")), "head")
    assert partly.frozen_norms(NORMS, frozenset({"head"})) == frozenset()
    everything = split(((".*", "all"),), "all")
    assert everything.frozen_norms(NORMS, frozenset({"all"})) == frozenset()
    assert everything.frozen_norms(NORMS, frozenset()) == set(NORMS)
