"""What devices say to each other is read rightly: from a text made by hand, and from programs compiled for four."""

import json
import os
import subprocess
import sys

import pytest
from tiny_experiment import ROOT

from transfer_jax.training.collectives import Collective, collectives

TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%inner (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %g = f32[4,2]{1,0} all-gather(f32[1,2] %x), channel_id=3, replica_groups=[2,4]<=[2,4]T(1,0), dimensions={0}
  ROOT %t = (s32[], f32[4,2]) tuple(%i, %g)
}

%outer (p: (s32[], f32[6])) -> (s32[], f32[6]) {
  %r = (f32[6]{0}, /*index=1*/bf16[2,2]) all-reduce(%a), replica_groups=DEVICES {'d'}, metadata={op_name="step/dense"}
  %s = f32[2]{0} reduce-scatter(%c), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
  %w = (s32[], f32[4,2]) while(%r), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %t = (s32[], f32[6]) tuple(%i, %r)
}

ENTRY %main (p: f32[6]) -> f32[6] {
  %w = (s32[], f32[6]) while(%p), condition=%c, body=%outer
  %q = f32[6]{0} fusion(%w), kind=kLoop, calls=%wrapped
  %single = f32[6]{0} all-reduce(%q), replica_groups={{0},{1}}, to_apply=%add
  ROOT %e = f32[6]{0} all-to-all(%q), replica_groups={}
}

%wrapped (p: pred[8]) -> pred[8] {
  %m = pred[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,2}}
  %h = (f32[2]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
}
""".replace("DEVICES", "mesh['d'=2,'m'=4], device_ids=([4,2]T(1,0))")


def test_every_operation_is_found_with_its_bytes_its_devices_and_how_often_it_runs():
    assert collectives(TEXT) == [
        Collective("all-reduce", 32, 2, 1, True, "step/dense"),
        Collective("reduce-scatter", 8, 2, 1, True), Collective("all-gather", 32, 4, 12, True),
        Collective("collective-permute", 8, 2, 1, False), Collective("all-gather", 64, 8, 1, False),
        Collective("all-to-all", 24, 8, 1, False)]


@pytest.mark.parametrize(("kind", "sent"), [("all-reduce", 1200), ("all-gather", 600), ("all-to-all", 600),
                                            ("reduce-scatter", 2400), ("collective-permute", 800)])
def test_a_ring_sends(kind, sent):
    assert Collective(kind, 400, 4, times=2).sent == sent


@pytest.mark.parametrize(("groups", "devices"), [
    ("{}", 8), ("{{0,1,2,3},{4,5,6,7}}", 4), ("[4,2]<=[8]", 2), ("mesh['a'=2,'b'=4] {'a','b'}", 8),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", 2)])
def test_every_notation_of_groups(groups, devices):
    line = f"  %r = f32[6]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%add\n"
    found, = collectives(f"HloModule m, num_partitions=8\n\nENTRY %main (p: f32[6]) -> f32[6] {{\n{line}}}\n")
    assert found.group == devices


PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from transfer_jax.layers.convolution import convolve
from transfer_jax.training.collectives import collectives
from transfer_jax.core.mesh import make_mesh

mesh = make_mesh({"data": 4})
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

def repeated(w, x):
    def body(w, _):
        return w - jax.grad(lambda w: jnp.square(x @ w).sum())(w), None
    return jax.lax.scan(body, w, length=5)[0]

def gradient(k, x):
    return jax.grad(lambda k: jnp.square(convolve(x, k)).sum())(k)

def read(function, *shapes):
    places = (whole, split)
    given = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=p) for s, p in zip(shapes, places)]
    found = collectives(jax.jit(function, out_shardings=whole).lower(*given).compile().as_text())
    return [(one.kind, one.size, one.group, one.times) for one in found]

print(json.dumps([read(repeated, (6, 5), (8, 6)), read(gradient, (3, 3, 8, 8), (64, 16, 16, 8))]))
"""


def printed(program, *arguments):
    """The last line that a program prints in a process with four devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True,
                          env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_compiled_programs_exchange_each_gradient_once():
    loop, convolution = json.loads(printed(PROGRAM))
    assert loop == [["all-reduce", 4 * 6 * 5, 4, 5]]
    assert convolution == [["all-reduce", 4 * 3 * 3 * 8 * 8, 4, 1]]


STAGE = """
import json, sys
from tiny_experiment import single
from transfer_jax.experiment.planning import compiled_stages
from transfer_jax.training.collectives import collectives

spec = single(sys.argv[1], {"partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}},
                            "cache": "never"},
              {"mesh": {"fsdp": 4}, "model.backbones.backbone.widths": (8, 64), "streams.train.batch_size": 64,
               "compilation_cache": None})
(_, program), = compiled_stages(spec, None)
print(json.dumps([one.looped for one in collectives(program.as_text()) if one.kind == "all-gather"]))
"""


def test_frozen_parameters_are_gathered_in_the_step_and_not_kept_whole_for_all_steps(digits_file):
    found = json.loads(printed(STAGE, str(digits_file)))
    assert found and all(found)
