"""The report as a whole: every section, nothing from outside, damaged files named, figures of sound data."""

import base64
import io
import json
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from synthetic_workdir import make_workdir

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import projection, style, terminal_table, write_report
from transfer_jax.experiment.report.collect import read_run
from transfer_jax.experiment.report.document import _features_before
from transfer_jax.experiment.report.statistics import summarize

FEW = ("source model as it is", "from scratch", "full fine-tuning")
SECTIONS = ["Results", "Differences", "Learning curves", "Confusion", "Worst mistakes", "Calibration",
            "Features before and after", "What was trained and what was frozen", "Everything",
            "How to read the numbers"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(workdir, paths, seconds) of a report on 24 stages and 5 seeds."""
    workdir = make_workdir(tmp_path_factory.mktemp("report") / "run")
    start = time.process_time()
    paths = write_report([workdir], workdir)
    return workdir, paths, time.process_time() - start


def test_every_section_is_there_in_both_forms(report):
    _, paths, _ = report
    page, text = paths.html.read_text(), paths.markdown.read_text()
    assert [t for t in re.findall(r"<h2>(.*?)</h2>", page)] == SECTIONS
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert "Unreadable examples left out: 3 of target_train." in page
    assert "an upper bound, not an achievable result" in page
    assert "Shown are 12 of 24 stages" in page


def test_the_page_needs_nothing_from_outside(report):
    _, paths, _ = report
    page = paths.html.read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) > 20 and all(source.startswith("data:image/") for source in sources)
    for source in sources:
        kind, data = source.removeprefix("data:image/").split(";base64,")
        content = base64.b64decode(data)
        if kind == "svg+xml":
            tree = ElementTree.fromstring(content)
            links = [v for node in tree.iter() for k, v in node.attrib.items() if k.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links)
        else:
            Image.open(io.BytesIO(content)).verify()


def test_every_picture_of_the_markdown_is_a_file(report):
    _, paths, _ = report
    names = re.findall(r"\]\((report_figures/[^)]*)\)", paths.markdown.read_text())
    assert sorted(names) == sorted(f"report_figures/{path.name}" for path in paths.figures)
    assert all((paths.markdown.parent / name).stat().st_size > 100 for name in names)


def test_the_report_is_quick_and_deterministic(report, tmp_path):
    workdir, paths, seconds = report
    assert seconds < 12
    again = write_report([workdir], tmp_path / "again")
    assert again.html.read_bytes() == paths.html.read_bytes()
    assert again.markdown.read_bytes() == paths.markdown.read_bytes()


def test_names_from_outside_are_shown_not_obeyed(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW[2:], points=12)
    for name in ("stages.json", "results.json"):
        path = workdir / name
        path.write_text(path.read_text().replace("full fine-tuning", "<script>x</script> $a_b$ & c"))
    paths = write_report([workdir], tmp_path / "out", title="<b>mine</b>")
    page = paths.html.read_text()
    assert "<script" not in page and "<h1>&lt;b&gt;mine&lt;/b&gt;</h1>" in page


def test_several_runs_one_report_with_segmentation(tmp_path):
    first = make_workdir(tmp_path / "one" / "run", methods=FEW[2:], points=12)
    second = make_workdir(tmp_path / "two" / "run", methods=FEW[2:], points=12, segmentation=True, seeds=1)
    page = write_report([first, second], tmp_path / "both").html.read_text()
    assert "one/run" in page and "two/run" in page
    assert "pixels of all seeds" in page and "images of all seeds" in page
    assert "image, true classes, predicted classes" in page


def test_one_seed_says_so_and_no_scores_say_so(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW[:1], seeds=1, points=12)
    page = write_report([workdir], tmp_path / "out").html.read_text()
    assert "One seed: no interval." in page and "small differences mean nothing" in page
    (workdir / "results.json").write_text("[]")
    page = write_report([workdir], tmp_path / "out").html.read_text()
    assert "No results yet." in page and "Learning curves" in page


def test_diverged_seeds_do_not_break_the_page(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW[1:], points=12, selections=("last",))
    results = json.loads((workdir / "results.json").read_text())
    for result in results:
        if "full" in result["stage"]:
            result["metrics"]["accuracy"][0] = None
    (workdir / "results.json").write_text(json.dumps(results))
    assert "diverged (1/5)" in write_report([workdir], tmp_path / "out").html.read_text()


def test_features_before_come_from_the_same_images_where_any_stage_has_them(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW, points=12)
    path = workdir / "stages.json"
    stages = json.loads(path.read_text())
    stages["source_model_as_it_is"]["trainable"] = 0
    stages["full_fine-tuning_5"]["init"] = "previous"
    path.write_text(json.dumps(stages))
    measured = workdir / "predictions" / "source_model_as_it_is"
    measured.mkdir()
    shutil.copy(workdir / "predictions" / "full_fine-tuning_10" / "target_test.npz", measured)
    run = read_run(workdir)
    assert run.start("full_fine-tuning_5") == "full_fine-tuning_1" and run.start("pretrain") is None
    after = run.features("full_fine-tuning_10")
    origin, before = _features_before(run, "full_fine-tuning_10", after)
    assert origin == "source_model_as_it_is" and set(before) == set(after) == {"target_test"}
    page = write_report([workdir], tmp_path / "out").html.read_text()
    assert "before: source model as it is" in page


@pytest.mark.parametrize("name, content, words", [
    ("config.json", None, "is missing"), ("stages.json", "{", "is damaged"), ("results.json", "{}", "is no list"),
    ("results.json", '[{"stage": "a"}]', "entry 0 is damaged"), ("metrics.jsonl", "oops\n", "line 1 is damaged"),
    ("results.json", '[{"stage":"a","stream":"b","selection":"last","metrics":{"x":[[1]]}}]', "entry 0 is damaged"),
    ("predictions/full_fine-tuning_10/target_test.npz", "no zip", "is damaged")])
def test_a_missing_or_damaged_file_is_named(tmp_path, name, content, words):
    workdir = make_workdir(tmp_path / "run", methods=FEW[1:], points=12)
    if content is None:
        (workdir / name).unlink()
    else:
        (workdir / name).write_text(content)
    with pytest.raises(UserError) as error:
        write_report([workdir], tmp_path / "out")
    assert name in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_workdirs_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        terminal_table([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no workdir"):
        terminal_table([])
    with pytest.raises(UserError, match="given twice"):
        terminal_table([tmp_path, tmp_path / "x" / ".."])


def test_labels_are_spread_without_overlap_and_stay_in_order():
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 12):
        wishes = random.random(count).tolist()
        places = style.spread(wishes, 0.07)
        assert np.array_equal(np.argsort(places), np.argsort(wishes))
        assert (np.diff(np.sort(places)) >= 0.07 - 1e-9).all()
        assert min(places) > -1e-9 and max(places) < 1 + 1e-9
    apart = [0.1, 0.9, 0.5]
    np.testing.assert_allclose(style.spread(apart, 0.07), apart)


def test_calibration_error_is_that_of_its_definition():
    from transfer_jax.experiment.report import figures

    random = np.random.default_rng(0)
    confidence = random.random(3000)
    correct = random.random(3000) < confidence**2
    expected = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        expected += abs(correct[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert figures.reliability(confidence, correct)[1] == pytest.approx(expected)
    assert figures.reliability(np.array([1.0, 0.0]), np.array([True, False]))[1] == 0.0


def test_thumbnails_show_the_pixels_they_are_given():
    from transfer_jax.experiment.report import figures

    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(figures.thumbnail(image))))
    assert shown.shape == (112, 112, 3) and (shown[::4, ::4, 1] == image[..., 0]).all()
    mask = np.zeros((28, 28), np.uint8)
    mask[5, 6], mask[7, 8] = 2, 255
    three = np.asarray(Image.open(io.BytesIO(figures.thumbnail(image, [mask, mask]))))[::4, ::4]
    assert three.shape == (28, 3 * 28 + 2, 3)
    changed = (three[:, 29:57] != three[:, :28]).any(axis=-1)
    assert changed[5, 6] and changed[7, 8] and changed.sum() == 2
    np.testing.assert_array_equal(three[7, 29 + 8], np.round(0.35 * image[7, 8].repeat(3)))


def test_curves_are_thinned_by_averaging():
    from transfer_jax.experiment.report import figures

    steps, values = np.arange(1000.0), np.random.default_rng(0).normal(size=(3, 1000))
    thin_steps, thin_values = figures.thin(steps, values, 100)
    assert thin_values.shape == (3, 100)
    np.testing.assert_allclose(thin_values, values.reshape(3, 100, 10).mean(axis=2))
    np.testing.assert_allclose(thin_steps, steps.reshape(100, 10).mean(axis=1))
    assert figures.thin(steps[:50], values[:, :50], 100)[1].shape == (3, 50)


@pytest.mark.parametrize("xs", [[1, 5, 10], [0, 1, 2], ["a", "b"], [None], [4]])
def test_the_metric_is_drawn_against_any_kind_of_x(xs):
    from transfer_jax.experiment.report import figures

    series = {f"m{i}": {x: summarize([0.1 * i, 0.2, 0.3]) for x in xs} for i in range(9)}
    text = figures.against_x(series, "labels", "accuracy").decode()
    assert all(f">m{i}<" in text for i in range(9)) and "DOCTYPE" not in text


def test_neighbour_share_of_pure_and_of_mixed_clusters():
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    centers = 20 * np.eye(3, 8)
    features = centers[labels] + random.normal(size=(300, 8))
    assert projection.neighbour_share(features, labels) > 0.99
    assert projection.neighbour_share(random.normal(size=(300, 8)), labels) == pytest.approx(1 / 3, abs=0.06)


def test_projection_is_deterministic_and_survives_degenerate_features():
    features = np.random.default_rng(0).normal(size=(40, 8))
    first = projection.to_plane(features)
    assert first.shape == (40, 2) and (first == projection.to_plane(features)).all()
    assert projection.to_plane(np.zeros((10, 4))).shape == (10, 2)
    assert projection.to_plane(np.ones((3, 1))).shape == (3, 2)
    domains = np.array(["a"] * 900 + ["b"] * 100)
    picked = projection.pick(np.zeros(1000, int), domains, most=100)
    assert len(picked) == 100 and (domains[picked] == "b").sum() == 50
