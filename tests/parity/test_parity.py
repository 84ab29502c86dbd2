"""Our networks against the originals, live (`--parity`; every member with `--all`) and against their golden outputs."""

import numpy as np
import pytest

from tests.parity.cases import CASES, FIRST
from tests.parity.golden import OUTPUTS, SIGNATURES, learned, make, read, summarize
from tests.parity.harness import Ours, prove, signature
from transfer_jax.pretrained.conversion import to_foreign

SMALLEST = [name for name, case in CASES.items() if case.smallest]


@pytest.mark.parametrize("name", CASES)
def test_live(name, request):
    """Taps, logits, training pass, statistics, gradients, strict loading of what we write, and the round trip."""
    if not request.config.getoption("--parity"):
        pytest.skip("compares with the original framework; run with --parity")
    if name not in FIRST and not request.config.getoption("--all"):
        pytest.skip("another member of its family is compared; run with --parity --all")
    proof = prove(CASES[name])
    assert proof.worst <= CASES[name].tolerance, proof


@pytest.mark.parametrize("name", SMALLEST)
def test_golden_outputs(name):
    """What the original said when the committed script asked it."""
    case, golden = CASES[name], read(OUTPUTS)[name]
    ours = summarize(*Ours(case, case.leaves()).evaluate(case.draw_inputs().ours))
    scale = np.abs(golden["logits"]).max()
    np.testing.assert_allclose(ours["logits"], golden["logits"], rtol=0, atol=2 * case.tolerance * scale)
    assert golden["taps"] or not case.taps
    for tap, (mean, magnitude) in golden["taps"].items():
        np.testing.assert_allclose(ours["taps"][tap], [mean, magnitude], rtol=0, atol=2 * case.tolerance * magnitude)


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes(name, request):
    """What we write has the names and shapes that the original's own file has."""
    case = CASES[name]
    if not case.smallest and not request.config.getoption("--all"):
        pytest.skip("a larger member of its family; run with --all")
    stand_ins = {path: np.zeros(leaf.shape, np.int8) for path, leaf in case.shapes().items()}
    written = learned(case, to_foreign(stand_ins, case.module, case.layout))
    assert signature(written) == read(SIGNATURES)[name]


@pytest.mark.parametrize("name", SMALLEST[:3])
def test_golden_files_are_reproducible(name, request):
    """Asked again, the original says the same, but for rounding, which differs between processors."""
    if not request.config.getoption("--parity"):
        pytest.skip("asks the original framework again; run with --parity")
    outputs, names = make(CASES[name])
    assert names == read(SIGNATURES)[name]
    kept = np.asarray(read(OUTPUTS)[name]["logits"])
    np.testing.assert_allclose(outputs["logits"], kept, rtol=0, atol=1e-5 * np.abs(kept).max())
