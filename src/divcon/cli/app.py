"""What all commands share: the application, its consoles, the options that several commands have."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from cyclopts import UNSET, App, Group, Parameter, Token
from cyclopts.validators import Number
from rich.console import Console

from divcon import __version__
from divcon.cli.imports import import_modules, look_in_current_folder
from divcon.cli.messages import in_flags
from divcon.cli.ranks import as_rank
from divcon.config.fields import field_docs
from divcon.config.settings import SPLITTING, TEST_FRACTION, DataConfig, Device, OnBadImage, Protocol
from divcon.errors import ConfigError
from divcon.runtime.blocks import parse_size
from divcon.runtime.launchers import started_task
from divcon.runtime.places import CACHE_DIR, CACHE_SIZE, absolute, place, shown

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark
    from divcon.data.columns import Columns
    from divcon.runtime.context import Progress
    from divcon.search.on_ray import Ray

app = App(
    name="divcon",
    help="Deep metric learning by divide and conquer: train an embedding on labelled images or vectors, evaluate it on "
    "classes that it was not trained on, and search with it.",
    version=__version__,
)


_CACHE = Group("Data at addresses (s3://, gs://, https:// ...)", sort_key=98)


@app.meta.default
def launch(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    modules: Annotated[
        list[str] | None,
        Parameter(name="--import", negative=(), group=Group("Parts of your own", sort_key=99), metavar="MODULE"),
    ] = None,
    cache_dir: Annotated[Path | None, Parameter(group=_CACHE)] = None,
    cache_size: Annotated[str | None, Parameter(group=_CACHE)] = None,
) -> Any:
    """Run a command, with the options that every command takes.

    Parameters
    ----------
    modules
        Import this Python module first, and let the files that the command reads (a model, a run, settings) name parts
        of your own in it: a loss, a backbone, a reader. Repeat it for several modules. A part that you type as
        module:Name needs no --import. The current folder is searched for modules too.
    cache_dir
        The folder on this machine for what is read from addresses such as s3://. Default: DIVCON_CACHE_DIR, or
        ~/.cache/divcon.
    cache_size
        How large that folder may grow, such as 50GB; what was used longest ago is removed. Default: DIVCON_CACHE_SIZE,
        or half of what is free on its disk.
    """
    # Variables, so that the processes that this one starts have them too.
    if cache_dir is not None:
        os.environ[CACHE_DIR] = str(cache_dir.absolute())
    if cache_size is not None:
        parse_size(cache_size)
        os.environ[CACHE_SIZE] = cache_size
    look_in_current_folder()
    import_modules(modules or ())
    with as_rank(words, (console, notes)) as has_work:
        return app(words) if has_work else None


def to_path(kind: Any, tokens: Sequence[Token]) -> Any:
    """The paths of words, where addresses are the places that stand for them (`divcon.runtime.places`)."""
    words = [token.value if token.implicit_value is UNSET else token.implicit_value for token in tokens]
    paths = [place(word) for word in words]
    return paths if get_origin(kind) is list else paths[-1]


def to_paths(kind: Any, tokens: Sequence[Token]) -> Any:
    """As `to_path`, of an option that may be repeated."""
    return tuple(to_path(list[Path], tokens))


Place = Annotated[Path, Parameter(converter=to_path)]
"""A path, or an address such as ``s3://bucket/x``."""


class _Console(Console):
    """Prints addresses in place of the paths that stand for them."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(shown(each) if isinstance(each, str) else each for each in objects), **options)


console = _Console(highlight=False, soft_wrap=True, markup=False)
notes = _Console(stderr=True, highlight=False, soft_wrap=True)

TRAIN = Group("Train", sort_key=1)
EVALUATE = Group("Evaluate and use a model", sort_key=2)
SEARCH = Group("Search", sort_key=3)
DATA = Group("Prepare data", sort_key=4)
"""The groups of commands in the help."""

COMPUTING = Group("Computing", sort_key=90)
Workers = Annotated[
    int,
    Parameter(
        help="Number of processes that decode images; 0: decode in the main process.",
        validator=Number(gte=0),
        group=COMPUTING,
    ),
]
BatchSize = Annotated[
    int,
    Parameter(help="Images per batch; use fewer if memory runs out.", validator=Number(gte=1), group=COMPUTING),
]
DeviceOption = Annotated[
    Device, Parameter(help="Where to compute: auto takes cuda, then mps, then cpu.", group=COMPUTING)
]
TrackerOption = Annotated[
    list[str] | None,
    Parameter(
        name="--tracker",
        negative=(),
        help="Send the run to a tracker: tensorboard, wandb, mlflow, trackio, or one of your own (module:Name). Repeat "
        "it, or separate names by commas, for several; none: no more, for a run that is resumed.",
    ),
]
BadImage = Annotated[
    OnBadImage,
    Parameter(help="What to do with an image that does not decode: stop and name it, or skip it.", group=COMPUTING),
]


TableFiles = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--table",
        negative=(),
        converter=to_paths,
        help="Write a table of all scores for a paper to this file: .tex (LaTeX, booktabs), .csv or .md, with mean and "
        "standard deviation over seeds, 95 % intervals, the pretrained features, and the best in bold. Repeat it for "
        "several.",
    ),
]
PartRows = Annotated[
    int | None,
    Parameter(
        help="Rows of a part, what an interruption can lose. Default: 1,024 to 8,192, by their number.",
        validator=Number(gte=1),
        group=COMPUTING,
    ),
]
Stream = Annotated[
    str | None,
    Parameter(
        help="Instead of images: a text file with a path per line, or a CSV or parquet of paths or vectors, of any "
        "length: it is read some rows at a time. - reads paths from standard input.",
        allow_leading_hyphen=True,
    ),
]
Shard = Annotated[
    str | None,
    Parameter(
        help="The number of this process and of all, such as 2/8. Default: as a launcher has started them (SLURM, "
        "torchrun, mpirun), or 1/1."
    ),
]

ENGINE = Group("Several machines", sort_key=80)


@Parameter(name="*")
@dataclass(frozen=True)
class EngineChoice:
    """Where images are embedded, if not in this process."""

    engine: Annotated[
        Literal["ray"] | None,
        Parameter(
            help="Embed on a Ray cluster, or on all cores or GPUs of this machine by Ray. A worker on a GPU has "
            "--workers processes that decode; one on the CPU decodes itself. Default: in this process.",
            group=ENGINE,
        ),
    ] = None
    address: Annotated[
        str | None,
        Parameter(
            help="The Ray cluster: auto (the one that this machine is in), HOST:6379 or ray://HOST:10001. Default: "
            "RAY_ADDRESS, or a Ray of this machine alone, which ends with the command.",
            group=ENGINE,
        ),
    ] = None
    actors: Annotated[
        int | None,
        Parameter(
            help="The most workers of Ray, each with a copy of the model. Default: one for each GPU of the cluster, or "
            "each core if it has none.",
            validator=Number(gte=1),
            group=ENGINE,
        ),
    ] = None

    def chosen(self) -> Ray | None:
        """The engine; None: this process.

        Raises:
            ConfigError: an option of an engine without one.
        """
        if self.engine is None:
            for name, value in (("address", self.address), ("actors", self.actors)):
                if value is not None:
                    raise ConfigError(f"--{name} {value} is of an engine: add --engine ray")
            return None
        from divcon.search.on_ray import Ray

        return Ray(self.address, self.actors)


HERE = EngineChoice()


def shard_of(shard: str | None) -> tuple[int, int]:
    """The shard's number, from 1, and the number of shards: of ``--shard 1/8``, or as a launcher has started it."""
    if shard is None:
        number, count = started_task()
        return number + 1, count
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard {shard}: write NUMBER/SHARDS, with a number from 1, such as 1/8")
    return int(match[1]), int(match[2])


_SPLIT = Group("Split of the data", sort_key=60)
_DOCS = {name: in_flags(text) for name, text in field_docs(DataConfig).items()}
_TABLES = Group("Columns of a table", sort_key=10)


def _column(text: str) -> Any:
    return Parameter(help=f"{text} Default: guessed from the usual names, and printed.", group=_TABLES)


@Parameter(name="*")
@dataclass(frozen=True)
class ColumnChoice:
    """Which columns of a table are what: options of every command that reads images or vectors."""

    image_column: Annotated[str | None, _column("The column of the images: their paths, or encoded images.")] = None
    label_column: Annotated[str | None, _column("The column of the labels.")] = None
    split_column: Annotated[str | None, _column("The column of the splits.")] = None
    vector_column: Annotated[str | None, _column("The column of vectors, in place of images.")] = None

    def columns(self) -> Columns:
        """The columns that are chosen."""
        from divcon.data.columns import Columns

        return Columns(self.image_column, self.label_column, self.split_column, self.vector_column)


@Parameter(name="*")
@dataclass(frozen=True)
class Reading(ColumnChoice):
    """How labelled data is read: options of `divcon.read` that every command with DATA takes."""

    on_missing_label: Annotated[
        Literal["stop", "skip"] | None,
        Parameter(
            help="What to do with a row without a label: stop and name it, or skip it. Default: stop.", group=_TABLES
        ),
    ] = None

    labels_file: Annotated[
        Place | None,
        Parameter(
            help="The labels of a file of vectors (.npy, .npz, .pt, .safetensors), row for row: a .npy, a text with "
            "one a line, or a table. Default: in the file itself, or beside it.",
            group=_TABLES,
        ),
    ] = None

    def options(self) -> dict[str, Any]:
        """The options that are set, by their names in Python."""
        options = {name: value for name, value in vars(self).items() if value is not None}
        if self.labels_file is not None:
            options["labels_file"] = absolute(self.labels_file)  # it is recorded with a run
        return options


READING = Reading()
COLUMNS = ColumnChoice()


def trackers(values: list[str] | None) -> list[str] | None:
    """The names of `TrackerOption`; None where it is not given.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    if values is None:
        return None
    from divcon.runs.callbacks import check_callbacks

    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    names = [] if names == ["none"] else list(dict.fromkeys(names))
    check_callbacks(names)
    return names


def check_tables(files: Sequence[Path]) -> None:
    """
    Raises:
        ConfigError: tables are not written to files of such a name.
        OutputError: a file cannot be written.
    """
    from divcon.evaluation.tables import check_table_file

    for path in files:
        check_table_file(path)


@Parameter(name="*")
@dataclass(frozen=True)
class Split:
    """How the data is split, where a command reads data that no run has read."""

    test_fraction: Annotated[float | None, Parameter(group=_SPLIT, help=_DOCS["test_fraction"])] = TEST_FRACTION
    group: Annotated[str | None, Parameter(group=_SPLIT, help=_DOCS["group"])] = None
    protocol: Annotated[Protocol, Parameter(group=_SPLIT, help=_DOCS["protocol"])] = "auto"
    ignore_split: Annotated[bool, Parameter(group=_SPLIT, negative=(), help=_DOCS["ignore_split"])] = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of `divcon.read`, those that are not at their defaults."""
        return {name: value for name, default in SPLITTING.items() if (value := getattr(self, name)) != default}


AS_IT_IS = Split()


def note(message: str) -> None:
    """Print a note; settings that it names in backticks are shown as flags."""
    notes.print(f"note: {in_flags(message)}", markup=False)


@contextmanager
def progress_bar(unit: str = "images", total: int | None = None) -> Iterator[Callable[[Progress], None]]:
    """Show a bar of one line with rate and time left; yields the ``on_progress`` of a `divcon.Context` that moves it.
    ``total`` is for work that does not know how much it is."""
    from divcon.runs.progress_bar import stage_bar

    with stage_bar(notes, unit, total) as on_progress:
        yield on_progress


def read_data(data: str, root: str | Path | None, **options: Any) -> Benchmark:
    """Read data as `divcon.read` does, and show a progress bar meanwhile."""
    from divcon.data.read import read
    from divcon.runtime.context import Context

    with progress_bar() as on_progress:
        return read(data, root, context=Context(on_progress=on_progress, on_warning=note), **options)
