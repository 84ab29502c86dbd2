"""How sources are named, ranked and compared with the truth."""

import pytest
from scipy.stats import weightedtau
from tiny_experiment import config

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.ranking import (
    Candidate,
    agreement,
    agreement_by_seed,
    candidate_of,
    drawn_by_seed,
    mean_ranks,
    record,
    short_names,
)
from transfer_jax.experiment.spec import ExperimentSpec


def candidates():
    values = {"a": (1.0, 0.5, 0.9), "b": (2.0, 0.5 + 1e-12, 0.7), "c": (0.5, 0.1, 0.2)}
    return [Candidate(name, "", of_seeds=[{"logme": one, "h_score": two}], truths=(truth,))
            for name, (one, two, truth) in values.items()]


def test_mean_ranks_share_equal_scores_and_leave_out_what_only_some_have():
    found = candidates()
    found[0].of_seeds[0]["leep"] = -0.1
    assert mean_ranks(found) == {"a": (2 + 1.5) / 2, "b": (1 + 1.5) / 2, "c": 3.0}


def test_agreement_is_the_weighted_tau_of_scipy():
    found = candidates()
    assert agreement(found, "logme") == weightedtau([1.0, 2.0, 0.5], [0.9, 0.7, 0.2]).statistic < 1
    assert agreement(found, "h_score") == pytest.approx(weightedtau([0.5, 0.5, 0.1], [0.9, 0.7, 0.2]).statistic)
    assert agreement(found[:1], "logme") is None and agreement(found, "leep") is None


def test_agreement_of_each_seed_takes_the_scores_and_the_truth_of_that_seed():
    one = Candidate("a", "", of_seeds=[{"logme": 1.0}, {"logme": 4.0}], truths=(0.9, 0.7))
    two = Candidate("b", "", of_seeds=[{"logme": 2.0}, {"logme": 2.0}], truths=(0.8, 0.4))
    assert agreement_by_seed([one, two], "logme") == [-1.0, 1.0]
    assert one.scores == {"logme": 2.5} and one.truth == pytest.approx(0.8)
    assert (one.seed(1).scores, one.seed(1).truth) == ({"logme": 4.0}, 0.7)
    shared = Candidate("c", "", of_seeds=[{"logme": 3.0}], truths=(0.6, 0.5))  # all seeds have the same examples
    assert agreement_by_seed([shared, two], "logme") == [-1.0, 1.0]
    assert agreement_by_seed([Candidate("d", "", of_seeds=[{"logme": 1.0}])], "logme") == []
    told = record([one, two])
    assert told["weighted_tau_by_seed"] == {"logme": [-1.0, 1.0]} and told["sources"]["a"]["finetuned_by_seed"] == [
        0.9, 0.7]


def test_seeds_differ_in_their_examples_where_a_slice_has_no_seed_of_its_own(digits_file):
    values = config(digits_file, {"seeds": (0, 1)})
    values["streams"]["evaluation"] = values["streams"].pop("test")
    values["stages"] = {"pretrain": {**values["stages"]["pretrain"], "evaluate": {"evaluation": "digits"}}}

    def of_train(**keys):
        values["streams"]["train"] = {**values["streams"]["train"], **keys}
        return drawn_by_seed(build(ExperimentSpec, values))

    assert not of_train() and of_train(per_class="[:5]") and not of_train(per_class="[:5]", split_seed=0)


def test_names_and_arguments_of_sources(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"")
    assert short_names([f"{tmp_path}/net.pth,backbone=x", "torchvision/resnet50"]) == ["net", "resnet50"]
    assert short_names(["a/model", "b/model/"]) == ["1-model", "2-model"]
    one = candidate_of("n", "A,image_size=32,source_classes=10", "c.py:data=D", "image_size=128")
    assert one.reference == "c.py:data=D,weights=A,image_size=128,image_size=32,source_classes=10" and one.classes == 10
    assert candidate_of("n", "A", "c.py:data=D", "").reference == "c.py:data=D,weights=A"
    with pytest.raises(UserError, match="give 2 or more"):
        candidate_of("n", "A,source_classes=1", "", "")
