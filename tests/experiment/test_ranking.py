"""How sources are named, ranked and compared with the truth."""

import pytest
from scipy.stats import weightedtau

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.ranking import Candidate, agreement, candidate_of, mean_ranks, short_names


def candidates():
    values = {"a": (1.0, 0.5, 0.9), "b": (2.0, 0.5 + 1e-12, 0.7), "c": (0.5, 0.1, 0.2)}
    return [Candidate(name, "", scores={"logme": one, "h_score": two}, truth=truth)
            for name, (one, two, truth) in values.items()]


def test_mean_ranks_share_equal_scores_and_leave_out_what_only_some_have():
    found = candidates()
    found[0].scores["leep"] = -0.1
    assert mean_ranks(found) == {"a": (2 + 1.5) / 2, "b": (1 + 1.5) / 2, "c": 3.0}


def test_agreement_is_the_weighted_tau_of_scipy():
    found = candidates()
    assert agreement(found, "logme") == weightedtau([1.0, 2.0, 0.5], [0.9, 0.7, 0.2]).statistic < 1
    assert agreement(found, "h_score") == pytest.approx(weightedtau([0.5, 0.5, 0.1], [0.9, 0.7, 0.2]).statistic)
    assert agreement(found[:1], "logme") is None and agreement(found, "leep") is None


def test_names_and_arguments_of_sources(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"")
    assert short_names([f"{tmp_path}/net.pth,backbone=x", "torchvision/resnet50"]) == ["net", "resnet50"]
    assert short_names(["a/model", "b/model/"]) == ["1-model", "2-model"]
    one = candidate_of("n", "A,image_size=32,source_classes=10", "c.py:data=D", "image_size=128")
    assert one.reference == "c.py:data=D,weights=A,image_size=128,image_size=32,source_classes=10" and one.classes == 10
    assert candidate_of("n", "A", "c.py:data=D", "").reference == "c.py:data=D,weights=A"
    with pytest.raises(UserError, match="give 2 or more"):
        candidate_of("n", "A,source_classes=1", "", "")
