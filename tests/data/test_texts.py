"""Texts as streams without images, and word vectors as the start of what reads them."""

import gzip
import json

import numpy as np
import pytest
import tiny_experiment

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data import StreamSpec, open_source, open_stream, words
from transfer_jax.experiment.export import ExportedModel, export_model
from transfer_jax.experiment.report.collect import read_run
from transfer_jax.experiment.report.mistakes import mistake_blocks
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.pretrained.formats.word_vectors import read_word_vectors

ROWS = [("A fine, fine film.", "good", "train"), ("Not a film at all", "bad", "train"),
        ("fine acting", "good", "train"), ("bad Film", "bad", "train"), ("a bad joke", "bad", "test"),
        ("it isn't fine", "good", "test")]
FILM = np.float32([0.25, -1.5, 3])


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "texts.csv"
    file.write_text("text,label,split\n" + "".join(f'"{text}",{label},{split}\n' for text, label, split in ROWS))
    return file


def source(table, **more):
    return open_source(Component(kind="texts", path=str(table), **more))


def test_words_are_numbered_by_how_often_they_occur_in_training(table):
    splits = source(table, length=5)
    train, test = splits["train"], splits["test"]
    assert train.words[:4] == (*words.RESERVED, "fine", "film") and train.class_names == ("bad", "good")
    assert train.words == test.words and "joke" not in train.words
    numbers = train.load(0)["tokens"]
    assert [train.words[number] for number in numbers] == ["a", "fine", ",", "fine", "film"]
    assert numbers.dtype == np.int32
    assert [test.words[number] for number in test.load(0)["tokens"]] == ["a", "bad", words.UNKNOWN, "", ""]
    assert words.cut("It isn't so - 'tis") == ["it", "isn't", "so", "-", "'", "tis"]
    assert words.cut("wo n't", "spaces") == ["wo", "n't"] and test.text_of(0) == "a bad joke"
    few = source(table, vocabulary=3)["train"]
    assert few.words == (*words.RESERVED, "fine") and set(few.load(0)["tokens"][:5]) == {1, 2}


def test_a_list_of_words_is_read_as_it_was_written(table, tmp_path):
    listed = words.list_words(["b a b"], 4)
    words.write_words(tmp_path / "words.txt", listed)
    assert words.read_words(tmp_path / "words.txt") == listed == (*words.RESERVED, "b", "a")
    assert source(table, words_file=str(tmp_path / "words.txt"))["test"].words == listed
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    for more, said in ((dict(words_file=str(tmp_path / "twice.txt")), "names 'a' twice"),
                       (dict(vocabulary=2), "no room"),
                       (dict(words_file=str(tmp_path / "none.txt")), "one word a line"), (dict(cut="wrds"), "'words'"),
                       (dict(text_column="txt"), "did you mean 'text'"), (dict(length=0), "leaves no word")):
        with pytest.raises(UserError, match=said):
            source(table, **more)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_batches_hold_tokens_and_no_image(table, storage):
    stream = open_stream("texts", StreamSpec(data=Component(kind="texts", path=str(table), length=4), batch_size=2,
                                             inputs={"text": "tokens"}, storage=storage), (0,))
    assert stream.example_shapes["tokens"] == ((4,), np.int32) and "image" not in stream.example_shapes
    assert stream.description == {"words": list(stream.dataset.words)} and stream.channel_names == ()
    fed = next(stream.host_batches(0)) if storage == "host" else stream.feed()
    batch = stream.batch({key: value[0] for key, value in fed.items()}, 0, 0) if storage == "host" else \
        stream.batch({**fed, "rows": fed["rows"][0]}, 0, 0)
    for row, tokens, label in zip(batch["index"], batch["tokens"], batch["label"], strict=True):
        own = stream.dataset.load(int(row))
        assert (np.asarray(tokens) == own["tokens"]).all() and label == own["label"]
    with pytest.raises(UserError, match="no image, so that 'augment'"):
        open_stream("texts", StreamSpec(data=Component(kind="texts", path=str(table)), batch_size=2,
                                        inputs={"text": "tokens"}, augment=(Component(kind="flip"),)), (0,))
    with pytest.raises(UserError, match="reads 'image', but the data have tokens"):
        open_stream("texts", StreamSpec(data=Component(kind="texts", path=str(table)), batch_size=2), (0,))


def vector_files(folder):
    """The same vectors in every form: words that texts have, another, a line that was cut, and bytes of no UTF-8."""
    rows = {"film": FILM, "fine": -FILM, "zebra": 2 * FILM}
    lines = [" ".join([word, *map(str, row.tolist())]).encode() for word, row in rows.items()]
    binary = b"3 3\n" + b"".join(word.encode() + b" " + row.tobytes() + b"\n" for word, row in rows.items())
    contents = {"glove.txt": b"\n".join([*lines, b"\x93 1 2 3", b"bad 0.5 0.25"]),
                "header.vec": b"\n".join([b"3 3", *lines, b""]), "binary.bin": binary,
                "bare.bin": binary.replace(b"\n", b"").replace(b"3 3", b"3 3\n"), "packed.gz": gzip.compress(binary)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return rows, list(contents)


def test_every_form_of_word_vectors_gives_the_same(tmp_path):
    rows, names = vector_files(tmp_path)
    for name in names:
        found = read_word_vectors(tmp_path / name)
        assert found.width == 3 and set(found.vectors) == set(rows), name
        for word, row in rows.items():
            np.testing.assert_array_equal(found.vectors[word], row)
        assert found.skipped == (2 if name == "glove.txt" else 0)
    assert set(read_word_vectors(tmp_path / "binary.bin", {"film", "cat"}).vectors) == {"film"}
    both = tmp_path / "both"
    both.mkdir()
    (both / "1.txt").write_text("film 1 2 3\nand 1 1 1\n")
    (both / "2.txt").write_text("film 3 2 1\nor 1 1 1\n")
    found = read_word_vectors(both)
    assert set(found.vectors) == {"film", "and", "or"} and found.vectors["film"].tolist() == [1, 2, 3]
    (both / "3.txt").write_text("film 3 2\nno 1 1\n")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "binary.bin").read_bytes()[:-7])
    (tmp_path / "prose.txt").write_text("Once upon a time\nthere was\na file of another kind, with lines\n of words\n")
    for file, said in ((both, "have 2 numbers.*3; give one"), (tmp_path / "cut.bin", "ends in its word 3 of 3"),
                       (tmp_path / "prose.txt", "are no word with"), (tmp_path / "absent.txt", "cannot be read")):
        with pytest.raises(UserError, match=said):
            read_word_vectors(file)


def experiment(table, vectors, **changes):
    """One stage that trains all but the words, on texts alone."""
    def stream(split):
        return dict(data=dict(kind="texts", path=str(table), length=6), split=split, batch_size=2,
                    inputs=dict(text="tokens"))

    values = dict(
        name="texts", seeds=(0, 1), checkpoint_every=0, log_every=1, eval_batch_size=2,
        model=dict(backbones=dict(text=dict(kind="word_average", vocabulary=12, width=3, hidden=(4,))),
                   heads=dict(mood=dict(kind="linear", tap="text/pooled"))),
        pretrained=dict(text=dict(source=str(vectors), layout="word_vectors")),
        streams=dict(train=stream("train"), test=stream("test")),
        tasks=dict(mood=dict(kind="classification", head="mood")),
        stages=dict(tune=dict(init="fresh", steps=2, partition=(("text/word/.*", "frozen"), (".*", "all")),
                              groups=dict(all={}), evaluate=dict(test="mood"),
                              objective=dict(terms=dict(mood=dict(kind="task", task="mood", stream="train"))))))
    for path, value in changes.items():
        tiny_experiment.set_path(values, path, value)
    return build(ExperimentSpec, tiny_experiment.plain(values))


def test_a_text_model_starts_from_word_vectors_and_keeps_them(table, tmp_path):
    vector_files(tmp_path)
    runner = Runner(experiment(table, tmp_path / "glove.txt"), tmp_path / "run", quiet=True)
    runner.run()
    listed = runner.assembly.words("text")
    params = runner.result("tune", "last")[0]["text/word/embedding"]
    assert params.shape == (2, 12, 3)
    for seed in params:
        np.testing.assert_array_equal(seed[listed.index("film")], FILM)
        np.testing.assert_array_equal(seed[0], 0)
        np.testing.assert_array_equal(seed[1], 0)  # the mean of FILM and -FILM
        assert (seed[listed.index("bad")] != 0).all()
    np.testing.assert_array_equal(params[0], params[1])
    told = json.loads((tmp_path / "run" / "pretrained.json").read_text())["text"]["report"]["not_loaded"]
    assert f"2 of {len(listed) - 2} words have a vector" in told[0]["note"] and "2 damaged lines" in told[0]["note"]
    assert [entry["status"] for entry in told] == ["adapted", "new"]
    exported = ExportedModel(export_model(runner.assembly, runner.workdir, tmp_path / "model")).description
    assert exported["tasks"]["mood"]["preprocessing"]["words"] == list(listed)
    found = dict(np.load(tmp_path / "run" / "predictions" / "tune" / "test.npz"))
    assert "thumbnails" not in found and set(found["texts"]) <= {row[0] for row in ROWS[4:]}
    run = read_run(tmp_path / "run")
    (wrong,) = mistake_blocks(run, run.results[0]) if "texts" in run.predictions("tune", "test") else (None,)
    assert len(wrong.rows) == len(found["texts"]) and {row[1] for row in wrong.rows} == set(found["texts"])


@pytest.mark.parametrize(("changes", "said"), [
    ({"model.backbones.text.width": 4}, "vectors have 3 numbers.*width=3"),
    ({"model.backbones.text.vocabulary": 5}, "more than vocabulary=5"),
    ({"streams.test.data.vocabulary": 4}, "number their words differently"),
    ({"pretrained.text.source": "zebras.txt"}, "vector for none of the")])
def test_what_does_not_fit_together_is_told(table, tmp_path, changes, said, monkeypatch):
    vector_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zebras.txt").write_text("zebra 1 2 3\n")
    with pytest.raises(UserError, match=said):
        Runner(experiment(table, tmp_path / "glove.txt", **changes), tmp_path / "run", quiet=True).run()
