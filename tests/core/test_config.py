"""Config files, their arguments, overrides and differences."""

import ml_collections
import pytest

from transfer_jax.core.config import apply_overrides, differences, load_config, load_sweep, parse_arg, set_path
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import plain


def make():
    return ml_collections.ConfigDict({
        "lr": 0.1, "stages": {"zeta": {"steps": 1}, "alpha": {"steps": 2}}, "rules": [["a", "b"], ["c", "d"]]})


@pytest.mark.parametrize(("text", "path", "value"), [
    ("lr=1e-4", ("lr",), 1e-4),
    ("lr=3", ("lr",), 3),
    ("lr=None", ("lr",), None),
    ("lr=none", ("lr",), None),
    ("lr=true", ("lr",), True),
    ("lr=False", ("lr",), False),
    ("lr=cosine", ("lr",), "cosine"),
    ("lr=a=b", ("lr",), "a=b"),
    ("lr=(1, 2)", ("lr",), (1, 2)),
    ("stages.alpha.steps=7", ("stages", "alpha", "steps"), 7),
    ("stages.new.deep.er=7", ("stages", "new", "deep", "er"), 7),
    ("rules.1.0=x", ("rules", 1, 0), "x"),
    ("rules.0=['e', 'f']", ("rules", 0), ("e", "f")),
])
def test_an_override_sets_one_value(text, path, value):
    before = make()
    found = plain(apply_overrides(before, [text]))
    for part in path:
        found = found[part]
    assert found == value and type(found) is type(value)
    assert plain(before) == plain(make())


@pytest.mark.parametrize(("text", "message"), [
    ("lr", "override 'lr' has no value; write --config.lr=VALUE"),
    ("lr.deep=1", "'deep' lies inside 0.1, which has no entries"),
    ("lr.a.b=1", "'a' lies inside 0.1, which has no entries"),
    ("rules.2=1", "'2' is not the number of one of the 2 entries"),
    ("rules.x.0=1", "'x' is not the number of one of the 2 entries"),
])
def test_an_override_that_leads_nowhere_is_an_error(text, message):
    with pytest.raises(UserError, match="override") as caught:
        apply_overrides(make(), [text])
    assert message in str(caught.value)


def test_later_overrides_win_and_other_entries_stay():
    found = plain(apply_overrides(make(), ["lr=1", "rules.0.1=z", "lr=2"]))
    assert found["lr"] == 2 and found["rules"] == (("a", "z"), ("c", "d"))


def test_the_order_of_stages_is_that_of_writing():
    assert list(plain(make())["stages"]) == ["zeta", "alpha"]
    assert list(plain(apply_overrides(make(), ["stages.zeta.steps=5"]))["stages"]) == ["zeta", "alpha"]
    assert list(plain(apply_overrides(make(), ["stages.mid.steps=5"]))["stages"]) == ["zeta", "alpha", "mid"]


def test_set_path_changes_the_mapping_in_place():
    values = {"a": {"b": (1, {"c": 2})}}
    set_path(values, "a.b.1.c", [3, 4])
    assert values == {"a": {"b": (1, {"c": (3, 4)})}}


def test_arguments_take_the_type_of_their_defaults():
    found = parse_arg("steps=7,name=x,rate=2,fast", steps=1, name="y", rate=0.5, fast=False, left=3)
    assert found.to_dict() == {"steps": 7, "name": "x", "rate": 2.0, "fast": True, "left": 3}
    assert isinstance(found.rate, float)
    assert parse_arg(None, steps=1).steps == parse_arg("", steps=1).steps == 1
    assert parse_arg("fast=false", fast=True).fast is False
    assert parse_arg("path=x", path=None).path == "x"


@pytest.mark.parametrize(("text", "message"), [
    ("step=7", "unknown config argument 'step' in 'step=7'; did you mean 'steps'?"),
    ("steps=many", "config argument steps='many' must be of type int"),
    ("fast=maybe", "config argument fast='maybe' must be true or false"),
])
def test_wrong_arguments(text, message):
    with pytest.raises(UserError) as caught:
        parse_arg(text, steps=1, fast=False)
    assert str(caught.value) == message


def test_differences_name_every_leaf():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": 1}
    new = {"a": 1, "b": {"c": (1, 2), "d": "y"}, "come": 2}
    assert differences(old, new) == ["b.d: 'x' -> 'y'", "gone: 1 -> None", "come: None -> 2"]
    assert differences(old, old) == []


def test_a_config_file_gets_its_argument_and_may_import_a_sibling(tmp_path):
    (tmp_path / "sibling_of_config.py").write_text("VALUE = 5\n")
    path = tmp_path / "one.py"
    path.write_text("import ml_collections\nfrom sibling_of_config import VALUE\n\n\ndef get_config(arg=None):\n"
                    "    return ml_collections.ConfigDict({'arg': arg, 'value': VALUE})\n\n\ndef get_sweep(arg=None):\n"
                    "    yield {'value': 1}\n    yield {'value': 2}\n")
    assert load_config(f"{path}:a=1,b", ["value=6"]).to_dict() == {"arg": "a=1,b", "value": 6}
    assert load_sweep(str(path)) == [{"value": 1}, {"value": 2}]


def test_faulty_config_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(str(tmp_path / "absent.py"))
    path = tmp_path / "broken.py"
    path.write_text("a = (\n")
    with pytest.raises(UserError, match="line 1"):
        load_config(str(path))
    path.write_text("def get_sweep(arg):\n    return []\n")
    with pytest.raises(UserError, match="has no function get_config"):
        load_config(str(path))
    with pytest.raises(UserError, match="yields no run"):
        load_sweep(str(path))
    path.write_text("import os\nimport no_such_module\n")
    with pytest.raises(UserError, match="broken.py', line 2: ModuleNotFoundError: No module named 'no_such_module'"):
        load_config(str(path))
    path.write_text("def get_config(arg):\n    return {}[\"x\"]\n\n\ndef get_sweep(arg):\n    yield {}[0]\n")
    with pytest.raises(UserError, match="line 2: KeyError: 'x'"):
        load_config(str(path))
    with pytest.raises(UserError, match="line 6: KeyError: 0"):
        load_sweep(str(path))
    path.write_text("def get_config(arg):\n    return {'heads': {'a': 1,\n     'b': 2, 'a': 3}}\n")
    with pytest.raises(UserError, match="broken.py', line 3: 'a' is given twice, first in line 2"):
        load_config(str(path))
    path.write_text("def get_config(arg):\n    pass\n")
    with pytest.raises(UserError, match="gives NoneType, and no ConfigDict"):
        load_config(str(path))
