"""Embed on Ray: a pool of actors, each with the model, to which Ray Data streams blocks of items; each block becomes a
part. A part that is computed twice, as a worker was lost, is written under the same name again: nothing is lost, and
nothing is there twice."""

from __future__ import annotations

import copy
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divcon.errors import ConfigError, DivconError, WorkerError, as_text, error_of
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.places import url_of
from divcon.runtime.ray_cluster import check_nodes, connected, is_client
from divcon.search.items import Items
from divcon.search.part_folder import PartFolder
from divcon.search.parts import Layout, PartWriter, begin_shard, commit_shard, rows_of_parts
from divcon.search.sources import ItemSource, Source, packed, unpacked
from divcon.search.update import Embedder

if TYPE_CHECKING:
    from divcon.models import EmbeddingModel

RETRIES = 3
"""How often a part is computed again where its worker died; an image that kills every worker ends the work then."""


@dataclass(frozen=True)
class Ray:
    """The engine of a Ray cluster, or of this machine.

    Args:
        address: ``auto`` (the cluster that this machine is in), ``HOST:6379`` or ``ray://HOST:10001``; None: what
            RAY_ADDRESS names, or a Ray of this machine alone, which is ended afterwards.
        actors: the most workers, each with a copy of the model; None: one for each GPU that the cluster has, or each
            CPU core where it has none. Of a cluster that grows when it has work, say how many.
    """

    address: str | None = None
    actors: int | None = None


def engine_of(engine: str | Ray | None) -> Ray | None:
    """The engine that a name stands for.

    Raises:
        ConfigError: there is no engine of this name.
    """
    if engine is None or isinstance(engine, Ray):
        return engine
    if engine != "ray":
        raise ConfigError(f"`engine` {engine}: there is ray; leave it out to embed in this process", field="engine")
    return Ray()


@dataclass(frozen=True)
class _Work:
    """What an actor needs, beside its blocks."""

    model: EmbeddingModel
    device: str
    batch_size: int
    skip: bool
    workers: int
    learner: int | None
    layout: Layout
    folder: PartFolder
    anywhere: bool
    """Whether any node may read the source; else that of the program."""


class _Begun:
    """Counts how often each part was begun: Ray gives it to another worker as often as its worker dies."""

    def __init__(self) -> None:
        self._times: Counter[int] = Counter()

    def count(self, number: int) -> int:
        self._times[number] += 1
        return self._times[number]


class _Actor:
    """Embeds blocks into parts, on one device."""

    def __init__(self, shared: list[Any]) -> None:
        import ray

        self._ray: Any = ray
        self._work: _Work = self._ray.get(shared[0])
        self._begun = shared[1]
        self._warnings: list[str] = []
        self._writer: PartWriter | None = None

    def __call__(self, blocks: dict[str, Any]) -> dict[str, list[Any]]:
        rows = [self._write(int(n), content) for n, content in zip(blocks["number"], blocks["items"], strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _write(self, number: int, content: bytes) -> dict[str, Any]:
        """A row about the part; an error goes to the driver in it, as Ray would wrap it in traces."""
        self._warnings.clear()
        if number == _FAILED:
            return {"number": number, "items": 0, "rows": 0, "kept": False, "error": content, "warnings": []}
        block = unpacked(content)
        row: dict[str, Any] = {"number": number, "items": len(block), "rows": 0, "kept": False, "error": b""}
        try:
            self._check_begun(number, block)
            written = self._loaded().write(number, block)
            row |= {"rows": written.rows, "kept": written.kept}
        except DivconError as error:
            row["error"] = _sent(error)
        except Exception as error:
            text = f"part {number}: {type(error).__name__}: {error}"
            row["error"] = _sent(WorkerError(text))
        return row | {"warnings": list(self._warnings)}

    def _check_begun(self, number: int, block: Items) -> None:
        times = 1
        with suppress(self._ray.exceptions.RayError):  # the counter's own node may be lost
            times = self._ray.get(self._begun.count.remote(number))
        if times > 1 + RETRIES:
            raise WorkerError(
                f"part {number} ({block.where(0)} to {block.where(len(block) - 1)}): {times - 1} workers died on it; "
                "memory may have run out (fewer `actors` or a smaller `batch_size` need less), or an image kills them. "
                "The parts that are done stay: run it again to go on"
            )
        if times > 1:
            self._warnings.append(f"a worker was lost; part {number} is computed again")

    def _loaded(self) -> PartWriter:
        """Once per actor, and not before its first block, so that an error is that block's."""
        if self._writer is None:
            work = self._work
            context = Context(work.workers, on_warning=self._warnings.append)
            model = work.model.to(work.device).eval()
            embedder = Embedder(model, work.batch_size, work.skip, context, work.learner)
            self._writer = PartWriter(embedder, work.layout, work.folder)
        return self._writer


def _read(_: dict[str, Any], source: Any, rows: int) -> Iterator[dict[str, list[Any]]]:
    """Read a source on the cluster, and send out each block as a row of its own."""
    import ray

    reading: Any = ray.get(source[0])
    try:
        for number, block in enumerate(reading.blocks(rows)):
            yield {"number": [number], "items": [packed(block)]}
    except DivconError as error:
        yield {"number": [_FAILED], "items": [_sent(error)]}


def _sent(error: DivconError) -> bytes:
    return as_text(error).encode()


_FAILED = -1
"""The number of a block that could not be read."""


def write_on_ray(
    model: EmbeddingModel,
    layout: Layout,
    source: Source,
    folder: PartFolder,
    engine: Ray,
    *,
    part_rows: int | None = None,
    batch_size: int = 128,
    skip: bool = False,
    workers: int = 0,
    device: str = "auto",
    learner: int | None = None,
    context: Context = DEFAULT,
) -> tuple[int, int]:
    """Embed all blocks of a source into the parts of a folder, the same as `divcon.search.parts.write_shard` writes in
    one process.

    Args:
        part_rows: items of a part; None: by their number (`divcon.search.parts.rows_of_parts`).
        workers: processes of each actor that decode images, where actors have a GPU; on the CPU each decodes itself.
        device: ``auto``: cuda where the cluster has GPUs, else cpu.

    Returns:
        The number of items embedded, and of those that were there already.

    Raises:
        ConfigError, OutputError: see `divcon.runtime.ray_cluster`.
        WorkerError: a part's worker died again and again.
        StoreError, ImageError, DataError: as `write_shard`.
    """
    total = source.count()
    rows = part_rows or rows_of_parts(total)
    folder.check()
    with connected(engine.address) as ray:
        if engine.address is not None or is_client(ray):
            check_nodes(ray, _paths_in(source), None if folder.remote else folder.address)
        number, kind = _actors(ray, engine, device)
        work = _Work(
            _portable(model),
            kind,
            batch_size,
            skip,
            _workers(ray, workers, kind),
            learner,
            layout,
            _absolute(folder),
            is_client(ray),
        )
        if not int(ray.available_resources().get("GPU" if kind == "cuda" else "CPU", 0)):
            what = "GPUs" if kind == "cuda" else "CPU cores"
            context.warn(
                f"no {what} of the Ray cluster are free; waiting for other work there to end, or for more nodes"
            )
        begin_shard(folder)
        run = _on_client if is_client(ray) else _results
        parts: set[int] = set()
        embedded = kept = done = 0
        results = run(ray, work, source, rows, number, kind)
        try:
            for result in results:
                for text in result["warnings"]:
                    context.warn(text)
                if result["error"]:
                    raise error_of(result["error"])
                if result["number"] in parts:
                    continue
                parts.add(result["number"])
                done += result["items"]
                kept += result["rows"] if result["kept"] else 0
                embedded += 0 if result["kept"] else result["rows"]
                context.progress(layout.stage, done, total)
        finally:
            results.close()
        if len(parts) != max(parts, default=-1) + 1:
            raise WorkerError(f"{folder}: of {max(parts) + 1:,} parts, {len(parts):,} were reported; run it again")
        folder.remove_left_over()
        commit_shard(folder, len(parts))
    return embedded, kept


def _results(ray: Any, work: _Work, source: Source, rows: int, actors: int, kind: str) -> Generator[dict[str, Any]]:
    """A row about each part, as they come."""
    data = ray.data
    with _settings(data.DataContext.get_current()):
        references = ray.put(work), ray.put(source)
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = strategy(ray.get_runtime_context().get_node_id(), soft=True)
        begun = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Begun).remote()
        # What this program has read may be on the disk of its node alone.
        near = {} if work.anywhere else _this_node(ray)
        blocks = data.from_items([0]).map_batches(
            _read, fn_args=([references[1]], rows), batch_size=None, num_cpus=0, resources=near
        )
        needs = {"num_gpus": 1, "num_cpus": 1 + work.workers} if kind == "cuda" else {"num_cpus": 1}
        pool = data.ActorPoolStrategy(min_size=1, max_size=actors, max_tasks_in_flight_per_actor=2)
        parts = blocks.map_batches(
            _Actor, fn_constructor_args=([references[0], begun],), batch_size=None, compute=pool, **needs
        )
        iterator = iter(parts.iter_rows())
        try:
            while True:
                try:
                    row = next(iterator)
                except StopIteration:
                    return
                except (ray.exceptions.RayError, RuntimeError) as error:
                    raise _lost(error) from None
                yield row
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
            del iterator, parts, references, begun


@contextmanager
def _settings(context: Any) -> Iterator[None]:
    """Ray Data's settings within the block."""
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": 1,  # a larger block of its data is split: each part is a task of its own
        "execution_no_progress_timeout_s": -1,  # a part of a large model may take a core hours
    }
    before = {name: getattr(context, name) for name in ours if hasattr(context, name)}
    for name in before:
        setattr(context, name, ours[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


class _Driver:
    """Runs Ray Data on the cluster for a program that is connected through ``ray://``, which Ray Data does not take."""

    def __init__(self, *arguments: Any) -> None:
        import ray

        self._rows = _results(ray, *arguments)

    def next(self) -> Any:
        """The next row; None after the last one; an error in place of a row."""
        try:
            return next(self._rows, None)
        except DivconError as error:
            return error


def _on_client(ray: Any, *arguments: Any) -> Generator[dict[str, Any]]:
    """`_results`, by an actor on the cluster."""
    driver = ray.remote(num_cpus=0)(_Driver).remote(*arguments)
    try:
        while (row := ray.get(driver.next.remote())) is not None:
            if isinstance(row, DivconError):
                raise row
            yield row
    except ray.exceptions.RayError as error:
        raise _lost(error) from None
    finally:
        ray.kill(driver)


def _lost(error: BaseException) -> WorkerError:
    """The error that ended Ray's work, by the line of its trace that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|System error): \S", line)]
    why = (named or lines or [type(error).__name__])[-1]
    return WorkerError(f"Ray ended the work ({why}); the parts that are done stay: run it again to go on")


def _actors(ray: Any, engine: Ray, device: str) -> tuple[int, str]:
    """The most actors, and where each computes."""
    if engine.actors is not None and engine.actors < 1:
        raise ConfigError(f"`actors` {engine.actors}: must be 1 or more", field="actors")
    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    kind = device if device != "auto" else "cuda" if gpus else "cpu"
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"`device` {kind}: workers of Ray compute on cuda or cpu", field="device")
    found = gpus if kind == "cuda" else cpus
    if not found and engine.actors is None:
        what = "GPU" if kind == "cuda" else "CPU core"
        raise ConfigError(
            f"the Ray cluster has no {what}; if it grows when it has work, say how many workers it may have (`actors`)",
            field="actors",
        )
    return engine.actors or found, kind


def _workers(ray: Any, workers: int, kind: str) -> int:
    """The processes that decode for an actor: not more than its share of the cores of a node."""
    if kind == "cpu":
        return 0
    shares = [
        int(node["Resources"].get("CPU", 0) // node["Resources"]["GPU"]) - 1
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    return max(0, min([workers, *shares]))


def _this_node(ray: Any) -> dict[str, float]:
    """A share of what only the node of this program has."""
    here = ray.get_runtime_context().get_node_id()
    resources = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    return {name: 0.001 for name in resources if re.fullmatch(r"node:[\d.:a-fA-F]+", name)}


def _portable(model: EmbeddingModel) -> EmbeddingModel:
    """The model on the CPU, as it is pickled for other nodes: with the modules of its own parts, which need not be
    there. (They are trusted: they are imported here.)"""
    from ray import cloudpickle  # not the package of that name, whose register Ray does not read

    from divcon.models.names import own_parts

    for name in own_parts(model.config):
        module = sys.modules.get(name.partition(":")[0])
        if module is not None and module.__name__ != "__main__":
            cloudpickle.register_pickle_by_value(module)
    return copy.deepcopy(model).cpu().eval() if model.device.type != "cpu" else model


def _absolute(folder: PartFolder) -> PartFolder:
    return folder if folder.remote else PartFolder(Path(folder.address).absolute())


def _paths_in(source: Source) -> list[str]:
    """Some of the files that every node has to read."""
    if not isinstance(source, ItemSource):
        return []
    images = source.items.images
    if images.vectors is not None:
        return []
    if images.encoded is not None:
        files = sorted({str(file) for file, _ in getattr(images.encoded, "groups", ())})
        return [file for file in files if url_of(file) is None][:3]
    places = sorted({0, len(images) // 2, len(images) - 1}) if len(images) else []
    return [str(file) for file in map(images.file, places) if url_of(file) is None]
