"""Progress bars on the terminal: stage, phase, shards, rate and time left."""

from __future__ import annotations

from types import TracebackType

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
from rich.text import Text

from shared.jobs import Reporter

console = Console(stderr=True)


class RateColumn(ProgressColumn):
    """A column of a progress bar that shows items per second."""

    def render(self, task: Task) -> Text:
        """Show the rate of one bar."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="dim")


class RichReporter(Reporter):
    """Draws one bar for the shards of the phase, and one for the running shard."""

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            console.print(f"{self.name}: {unit} will be tried again: {error}", highlight=False)
