"""Fixtures of all tests: one cache folder for prepared data and compiled programs, shared by parallel workers."""

import contextlib
import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from compiler_options import quick_to_compile
from filelock import FileLock
from jax._src import compiler  # its options for all programs, eager ones too, have no public name
from sklearn.datasets import load_digits

from transfer_jax.core.compilation import enable_compilation_cache

OWN_OPTIONS = compiler.get_compile_options
LONGEST = ("test_faults.py", "test_slurm.py", "test_launch_scripts.py", "test_processes.py", "test_sharding.py",
           "test_configs.py", "test_parity.py", "test_resume.py", "test_advising.py", "test_step.py", "test_sweep.py",
           "test_caching.py", "test_tuning_stages.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", action="store_true", help="compare live with torch, torchvision, timm, transformers")
    parser.addoption("--all", action="store_true",
                     help="every member of a family, not the smallest; bits of programs as users run them; long tests")
    parser.addoption("--long", action="store_true", help="tests/faults: at least 200 random kills")
    parser.addoption("--counts", help="tests/faults: the JSON file of what was counted")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: tries at length what shorter tests try, too; for --all and --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves thorough tests to --all and --long, and puts the longest tests first.

    So of parallel workers none is left with a long one while the others have finished. Workers take from the ends of
    each other's queues, so tests at the front stay with those of their module, too, and what they share is made once.
    """
    if not (config.getoption("--all") or config.getoption("--long")):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="tries at length what shorter tests try, too; run with --all"))
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """What has been imported stays; looking through it for garbage again and again takes a third of all tracing."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder of this test session that all of its parallel workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def session_cache(shared_folder):
    """Our caches lie in the session's folder: builders are prepared once, programs compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFER_JAX_CACHE", str(shared_folder / "cache"))
        enable_compilation_cache("default")
        yield shared_folder / "cache"
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def digits_file(shared_folder) -> Path:
    """scikit-learn's digits 8x8 as an .npz file: 240 for training, 60 for testing (not a multiple of the batch)."""
    path = shared_folder / "digits.npz"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            found = load_digits()
            image = np.rint(found.images * 255 / 16).astype(np.uint8)[..., None]
            label = found.target.astype(np.int32)
            np.savez(path, train_image=image[:240], train_label=label[:240], test_image=image[240:300],
                     test_label=label[240:300])
    return path


@pytest.fixture
def torch():
    """PyTorch, for comparisons; its CPU build is no requirement of the test suite."""
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed here")


@contextlib.contextmanager
def quick_compilation():
    """Programs of this process and of those that it starts are compiled with as little optimisation as XLA can do."""
    options_of, wanted = compiler.get_compile_options, quick_to_compile()

    def quick(*arguments, env_options_overrides=None, **named):
        return options_of(*arguments, env_options_overrides=wanted | (env_options_overrides or {}), **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quick)
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # processes that a test starts
        flags = [f"--{name}={str(value).lower()}" for name, value in wanted.items()]
        patch.setenv("XLA_FLAGS", " ".join(flags))
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def compilation():
    """A few small steps do not repay an optimising compiler: its passes would take most of the time.

    Tests of layers put a fixture of this name in its place: they run what users run.
    """
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def compilation_for_bits(request):
    """Where bits are compared: with --all of programs as users run them, which take ten times as long to compile.

    Without it only the tests that ask for `own_compilation` have those.
    """
    with contextlib.nullcontext() if request.config.getoption("--all") else quick_compilation():
        yield


@pytest.fixture
def quick_unless_all(request):
    """For single tests of a module that runs what users run: `quick_compilation`, but with --all as users run them."""
    with contextlib.nullcontext() if request.config.getoption("--all") else quick_compilation():
        yield


@pytest.fixture
def own_compilation(compilation, monkeypatch):
    """The compiler's own settings, for one test."""
    monkeypatch.setattr(compiler, "get_compile_options", OWN_OPTIONS)
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
