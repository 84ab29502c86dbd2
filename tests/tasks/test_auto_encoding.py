"""Auto-encoding: PSNR in units of pixels, a head that reaches the size of the image, no labels asked for."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_experiment import read_json, run, single, trained

from transfer_jax.core.errors import UserError
from transfer_jax.evaluation import METRICS
from transfer_jax.experiment.assembly import check_names
from transfer_jax.experiment.report.collect import read_run
from transfer_jax.experiment.report.mistakes import mistake_blocks
from transfer_jax.models.decoder_head import DecoderHead
from transfer_jax.tasks.metric import accumulate


def test_psnr_is_that_of_the_pixels_whatever_the_normalisation():
    generator = np.random.default_rng(0)
    pixels, found = (generator.uniform(size=(5, 6, 7, 3)).astype(np.float32) for _ in range(2))
    mean, std = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])
    weight = np.float32([1, 1, 0, 1, 1])
    metric = METRICS["psnr"]
    batch = {"label": (pixels - mean) / std, "weight": weight, "std": std}
    total = accumulate(None, metric.update(metric.init(3), jnp.asarray((found - mean) / std), batch))
    errors = ((pixels - found).astype(np.float64) ** 2).mean((1, 2, 3))[weight > 0]
    np.testing.assert_allclose(metric.compute(total)["psnr"], np.mean(10 * np.log10(1 / errors)), rtol=1e-5)
    with pytest.raises(UserError, match="decoder"):
        metric.measure(jnp.zeros((5, 3)), batch)


@pytest.mark.parametrize("shape,size", [((2, 5), (12, 20)), ((2, 3, 4, 5), (12, 20)), ((2, 12, 20, 5), (12, 20)),
                                        ((2, 2, 2, 5), (13, 9))])
def test_the_decoder_reaches_the_size_of_the_image(shape, size):
    head = DecoderHead(outputs=3, tap="x", widths=(8, 4))
    taps = {"x": jnp.ones(shape)}
    variables = jax.eval_shape(lambda key: head.init(key, taps, size), jax.random.key(0))
    out = jax.eval_shape(lambda v: head.apply(v, taps, size), variables)
    assert out.shape == (2, *size, 3) and out.dtype == jnp.float32


CHANGES = {"model.heads.digits": {"kind": "decoder", "widths": (8, 8)},
           "tasks.digits": {"kind": "auto_encoding", "head": "digits"}, "streams.train.labelled": False}


def test_a_run_without_a_label_learns_and_shows_its_reconstructions(digits_file, tmp_path):
    runner = run(single(digits_file, {"steps": 30, "eval_every": 15}, {
        **CHANGES, "streams.test.labelled": False}).model_dump(), tmp_path)
    (row,) = read_json(tmp_path / "results.json")
    lines = [line for line in runner.workdir.path.joinpath("metrics.jsonl").read_text().splitlines() if "psnr" in line]
    assert len(lines) == 2 and row["metrics"]["psnr"][0] > 8 and row["class_names"] == ["grey"]
    arrays = np.load(tmp_path / "predictions" / "only" / "test.npz")
    np.testing.assert_array_equal(arrays["images_true"], arrays["thumbnails"])
    assert arrays["images_predicted"].dtype == np.uint8 and arrays["images_predicted"].std() > 0
    report = read_run(tmp_path)
    (text, gallery) = mistake_blocks(report, report.results[0])
    assert "what the network makes of it" in text
    first = np.asarray(Image.open(io.BytesIO(gallery.pictures[0].content)))
    assert first.shape == (120, 243, 3) and (first[:, :120, 0] == np.kron(
        arrays["images_true"][0, ..., 0], np.ones((15, 15)))).all()


def test_other_tasks_still_need_labels(digits_file):
    spec = single(digits_file, {}, {"streams.test.labelled": False})
    with pytest.raises(UserError, match="labelled=False"):
        check_names(spec)
    check_names(single(digits_file, {}, {**CHANGES, "streams.test.labelled": False}))


def test_frozen_features_do_not_take_the_image_away(digits_file):
    """Its pixels are the label, so features cannot stand in for them."""
    stage = {"steps": 40, "partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}}}
    found = trained(single(digits_file, stage, CHANGES))
    assert np.isfinite(found.metrics["loss"]).all() and found.metrics["loss"][-1] < found.metrics["loss"][0]
