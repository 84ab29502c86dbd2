"""Finds a learning rate: `python -m transfer_jax.lr_find --config configs/X.py --stage S [--out FIGURE.html]`.

Trains the stage while its learning rate grows from --low to --high, until the loss does (a range test). Prints the loss
along the way and two rates to start from. Nothing is kept but the figure: stages that S starts from are trained in a
temporary folder, or read from the run in --workdir.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transfer_jax import command_line
from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build

ROWS = 12


def main(arguments: Sequence[str]) -> int:
    options = command_line.parser(__doc__)
    options.add_argument("--config", required=True, help="FILE.py, optionally with :key=value,... for its get_config")
    options.add_argument("--stage", required=True, help="the stage whose learning rate is looked for")
    options.add_argument("--workdir", help="a run whose finished stages are taken as they are (it is only read)")
    options.add_argument("--low", type=float, default=1e-6, help="the first learning rate (default: 1e-6)")
    options.add_argument("--high", type=float, default=1.0, help="the last one (default: 1)")
    options.add_argument("--steps", type=int, default=100, help="steps at most (default: 100)")
    options.add_argument("--out", help="also draw the curve: a file .html, .svg or .png")
    given, overrides = command_line.parse(options, arguments)
    out = command_line.output(given.out)
    if out is not None and out.suffix not in (".html", ".svg", ".png"):
        raise UserError(f"--out {out} must end in .html, .svg or .png")
    find(given.config, given.stage, overrides, given.low, given.high, given.steps,
         Path(given.workdir) if given.workdir else None, out)
    return 0


def find(config: str, stage: str, overrides: Sequence[str], low: float, high: float, steps: int, workdir: Path | None,
         out: Path | None) -> None:
    """Runs the test, prints its table and writes its figure."""
    from transfer_jax.experiment.range_test import range_test  # heavy imports come after the arguments are known
    from transfer_jax.experiment.report.rates import write_rates
    from transfer_jax.experiment.spec import ExperimentSpec
    from transfer_jax.training.progress import print_table

    found = range_test(build(ExperimentSpec, load_config(config, overrides)), stage, low, high, steps, workdir)
    suggestions = found.suggestions
    chosen = range(0, len(found.rates), max(1, len(found.rates) // ROWS))
    print_table(("learning rate", "loss", "smoothed"),
                [(f"{found.rates[i]:.2e}", f"{found.losses[i].mean():.4f}", f"{found.smoothed[i]:.4f}")
                 for i in chosen], title=f"stage {stage}")
    whole = len(found.rates) == steps and not found.diverged
    print("the loss did not diverge: raise --high" if whole else "the loss diverged", end="; ")
    print(f"to start from: {suggestions['steepest']:.1e} (steepest fall), {suggestions['tenth']:.1e} (a tenth of the "
          f"rate of the lowest loss)")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_rates(found, stage, out)
        print(f"figure: {out}")


if __name__ == "__main__":
    command_line.run(main)
