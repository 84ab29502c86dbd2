"""Every term of adaptation can be wired: the engine knows each quantity that it asks for."""

import inspect

import pytest

from transfer_jax.objectives import TERMS
from transfer_jax.objectives.carried import CARRIED
from transfer_jax.objectives.spec import TermSpec
from transfer_jax.objectives.wiring import make_term
from transfer_jax.tasks import TaskSpec

ONE = ("classifier_discrepancy", "sliced_discrepancy", "feature_norm", "hard_feature_norm", "information_maximization",
       "class_confusion", "nuclear_norm", "virtual_adversarial", "pseudo_labels", "irm_penalty", "risk_variance",
       "group_dro")
PAIRS = ("domain_critic", "domain_critic_to_start", "conditional_adversarial", "margin_disparity",
         "wasserstein_critic", "wasserstein_distance", "central_moments", "mmd", "joint_mmd", "local_mmd",
         "joint_transport", "batch_spectral_penalization", "multi_source_adversarial")
VIEWS = ("fixmatch", "flexmatch", "teacher_consistency", "self_ensembling")
OPTIONS = {name: {"count": 3} for name in ("irm_penalty", "risk_variance", "group_dro", "multi_source_adversarial")}


@pytest.mark.parametrize("kind", [*ONE, *PAIRS, *VIEWS, "confusion"])
def test_a_config_binds_the_term(kind):
    streams = {"streams": {"source": "s", "target": "t"}} if kind in PAIRS else {
        "streams": {"weak": "a", "strong": "b"}} if kind in VIEWS else {
        "streams": {"target": "t"}} if kind == "confusion" else {"stream": "t"}
    spec = TermSpec(kind=kind, task="digits", head="critic", taps=("stage3", "pooled"), **streams,
                    **OPTIONS.get(kind, {}))
    term = make_term("term", spec, {"digits": TaskSpec(kind="classification", head="digits")}, "objective")
    assert [parameter for parameter, _, _ in term.quantities] == [
        name for name, p in inspect.signature(TERMS[kind]).parameters.items() if p.kind is not p.KEYWORD_ONLY]
    assert {role for _, role, _ in term.quantities} - {""} == set(spec.roles) - {""}
    assert term.reads(("carried",)) == (kind in CARRIED)
    if kind in CARRIED:
        assert term.first_carried({"t": 7, "a": 5, "b": 5}).keys()
