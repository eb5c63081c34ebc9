"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, Trackio, and a small interface for one's own.

A tracker is a `Callback` that turns what a run reports into settings, numbers by epoch, and pictures. What it fails to
send is a warning, never the end of a run. A resumed run goes on in the tracker's own record of it: its identity is kept
in ``trackers.json`` of the run folder.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import ConfigError, Stopped, first_line
from divcon.evaluation.metrics import scores_in
from divcon.runs.callbacks import TRACKERS_FILE, Callback, read_identities
from divcon.runs.sheets import Examples, cluster_sheet, flow_sheet, neighbour_sheet
from divcon.runtime.files import atomic_write
from divcon.runtime.importing import load_part
from divcon.runtime.places import text_of

if TYPE_CHECKING:
    from divcon.config.settings import RunConfig
    from divcon.data.benchmark import Benchmark
    from divcon.models import EmbeddingModel

PROJECT = "divcon"
"""The name that runs stand under where neither the tracker's own variable nor its settings say another."""
MAX_QUERIES, MAX_DIVISIONS, MAX_SEARCHED = 12, 8, 5_000
"""Of a picture: queries; divisions side by side; and validation images that a query is searched among."""


class Tracker(Callback, ABC):
    """Sends a run to an experiment tracker. A subclass says how: `open`, `log`, `image` and `close`.

    Tracked are: at the start all settings, ``data`` and ``split_hash``; each epoch, by its number, the numbers of its
    line (``train/loss``, ``validation/recall_at_1``, ``division/images_of_learner_0`` ...); at the end the kept epoch,
    its scores beside those of untrained features, and pictures: what each learner trains on, how images move among
    learners, and validation queries with their neighbours.
    """

    name: str
    """In ``trackers.json``, and in messages; of one's own, ``module:Name``."""

    @abstractmethod
    def open(self, run: Path, settings: dict[str, Any], identity: str | None, epochs_done: int) -> str | None:
        """Begin, before the first epoch, or go on with a run that was begun before.

        Args:
            run: the run folder.
            settings: flat, as in ``train.epochs``; with ``data``, ``split_hash`` and ``run``.
            identity: what this returned when the run began; None: it begins now.
            epochs_done: number of epochs that are done; what was logged of later ones is trained again.

        Returns:
            What the tracker calls this run, to go on with it.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Numbers of an epoch."""

    @abstractmethod
    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        """A picture."""

    @abstractmethod
    def close(self, status: str) -> None:
        """End: ``finished``, ``stopped`` or ``failed``."""

    # What a run calls.

    _warn: Callable[[str], None] = logging.getLogger("divcon").warning
    """Set by `created`."""
    _broken = False

    def on_start(self, run: Path, config: RunConfig, data: Benchmark, lines: Sequence[dict[str, Any]]) -> None:
        self._run, self._data, self._lines = run, data, list(lines)
        known = read_identities(run)
        settings = flat(config.to_dict()) | {"data": data.name, "split_hash": data.split_hash, "run": text_of(run)}
        done = len(lines)
        try:
            identity = self.open(run, settings, known.get(self.name) if done else None, done)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the tracker {self.name} cannot begin: {first_line(error)}; set it up, or leave it out"
            ) from error
        with atomic_write(run / TRACKERS_FILE) as beside:
            beside.write_text(json.dumps(known | {self.name: identity}, indent=1) + "\n")

    def on_epoch(self, line: dict[str, Any], model: EmbeddingModel) -> None:
        self._lines.append(line)
        self._try(lambda: self.log(scalars(line), line["epoch"]))

    def on_baselines(self, scores: dict[str, Any]) -> None:
        of_baselines = {name: of for name, of in scores.get("baselines", {}).items() if isinstance(of, Mapping)}
        values = {
            f"{name}/{score.name}": score.value
            for name, each in {"kept": scores, **of_baselines}.items()
            for score in scores_in(each)
        }
        self._try(lambda: self.log(values, self._lines[-1]["epoch"]))

    def on_end(self, model: EmbeddingModel, kept_epoch: int | None) -> None:
        if kept_epoch is not None:
            self._try(lambda: self.log({"kept/epoch": kept_epoch}, self._lines[-1]["epoch"]))
        self._try(lambda: self._send_pictures(model))
        self._close("finished")

    def on_stop(self, error: BaseException) -> None:
        stopped = isinstance(error, (Stopped, KeyboardInterrupt))
        self._close("stopped" if stopped else "failed")

    def _close(self, status: str) -> None:
        if not self._broken:
            self._try(lambda: self.close(status))
        else:
            with contextlib.suppress(Exception):  # what has failed before may well fail again
                self.close(status)

    def _send_pictures(self, model: EmbeddingModel) -> None:
        epoch = self._lines[-1]["epoch"]
        for name, picture in pictures(self._run, self._data, model, self._lines):
            self.image(name, picture, epoch)

    def _try(self, send: Callable[[], None]) -> None:
        """Do it; a failure is a warning, once, and the run goes on without this tracker."""
        if self._broken:
            return
        try:
            send()
        except Exception as error:
            self._broken = True
            self._warn(f"the tracker {self.name} failed ({first_line(error)}); the run goes on without it")


def run_name(run: Path) -> str:
    """What a run is called: the last two folders of its path, such as ``slices/seed-0`` of an ablation."""
    return "/".join(run.absolute().parts[-2:])


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{before}{name}.")
        else:
            values[f"{before}{name}"] = value
    return values


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl``, by name. Scores are shares, 0 to 1, as in the file."""
    values: dict[str, Any] = {
        f"train/{name}": line.get(name) for name in ("loss", "full_loss", "distillation", "penalty", "lr", "images")
    }
    values |= {f"train/loss_of_learner_{k}": loss for k, loss in enumerate(line.get("learner_loss") or ())}
    values |= {f"division/{name}": line.get(name) for name in ("kept_pairs", "changed", "left_out")}
    values |= {f"division/images_of_learner_{k}": size for k, size in enumerate(line.get("sizes") or ())}
    values["division/similarity_of_learners"] = line.get("learner_similarity")
    values |= {f"validation/{score.name}": score.value for score in scores_in(line.get("validation") or {})}
    values |= {f"observed/{name}": value for name, value in (line.get("observed") or {}).items()}
    values |= {f"seconds/{name[8:]}": value for name, value in line.items() if name.startswith("seconds_")}
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and value == value}


def pictures(
    run: Path, data: Benchmark, model: EmbeddingModel, lines: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[str, Image.Image]]:
    """The pictures of a finished run, by name."""
    from divcon.runs.report.sections import best_and_worst

    files = [run / "divisions" / f"epoch_{line['epoch']:04d}.safetensors" for line in lines if line.get("redivided")]
    epochs = [line["epoch"] for line in lines if line.get("redivided")]
    divisions = [(e, Division.load(file)) for e, file in zip(epochs, files, strict=True) if file.exists()]
    divisions = [(epoch, division) for epoch, division in divisions if division.num_learners > 1]
    if divisions:
        shown = np.unique(np.linspace(0, len(divisions) - 1, min(MAX_DIVISIONS, len(divisions))).astype(int))
        if len(shown) > 1:
            yield "division/flow", flow_sheet([(f"epoch {divisions[i][0]}", divisions[i][1]) for i in shown])
        if data.train.vectors is None:
            yield "division/learners", cluster_sheet(data.train, divisions[-1][1])
    images = data.validation
    if isinstance(images, LabeledSet) and images.vectors is None and len(images):
        rows = np.arange(len(images))
        if len(rows) > MAX_SEARCHED:
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_SEARCHED])
        images = images.subset(rows)
        embeddings = model.encode(images)
        best, worst = best_and_worst(images, embeddings, count=MAX_QUERIES // 2, neighbours=5)
        examples = [
            Examples("The highest MAP@R, one query a class", [query.index for query in best]),
            Examples("The lowest MAP@R, one query a class", [query.index for query in worst]),
        ]
        examples = [example for example in examples if example.queries]
        caption = (
            f"{len(images):,} validation images of {len(images.classes):,} classes, none of which was trained on. Each "
            "query searches among all others. Green and tick: of the query's class; red and cross: of another."
        )
        sheet = {"nearest neighbours": embeddings}
        title = "Validation queries and their nearest neighbours"
        yield "validation/queries", neighbour_sheet(images, sheet, examples, title=title, caption=caption)


class TensorBoard(Tracker):
    """Event files in ``tensorboard`` of the run folder: ``tensorboard --logdir runs`` shows all runs below ``runs``."""

    name = "tensorboard"

    def open(self, run: Path, settings: dict[str, Any], identity: str | None, epochs_done: int) -> str | None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=epochs_done if identity else None)
        if identity is None:
            rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)
        self._writer.flush()
        return "tensorboard"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")

    def close(self, status: str) -> None:
        self._writer.close()


class WandB(Tracker):
    """Weights & Biases. The project is WANDB_PROJECT, or ``divcon``; without a network, set ``WANDB_MODE=offline`` and
    send the run later with ``wandb sync``. Its files are in ``wandb`` of the run folder."""

    name = "wandb"

    def open(self, run: Path, settings: dict[str, Any], identity: str | None, epochs_done: int) -> str | None:
        import wandb

        self._wandb = wandb
        options: dict[str, Any] = {} if identity is None else {"id": identity, "resume": "allow"}
        self._wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name(run),
            dir=str(run),
            config=settings,
            settings=wandb.Settings(silent=True, console="off"),
            reinit="create_new",
            **options,
        )
        return self._wandb_run.id

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        # Its own steps only rise, and a resumed epoch is logged again: the epoch is a value beside the others.
        self._wandb_run.log({"epoch": epoch, **values})

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        self._wandb_run.log({"epoch": epoch, name: self._wandb.Image(image)})

    def close(self, status: str) -> None:
        self._wandb_run.finish(exit_code=0 if status == "finished" else 1)


class MLflow(Tracker):
    """MLflow. The server is MLFLOW_TRACKING_URI (or where MLflow itself writes), the experiment MLFLOW_EXPERIMENT_NAME,
    or ``divcon``."""

    name = "mlflow"
    _LONGEST, _MOST = 6000, 100
    """Characters of a parameter, and parameters of one call, that a server takes."""

    def open(self, run: Path, settings: dict[str, Any], identity: str | None, epochs_done: int) -> str | None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if identity is not None:
            self._id = identity
            self._client.update_run(identity, status="RUNNING")
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._id = self._client.create_run(experiment_id, run_name=run_name(run)).info.run_id
        params = [Param(key, str(value)[: self._LONGEST]) for key, value in settings.items()]
        for start in range(0, len(params), self._MOST):
            self._client.log_batch(self._id, params=params[start : start + self._MOST])
        return self._id

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, epoch) for name, value in values.items()])

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        self._client.log_image(self._id, image, f"{name}.png")

    def close(self, status: str) -> None:
        ends = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._id, ends[status])


class Trackio(Tracker):
    """Trackio, which keeps runs on this machine (TRACKIO_DIR): ``trackio show --project divcon``. The project is
    TRACKIO_PROJECT, or ``divcon``."""

    name = "trackio"

    def open(self, run: Path, settings: dict[str, Any], identity: str | None, epochs_done: int) -> str | None:
        with _quiet():
            trackio: Any = importlib.import_module("trackio")

            self._trackio = trackio
            name = identity or f"{run_name(run)}-{os.urandom(3).hex()}"
            project = os.environ.get("TRACKIO_PROJECT", PROJECT)
            options: dict[str, Any] = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
            resume = "never" if identity is None else "allow"
            self._trackio_run = trackio.init(project, name=name, config=settings, resume=resume, **options)
        return name

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        with _quiet():
            self._trackio_run.log(dict(values), step=epoch)

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        with _quiet():
            self._trackio_run.log({name: self._trackio.Image(image)}, step=epoch)

    def close(self, status: str) -> None:
        with _quiet():
            self._trackio_run.finish()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what is printed inside: a run's output is its own."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):  # noqa: PTH123
        yield


TRACKERS: dict[str, type[Any]] = {kind.name: kind for kind in (TensorBoard, WandB, MLflow, Trackio)}
"""The trackers by name."""


def created(callbacks: Iterable[str | Callback], warn: Callable[[str], None]) -> list[Callback]:
    """The callbacks, with trackers for their names.

    Raises:
        ConfigError: a name of one's own is no class of a callback.
    """
    objects: list[Callback] = []
    for callback in callbacks:
        if isinstance(callback, str):
            kind = TRACKERS[callback] if callback in TRACKERS else load_part(callback, "tracker")
            made = kind() if isinstance(kind, type) else kind
            if not isinstance(made, Callback):
                raise ConfigError(f"tracker {callback!r}: is no divcon.runs.callbacks.Callback", field="tracker")
            if isinstance(made, Tracker) and callback not in TRACKERS:
                made.name = callback
            callback = made
        if isinstance(callback, Tracker):
            callback._warn = warn
        objects.append(callback)
    return objects
