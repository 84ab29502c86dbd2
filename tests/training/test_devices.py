"""One device and four give the same training."""

import json
import os
import subprocess
import sys

import numpy as np
from tiny_experiment import ROOT

SCRIPT = """
import json, sys
from pathlib import Path
import jax
from tiny_experiment import single, trained
spec = single(Path(sys.argv[1]), {"lr": 0.01}, {"model.backbones.backbone.norm": "batch", "seeds": (0, 1)})
found = trained(spec)
sharded = found.ready.program.mesh.shape["data"]
print(json.dumps({"devices": jax.device_count(), "data": sharded, "loss": found.metrics["loss"].tolist()}))
"""


def losses(data, devices):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(data)], capture_output=True, text=True, env=environment,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == found["data"] == devices
    return np.array(found["loss"])


def test_one_and_four_devices_give_equal_losses_over_twenty_steps(digits_file):
    one, four = losses(digits_file, 1), losses(digits_file, 4)
    assert one.shape == (20, 2)
    np.testing.assert_allclose(four, one, atol=1e-5)
