"""The command `adapt`: files in, one table and JSON out, one-sentence errors."""

import numpy as np
import pytest
from scipy.io import savemat
from tiny_experiment import ROOT, command, read_json

from transfer_jax.experiment.adapting import AdaptRequest, adapt
from transfer_jax.experiment.domain_files import Domain, read_domain, read_folder
from transfer_jax.experiment.feature_files import Writer


def features(seed, move=0.0, n=40):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return 2.5 * np.random.default_rng(5).normal(size=(2, 3))[labels] + rng.normal(size=(n, 3)) + move, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three domains: .npz with names, .mat, and what `embed` writes."""
    folder = tmp_path_factory.mktemp("domains")
    names = np.array(["cat", "dog"])
    x, y = features(0)
    np.savez(folder / "one.npz", x=x, y=names[y])
    x, y = features(1, 0.7)
    writer = Writer(folder / "three", {"weights": "none"}, {"columns": {"pooled": [0, 3]}, "labelled": True,
                                                             "class_names": ["cat", "dog"]})
    writer.add({"x": x.astype(np.float32), "y": y.astype(np.int32), "index": np.arange(40, dtype=np.int32)})
    writer.finish({row: str(row) for row in range(40)})
    x, y = features(2, -0.4, 30)
    savemat(folder / "two.mat", {"fts": x, "labels": names[y].astype(object)[:, None]})
    return folder


def test_domains_of_all_kinds_of_files(folder, tmp_path):
    one, three = read_domain(folder / "one.npz"), read_domain(folder / "three")
    assert one.x.dtype == np.float64 and one.y.tolist() == ["cat", "dog"] * 20
    np.testing.assert_allclose(three.x, features(1, 0.7)[0], rtol=1e-6)
    assert three.y.tolist() == one.y.tolist()
    assert read_domain(folder / "two.mat").y.tolist() == ["cat", "dog"] * 15
    savemat(tmp_path / "numbers.mat", {"feas": np.ones((3, 2), np.uint8), "label": np.array([[1], [2], [1]])})
    found = read_domain(tmp_path / "numbers.mat")
    assert found.x.shape == (3, 2) and found.y.tolist() == [1, 2, 1]
    np.savez(tmp_path / "bare.npz", features=np.ones((3, 2)))
    assert read_domain(tmp_path / "bare.npz").y is None
    assert [domain.name for domain in read_folder(tmp_path)] == ["bare", "numbers"]


def test_one_pair_prints_a_table_and_writes_json(folder, tmp_path):
    done = command("adapt", "--source", folder / "one.npz", "--target", folder / "three", "--methods", "none,sa,coral",
                   "--set", "sa.dimensions=2", "ridge=0.5", "--output", tmp_path / "out", "--quiet")
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "out" / "adapt.json")
    rows = found["rows"]
    assert [row["method"] for row in rows] == ["none", "sa", "coral"]
    assert [row["options"] for row in rows] == [{}, {"dimensions": 2}, {"ridge": 0.5}]
    for row in rows:
        assert f"{100 * row['accuracy']:.2f}" in done.stdout and row["count"] == 40 and row["accuracy"] > 0.6
    assert found["request"]["normalise"] == ["zscore-per-domain"]


def domains():
    return [Domain(name, *features(seed, move)) for seed, (name, move) in
            enumerate((("a", 0.0), ("b", 0.5), ("c", -0.3)))]


def test_all_pairs_and_all_methods_that_apply():
    found = domains()
    pairs = [(one, other) for one in found for other in found if one is not other]
    rows = adapt(pairs, AdaptRequest(("none", "gfk")), quiet=True)
    assert len(rows) == 12 and len({(row.source, row.target) for row in rows}) == 6
    names = {row.method for row in adapt(pairs[:1], AdaptRequest(), quiet=True)}
    assert "jda" in names and "kmm" not in names and "tradaboost" not in names
    names = {row.method for row in adapt(pairs[:1], AdaptRequest(classifier="logistic", labelled=3), quiet=True)}
    assert {"kmm", "tradaboost", "augmentation"} <= names


def test_target_labels_only_score():
    source, target, _ = domains()
    request = AdaptRequest(("none", "jda", "coral"))
    turned = Domain("b", target.x, 1 - target.y)
    right, wrong = (adapt([(source, one)], request, quiet=True) for one in (target, turned))
    for one, other in zip(right, wrong, strict=True):
        assert one.accuracy == pytest.approx(1 - other.accuracy), "answers are the same whatever the target's labels"
    assert [row.accuracy for row in adapt([(source, Domain("b", target.x, None))], request, quiet=True)] == [None] * 3


def test_labelled_examples_are_not_scored():
    source, target, _ = domains()
    row, = adapt([(source, target)], AdaptRequest(("none",), labelled=5, seed=1), quiet=True)
    assert row.count == 40 - 10


@pytest.mark.parametrize(("flags", "message"), [
    (("--source", "ONE"), "give either --source and --target, or --pairs"),
    (("--pairs", "FOLDER", "--source", "ONE"), "give either --source and --target, or --pairs"),
    (("--source", "ONE", "--target", "NOWHERE.npz"), "NOWHERE.npz does not exist"),
    (("--source", "ONE", "--target", "ONE", "--methods", "crol"), "unknown method 'crol'; did you mean 'coral'?"),
    (("--source", "ONE", "--target", "ONE", "--methods", "sa", "--set", "dimension=3"), "did you mean 'dimensions'?"),
    (("--source", "ONE", "--target", "ONE", "--methods", "sa", "--set", "dimensions=many"), "expected a value like 20"),
    (("--source", "ONE", "--target", "ONE", "--methods", "kmm"), "cannot weight its examples; take logistic or svm"),
    (("--source", "ONE", "--target", "ONE", "--normalise", "zscroe"), "unknown normalisation 'zscroe'"),
    (("--source", "ONE", "--target", "WORDS"), "of type <U3; give numbers"),
    (("--source", "ONE", "--target", "OTHER"), "no class in common"),
    (("--source", "ONE", "--target", "ONE", "--labelled", "50"), "none of one is left to score"),
    (("--source", "ONE", "--target", "EMPTY"), "has no array called x"),
    (("--pairs", "EMPTY_FOLDER"), "holds 0 domains"),
])
def test_mistakes_are_sentences(folder, tmp_path, flags, message, capsys):
    from transfer_jax import adapt as module
    from transfer_jax import command_line

    np.savez(tmp_path / "words.npz", x=np.array([["one", "two"]]))
    np.savez(tmp_path / "other.npz", x=np.ones((2, 3)), y=np.array(["elk", "fox"]))
    np.savez(tmp_path / "empty.npz", z=np.ones(1))
    (tmp_path / "nothing").mkdir()
    places = {"ONE": folder / "one.npz", "FOLDER": folder, "WORDS": tmp_path / "words.npz",
              "OTHER": tmp_path / "other.npz", "EMPTY": tmp_path / "empty.npz", "EMPTY_FOLDER": tmp_path / "nothing"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.argv", ["adapt", "--quiet", *(str(places.get(flag, flag)) for flag in flags)])
        command_line.run(module.main)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_the_page_is_made_from_what_the_command_writes():
    page = ROOT / "docs" / "adaptation_classical.md"
    assert "configs/adaptation/write_results.py" in page.read_text()
