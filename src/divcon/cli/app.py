"""What all commands share: the application, where they print, options that several have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console

from divcon import __version__
from divcon.cli.imports import import_modules, look_in_current_folder
from divcon.cli.messages import in_flags
from divcon.config.settings import Device, OnBadImage

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark

app = App(
    name="divcon",
    help="Deep metric learning by divide and conquer: train an embedding on labelled images, and judge it on classes "
    "it never saw.",
    version=__version__,
)


@app.meta.default
def launch(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    modules: Annotated[
        list[str] | None,
        Parameter(name="--import", negative=(), group=Group("Parts of your own", sort_key=99), metavar="MODULE"),
    ] = None,
) -> Any:
    """Run a command, with the options that every command takes.

    Parameters
    ----------
    modules
        Import this Python module first, and let the files that the command reads (a model, a run, settings) name parts
        of your own in it: a loss, a backbone, a reader. Repeat it for several modules. A part that you type as
        module:Name needs no --import. Modules in the current folder are found too.
    """
    look_in_current_folder()
    import_modules(modules or ())
    return app(words)


console = Console(highlight=False, soft_wrap=True, markup=False)
notes = Console(stderr=True, highlight=False, soft_wrap=True)

Workers = Annotated[
    int, Parameter(help="Processes that decode images; 0: none beside the main one.", validator=Number(gte=0))
]
BatchSize = Annotated[int, Parameter(help="Images a batch; lower it where memory runs out.", validator=Number(gte=1))]
DeviceOption = Annotated[Device, Parameter(help="Where to compute: auto takes cuda, then mps, then cpu.")]
BadImage = Annotated[OnBadImage, Parameter(help="An image that does not decode: stop with its name, or skip it.")]


def note(message: str) -> None:
    """Print a note; settings that it names in backticks are shown as flags."""
    notes.print(f"note: {in_flags(message)}", markup=False)


def read_data(data: str, root: str | Path | None, **options: Any) -> Benchmark:
    """What `divcon.read` gives, with a bar meanwhile."""
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

    from divcon.data.read import read
    from divcon.runtime.context import Context
    from divcon.runtime.context import Progress as Step

    columns = (*Progress.get_default_columns()[:3], DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def show(step: Step) -> None:
            description = "reading" if step.done == step.total else "unpacking"
            bar.update(task, description=description, completed=step.done, total=step.total)

        return read(data, root, context=Context(on_progress=show, on_warning=note), **options)
