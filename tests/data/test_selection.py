"""Splits in TFDS syntax, and nested, seeded, stratified selections."""

import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.data.dataset import ArrayDataset
from transfer_jax.data.relabelling import keep_classes
from transfer_jax.data.selection import select
from transfer_jax.data.splits import slice_bounds, take_split


def dataset(counts, names=None):
    labels = np.repeat(np.arange(len(counts)), counts)
    return ArrayDataset(np.zeros((len(labels), 2, 2), np.uint8), labels, names or [f"c{i}" for i in range(len(counts))])


@pytest.mark.parametrize("text,bounds", [("[:80%]", (0, 8)), ("[80%:]", (8, 10)), ("[2:5]", (2, 5)), ("[-3:]", (7, 10)),
                                         ("[:]", (0, 10)), ("[4:99]", (4, 10)), ("[:33%]", (0, 3)), ("[5:2]", (5, 5))])
def test_slices(text, bounds):
    assert slice_bounds(text, 10, "here") == bounds


def test_percent_slices_leave_no_gap_for_any_count():
    for count in range(1, 60):
        for percent in (10, 33, 50, 67, 90):
            left, right = slice_bounds(f"[:{percent}%]", count, ""), slice_bounds(f"[{percent}%:]", count, "")
            assert left[0] == 0 and left[1] == right[0] and right[1] == count


def test_split_expressions():
    splits = {"train": dataset([4, 4]), "test": dataset([1, 2])}
    assert len(take_split(splits, "train[:50%]+test", "s")) == 4 + 3
    assert take_split(splits, "train[2:6]", "s").labels.tolist() == [0, 0, 1, 1]
    assert len(take_split(splits, "*", "s")) == 11
    assert take_split(splits, "*[8:]", "s").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("split,message", [("tran", "'train' (8 examples), 'test' (3 examples)"), ("train[3]", "slice"),
                                           ("train[0:0]", "no example"), ("a b", "cannot be read"),
                                           ("train[:120%]", "more than 100%")])
def test_bad_splits_are_explained(split, message):
    splits = {"train": dataset([4, 4]), "test": dataset([1, 2])}
    with pytest.raises(UserError) as caught:
        take_split(splits, split, "stream 's'")
    assert message in str(caught.value) and "stream 's'" in str(caught.value)


def test_selections_are_nested_complementary_balanced_and_seeded():
    data = dataset([20, 30, 25])
    five, ten, rest = (set(select(data, text, 7).tolist()) for text in ("[:5]", "[:10]", "[10:]"))
    assert five < ten and not ten & rest and len(ten | rest) == 75
    assert np.bincount(data.labels[sorted(ten)]).tolist() == [10, 10, 10]
    assert set(select(data, "[:10]", 8).tolist()) != ten
    assert (np.diff(select(data, "[:10]", 7)) > 0).all()


def test_selection_of_a_class_does_not_depend_on_other_classes_or_their_order():
    data = dataset([20, 30, 25])
    kept = keep_classes(data, ["c2", "c1"], "s")
    assert kept.class_names == ("c2", "c1") and len(kept) == 55
    whole = set(select(data, "[:6]", 3).tolist())
    rows = np.flatnonzero(np.isin(data.labels, [1, 2]))
    assert {int(rows[row]) for row in select(kept, "[:6]", 3)} == {row for row in whole if data.labels[row] > 0}
    assert kept.load(0)["label"] == 1 == kept.labels[0]


def test_bad_rows_are_replaced_within_their_class():
    data = dataset([20, 30])
    before = select(data, "[:5]", 1)
    after = select(data, "[:5]", 1, frozenset([int(before[0])]))
    assert len(after) == 10 and before[0] not in after and len(set(before) & set(after)) == 9


def test_more_labels_than_there_are():
    with pytest.raises(UserError, match="8 examples per class are asked for, but class 'c1' has 7"):
        select(dataset([9, 7]), "[:8]", 0, where="stream 'target'")
    with pytest.raises(UserError, match="has no labels"):
        select(ArrayDataset(np.zeros((3, 2, 2), np.uint8), None), "[:1]", 0)


def test_unknown_class_is_named():
    with pytest.raises(UserError, match="'c9'.*did you mean"):
        keep_classes(dataset([2, 2]), ["c9"], "stream 's'")
    with pytest.raises(UserError, match="twice"):
        keep_classes(dataset([2, 2]), ["c1", 1], "stream 's'")


def test_within_cuts_what_per_class_chose_into_parts():
    data = dataset([20, 30, 25])
    chosen = set(select(data, "[:10]", 7).tolist())
    fit, check = (set(select(data, "[:10]", 7, within=text).tolist()) for text in ("[:80%]", "[80%:]"))
    assert fit | check == chosen and not fit & check and len(check) == 6
    assert set(select(data, None, 7, within="[:5]").tolist()) == set(select(data, "[:5]", 7).tolist())
    with pytest.raises(UserError, match="9 examples per class"):
        select(data, "[:8]", 7, within="[:9]")
