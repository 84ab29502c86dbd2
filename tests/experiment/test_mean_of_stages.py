"""A stage that starts from a weighted mean of others: WiSE-FT, soups."""

import jax
import numpy as np
import pytest
import tiny_experiment

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten
from transfer_jax.experiment.report.collect import read_runs
from transfer_jax.experiment.report.scores import stage_table

EVALUATION = {"objective": {"terms": {}}, "steps": None, "evaluate": {"test": "digits"}, "eval_every": 0}


def mixed(digits_file, *means):
    values = tiny_experiment.config(digits_file)
    kept = {name: values["stages"][name] for name in ("pretrain", "finetune")}
    kept["finetune"] = {**kept["finetune"], "init": "pretrain"}
    values["stages"] = kept | {f"mean{i}": {**EVALUATION, "init": init} for i, init in enumerate(means)}
    return values


def test_the_ends_are_the_stages_and_the_middle_is_their_mean(digits_file, tmp_path):
    ends = ({"pretrain": 1.0, "finetune": 0.0}, {"pretrain": 0.0, "finetune": 1.0})
    run = tiny_experiment.run(mixed(digits_file, *ends, {"pretrain": 0.75, "finetune": 0.25}), tmp_path)
    params, stats = zip(*(run.result(name, "last") for name in ("pretrain", "finetune", "mean0", "mean1", "mean2")),
                        strict=True)
    for path in params[0]:
        first, second, start, end, middle = (np.asarray(found[path]) for found in params)
        assert np.array_equal(first, start) and np.array_equal(second, end)
        np.testing.assert_allclose(middle, 0.75 * first + 0.25 * second, rtol=1e-5, atol=1e-7)
    rows = {row[0]: row for row in stage_table(read_runs([tmp_path])).rows}
    assert "0.75 pretrain + 0.25 finetune" in rows["mean2"]
    assert any(not np.array_equal(params[0][path], params[1][path]) for path in params[0])
    first, second, _, _, middle = (dict(flatten(jax.device_get(found))) for found in stats)
    for path, leaf in middle.items():
        np.testing.assert_allclose(leaf, 0.75 * first[path] + 0.25 * second[path], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("init", "words"), [({"pretrain": 0.5, "finetune": 0.6}, "sum to 1.1"),
                                             ({"pretrain": 0.5, "finetun": 0.5}, "did you mean 'finetune'")])
def test_faults_are_named(digits_file, tmp_path, init, words):
    with pytest.raises(UserError, match=words):
        tiny_experiment.run(mixed(digits_file, init), tmp_path)
