"""Progress of jobs: bars on a terminal, a line now and then elsewhere (a log, a batch job)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from shared.errors import printable
from shared.jobs import Reporter

console = Console(stderr=True)

UNBOUNDED = 100_000
"""Width of a line that nothing cuts, characters."""

LINE_SECONDS = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def show_progress(name: str) -> AbstractContextManager[Reporter]:
    """Make the reporter of a job: bars on a terminal or in a notebook, lines elsewhere.

    Args:
        name: name of the job for people, such as its stage.
    """
    if console.is_terminal or console.is_jupyter:
        return RichReporter(name)
    return LineReporter(name)


def say(text: str) -> None:
    """Print a line as it is, without colours, markup or line breaks, but harmless to a terminal."""
    console.print(printable(text, keep="\n\t"), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that work goes on whose end is not known: a spinner, or off a terminal a line each
    half minute."""
    if console.is_terminal or console.is_jupyter:
        with console.status(text):
            yield
        return
    began = time.monotonic()
    with Lines(lambda: f"{text}: for {duration(time.monotonic() - began)} now"):
        yield


def print_table(table: Table, to: Console | None = None) -> None:
    """Print a table; off a terminal each row is one whole line, on one long cells are wrapped.

    Args:
        table: the table.
        to: where to; None: standard output.
    """
    for column in table.columns:
        column.overflow = "fold"
    out = to or Console()
    if out.is_terminal or out.is_jupyter:
        out.print(table)
        return
    whole = out.measure(table, options=out.options.update(width=UNBOUNDED)).maximum
    Console(file=out.file, width=whole).print(table)


def duration(seconds: float) -> str:
    """Write a duration with one unit: 40 s, 12 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class RateColumn(ProgressColumn):
    """A column of a progress bar that shows items per second."""

    def render(self, task: Task) -> Text:
        """Show the rate of one bar."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="dim")


class RichReporter(Reporter):
    """Draws one bar for the shards of the phase, and one for the running shard."""

    tells = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self.shards: TaskID = self.bars.add_task(name, total=None, note="planning")
        self.shard: TaskID | None = None
        self.current = ""

    def __enter__(self) -> RichReporter:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def phase(self, job: str, phase: int, phases: int, settled: int, total: int) -> None:
        note = f"phase {phase + 1}/{phases}" if 0 <= phase < phases else ""
        self.bars.update(
            self.shards, description=self.name, completed=settled, total=total, note=note
        )

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        if unit != self.current:
            if self.shard is not None:
                self.bars.remove_task(self.shard)
            self.shard = self.bars.add_task(f"  {unit}", total=total, note=note)
            self.current = unit
        if self.shard is not None:
            self.bars.update(self.shard, completed=done, total=total, note=note)

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        if not parked:  # the final report lists parked units
            say(f"{self.name}: {unit} will be tried again: {error}")


class Lines:
    """Prints a line every half minute, from a thread, as long as it is entered.

    Args:
        line: writes the line.
    """

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._stop.wait(LINE_SECONDS):
            say(self._line())


class LineReporter(Reporter):
    """Prints a line of progress every half minute: stage, rate and time left.

    Args:
        name: name of the job for people.
        clock: returns the time in seconds.
    """

    tells = True

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.clock = clock
        self.place = (-1, 0, 0, 0)  # phase, phases, settled units, all units of the phase
        self.step: tuple[str, int, int, str] | None = None  # unit, done, total, note
        self.first = 0  # units of the phase that were settled when it began here
        self.began = clock()
        self._lines = Lines(self.line)

    def __enter__(self) -> LineReporter:
        self._lines.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def phase(self, job: str, phase: int, phases: int, settled: int, total: int) -> None:
        before, self.place = self.place, (phase, phases, settled, total)
        if before[0] != phase:
            self.first, self.began = settled, self.clock()
        if before != self.place:
            self.step = None

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        self.step = (unit, done, total, note)

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        if not parked:  # the final report lists parked units
            say(f"{self.name}: {unit} will be tried again: {error}")

    def line(self) -> str:
        """Describe the progress: the phase, the running unit, the rate and the time left."""
        phase, phases, settled, total = self.place
        if not 0 <= phase < phases:
            return f"{self.name}: {'finishing' if phases else 'planning'}"
        parts = [f"{self.name}: phase {phase + 1}/{phases}, {settled}/{total} done"]
        reached = float(settled)
        if self.step and self.step[1] < self.step[2]:
            unit, done, steps, note = self.step
            reached += done / steps
            parts.append(f"{unit} {done}/{steps} {note}".rstrip())
        made, elapsed = reached - self.first, self.clock() - self.began
        if made > 0 and elapsed > 0:
            rate = made / elapsed
            parts.append(f"{rate:.1f}/s" if rate >= 0.1 else f"{duration(1 / rate)} each")
            parts.append(f"about {duration((total - reached) / rate)} left in this phase")
        return ", ".join(parts)
