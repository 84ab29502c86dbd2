"""The section of a report on tasks that are learned together."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_jax.experiment.report import affinity, several_tasks, statistics, task_figures
from transfer_jax.experiment.report.collect import Run, by_experiment
from transfer_jax.experiment.report.document import Block, Picture, slug
from transfer_jax.experiment.report.figures import bars
from transfer_jax.experiment.report.pivot import Layout


def several_task_blocks(runs: Sequence[Run], asked: Layout) -> list[Block]:
    """Delta_m and the trade between two tasks, and what combinations logged of terms and their gradients.

    Runs that share the stages of an experiment among them are one: a sweep's arms are compared with its reference.
    """
    blocks: list[Block] = []
    runs = by_experiment(runs)
    for run in runs:
        rows = several_tasks.changes(run, asked)
        tasks = (run.config.get("report") or {}).get("tasks") or {}
        if rows:
            blocks += [several_tasks.MEANING, several_tasks.change_table(rows, tasks)]
        if len(rows) > 2 and len(tasks) == 2:
            names = tuple(f"{metric} on {stream}" for stream, metric in tasks.items())
            image = task_figures.trade_off(several_tasks.trade(rows, tasks), names,
                                           tuple(map(statistics.lower_is_better, tasks.values())), rows[0].name)
            caption = ("Means over seeds and their standard errors. Green, joined: no other method is better in one "
                       f"task and as good in the other. Dotted: {rows[0].name}.")
            blocks.append(Picture(f"trade_{slug(run.name)}", "svg", image, caption))
        elif len(rows) > 2:
            found = [(row.name, statistics.summarize(row.change), row.change) for row in rows[1:]]
            blocks.append(Picture(f"change_{slug(run.name)}", "svg", bars(found, "Δm, %"),
                                  f"Δm against {rows[0].name}: mean over seeds, 95 % interval, and every seed."))
        for stage in run.stages:
            blocks += affinity.blocks(run, stage)
    logged = [(run, stage, found) for run in runs for stage in run.stages
              if (found := several_tasks.curves_of(run, stage))]
    for run, stage, found in logged[:several_tasks.MOST_STAGES]:
        image = task_figures.over_time(run.title(stage), found)
        blocks.append(Picture(f"terms_{slug(run.name)}_{slug(stage)}", "svg", image,
                              f"{run.title(stage)}: mean over seeds and 95 % interval at every log point."))
    if len(logged) > several_tasks.MOST_STAGES:
        blocks.append(f"Shown are {several_tasks.MOST_STAGES} of {len(logged)} stages; metrics.jsonl holds them all.")
    return blocks
