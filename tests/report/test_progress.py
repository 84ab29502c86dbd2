"""Progress: short lines without a terminal, bars with one, silence on request; tables that fit 100 columns."""

import io

from rich.console import Console

from transfer_jax.training.progress import Progress, duration, output_console, print_groups, print_table, quantity

GROUPS = [
    {"group": "backbone", "tensors": 24, "parameters": 272474, "share": 0.9976, "lr": None, "weight_decay": None,
     "optimizer": None, "optimizer_bytes": 0, "frozen": True},
    {"group": "head", "tensors": 2, "parameters": 650, "share": 0.0024, "lr": 1e-3, "weight_decay": 1e-4,
     "optimizer": "adamw", "optimizer_bytes": 5200, "frozen": False},
]


class _Clock:
    now = 0.0

    def __call__(self):
        return self.now


def _drive(file, clock, **options):
    with Progress(2, console=output_console(file), clock=clock, **options) as progress:
        progress.skip_stage("pretrain", 50)
        progress.start_stage("fine-tuning", 100)
        for i in range(10):
            clock.now += 4.0 if i else 20.0  # the first advance holds the compilation
            progress.advance(10, loss=1 / (i + 1))
        progress.end_stage()
        progress.message("saved [here]")


def test_without_a_terminal_it_prints_a_line_every_interval():
    file, clock = io.StringIO(), _Clock()
    _drive(file, clock, interval=10.0, total_steps=150)
    lines = file.getvalue().splitlines()
    assert lines[0] == "stage 1/2 pretrain: done before"
    assert lines[1].startswith("stage 2/2 fine-tuning  10%  10/100  loss 1")
    assert lines[2] == ("stage 2/2 fine-tuning  40%  40/100  2.5 steps/s  loss 0.25  0:00:24 left  "
                        "all: 0:00:24 left")
    assert lines[-2] == "stage 2/2 fine-tuning: 100 steps in 56.0 s  loss 0.1"
    assert lines[-1] == "saved [here]"
    assert len(lines) == 7


def test_quiet_prints_messages_only():
    file = io.StringIO()
    _drive(file, _Clock(), enabled=False)
    assert file.getvalue() == "saved [here]\n"


def test_on_a_terminal_it_draws_bars_with_rate_and_time_left():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress(1, total_steps=10, console=console) as progress:
        progress.start_stage("fine-tuning", 10, done=4)
        progress.advance(3, loss=0.25)
        progress._bars.refresh()
        progress.end_stage()
    text = file.getvalue()
    assert "all stages" in text and "loss 0.25" in text and "left" in text and "70%" in text
    assert "stage 1/1 fine-tuning: 7 steps in" in text


def test_group_table_is_readable_in_a_file_of_100_columns():
    file = io.StringIO()
    print_groups(GROUPS, output_console(file), title="stage [1] fine-tuning")
    text = file.getvalue()
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    assert "stage [1] fine-tuning" in text
    backbone = next(line for line in text.splitlines() if "backbone" in line)
    assert backbone.split() == ["backbone", "24", "272,474", "99.8%", "frozen", "-", "-", "0", "B"]
    assert "5.2 kB" in text and "0.0001" in text


def test_wide_tables_are_folded_not_cut():
    file = io.StringIO()
    print_table(["method", *"abcdefgh"], [["a very long name of a method", *["0.123 ± 0.045 oracle"] * 8]],
                output_console(file))
    assert max(map(len, file.getvalue().splitlines())) <= 100
    assert file.getvalue().replace(" ", "").replace("\n", "").count("orac") == 8


def test_numbers_in_human_units():
    assert [quantity(n) for n in (0, 650, 11_200_000, 999_999)] == ["0", "650", "11.2M", "1M"]
    assert [quantity(n, "B") for n in (0, 5200, 2.5e9)] == ["0 B", "5.2 kB", "2.5 GB"]
    assert [duration(s) for s in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]
