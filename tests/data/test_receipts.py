"""Receipts: lines and halves of pages with their words, no receipt in both splits."""

import json

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data import SOURCES, StreamSpec, open_source, open_stream
from transfer_jax.data.sources.receipts import FIELDS, field_of, tokens

KEYS = {"company": "BOOK TA .K SDN BHD", "date": "25/12/2018", "address": "NO.53, JALAN SAGU 18, 81100 JOHOR.",
        "total": "9.00"}
LINES = (("BOOK TA .K (SDN) BHD", "company"), ("NO.53, JALAN SAGU 18,", "address"), ("25/12/2018 8:13", "date"),
         ("TOTAL: 9.00", "total"), ("CASH 10.00", "other"), ("9.000", "other"), ("NO", "other"))


@pytest.fixture
def folder(tmp_path):
    """Five receipts of seven lines, each 10 pixels high and of a grey of its own."""
    for name in ("img", "box", "key"):
        (tmp_path / name).mkdir()
    for number in range(5):
        page = np.repeat(np.arange(7, dtype=np.uint8)[:, None] * 30, 10, axis=0) * np.ones((1, 40), np.uint8)
        Image.fromarray(page).save(tmp_path / "img" / f"r{number}.jpg", quality=95)
        rows = [f"2,{10 * i},30,{10 * i},30,{10 * i + 10},2,{10 * i + 10},{text}" for i, (text, _) in enumerate(LINES)]
        (tmp_path / "box" / f"r{number}.csv").write_text("\n".join(rows))
        (tmp_path / "key" / f"r{number}.json").write_text(json.dumps(KEYS))
    return tmp_path


def opened(folder, **arguments):
    return open_source(Component(kind="sroie", path=str(folder), **arguments))


@pytest.mark.parametrize(("text", "field"), LINES)
def test_a_line_belongs_to_the_field_whose_text_it_is(text, field):
    assert field_of(text, KEYS) == field


def test_lines_have_their_window_words_and_field(folder):
    splits = opened(folder)
    assert [len(splits[name]) for name in ("train", "test")] == [21, 14]  # a share of 0.3 of five receipts is two
    receipts = [{splits[name].name_of(row).split(",")[0] for row in range(len(splits[name]))} for name in splits]
    assert not receipts[0] & receipts[1] and len(receipts[0] | receipts[1]) == 5
    for row, (text, field) in enumerate(LINES):
        example = splits["train"].load(row)
        assert example["image"].shape[:2] == (10, 28) and abs(int(example["image"].mean()) - 30 * row) <= 4
        assert FIELDS[example["label"]] == field and splits["train"].labels[row] == example["label"]
        np.testing.assert_array_equal(example["tokens"], tokens(text.split(), 12, 4096))


def test_halves_of_a_page_start_or_continue_a_receipt(folder):
    train = opened(folder, unit="page")["train"]
    upper, lower = train.load(0), train.load(1)
    assert train.class_names[upper["label"]] == "starts" and train.class_names[lower["label"]] == "continues"
    assert upper["image"].mean() < lower["image"].mean() and upper["image"].shape[:2] == (35, 40)
    words = [word for text, _ in LINES for word in text.split()]
    known = [set(part["tokens"][part["tokens"] > 0].tolist()) for part in (upper, lower)]
    assert known[0] | known[1] == set(tokens(words, 96, 4096)[:len(words)].tolist()) and known[0] != known[1]


def test_tokens_are_alike_for_amounts_of_one_form():
    same = tokens(["12.50", "99.99", "1.50", "Cash", "CASH"], 6, 4096)
    assert same[0] == same[1] != same[2] and same[3] == same[4] and same[5] == 0 and same.max() < 4096
    assert tokens(["a"] * 9, 4, 2).tolist() == [1] * 4


def test_streams_give_what_their_inputs_name(folder):
    spec = build(StreamSpec, dict(data=dict(kind="sroie", path=str(folder)), batch_size=4, image_size=(8, 16),
                                  inputs=dict(image="image", text="tokens", middle=("image/pooled", "text/pooled"))))
    stream = open_stream("lines", spec, (0,))
    assert stream.example_shapes["tokens"] == ((12,), np.int32)
    with pytest.raises(UserError, match="reads 'token', but the data have image, tokens"):
        open_stream("lines", spec.model_copy(update={"inputs": {"text": "token"}}), (0,))


def test_what_is_wrong_is_one_sentence(folder):
    assert "sroie" in SOURCES
    with pytest.raises(UserError, match="did you mean 'line'"):
        opened(folder, unit="lines")
    with pytest.raises(UserError, match="holds no receipts"):
        opened(folder / "img")
    (folder / "box" / "r0.csv").write_text("1,2,three")
    with pytest.raises(UserError, match=r"r0.csv is no list of lines"):
        opened(folder)
