"""Train by every launcher, on two nodes with one folder or a folder each; kill, stop and shrink it; print the outcomes.

    python benchmarks/launchers.py [--only WORD] [--keep FOLDER]

The nodes are two working directories of this machine, which meet on the loopback interface; the data is 600 vectors.
docs/launchers.md has the table that this prints, in ten minutes on two cores. Rows of launchers that are not installed
say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

SETTINGS = ["--learners", "4", "--dim", "12", "--batch-size", "16", "--epochs", "8", "--redivide-every", "2"]
SETTINGS += [
    "--learners-per-step",
    "2",
    "--workers",
    "0",
    "--checkpoint-minutes",
    "0.001",
    "--validation-fraction",
    "0.2",
]
TRAIN = ["train", "data.parquet", "--out", "run", *SETTINGS]
MODULE = [sys.executable, "-m", "divcon"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SCRIPT = """
import os, sys, divcon as dc
from divcon.config.settings import DataConfig, ModelConfig

def train(folder):
    os.chdir(folder)
    model = ModelConfig(num_learners=4, embedding_dim=12)
    options = dict(batch_size=16, epochs=8, redivide_every=2, learners_per_step=2, workers=0, device="cpu")
    config = dc.RunConfig(model, dc.TrainConfig(**options), DataConfig(validation_fraction=0.2))
    dc.run("data.parquet", "run", config)
"""
INITIALISED = (
    SCRIPT
    + """
import torch.distributed as dist
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
train(folder)
assert dist.is_initialized()
dist.destroy_process_group()
"""
)
ACCELERATE = (
    SCRIPT
    + """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
train(sys.argv[1 + accelerator.process_index])
"""
)
RAY = (
    SCRIPT
    + """
import ray
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer

def each(folders):
    train(folders["folders"][get_context().get_world_rank()])

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
trainer = TorchTrainer(each, train_loop_config={"folders": sys.argv[1:3]}, scaling_config=ScalingConfig(num_workers=2),
                       run_config=RunConfig(storage_path=sys.argv[3]))
trainer.fit()
"""
)


class Place:
    """Two nodes, each with a working directory and the data in it; or with one directory."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self.nodes = [folder / "one", folder / ("one" if shared else "two")]
        self.shared = shared
        self.processes: list[subprocess.Popen[str]] = []
        for node in set(self.nodes):
            node.mkdir(parents=True)
            write_data(node / "data.parquet")
        self.run = self.nodes[0] / "run"

    def start(self, node: int, command: list[str], **variables: object) -> subprocess.Popen[str]:
        log = (self.nodes[node].parent / f"{len(self.processes)}.log").open("w+")
        process = subprocess.Popen(
            command, cwd=self.nodes[node], env=environment(**variables), stdout=log, stderr=log, text=True
        )
        process.log = log  # type: ignore[attr-defined]
        self.processes.append(process)
        return process

    def text(self) -> str:
        texts = []
        for process in self.processes:
            process.log.seek(0)  # type: ignore[attr-defined]
            texts.append(process.log.read())  # type: ignore[attr-defined]
        return "\n".join(texts)

    def ended(self, seconds: float = 600) -> list[int]:
        """The exit codes, once all have ended."""
        until = time.monotonic() + seconds
        try:
            return [process.wait(max(1.0, until - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:
                process.kill()
            raise AssertionError(f"still runs after {seconds:.0f} s:\n{self.text()}") from None

    def in_the_middle(self) -> None:
        """Wait until two epochs are done."""
        lines = self.run / "metrics.jsonl"
        until = time.monotonic() + 300
        while not (lines.exists() and lines.read_bytes().count(b"\n") >= 2):
            assert time.monotonic() < until and all(process.poll() is None for process in self.processes), self.text()
            time.sleep(0.02)


def write_data(path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 10)
    vectors = rng.normal(size=(60, 32))[labels] + 1.5 * rng.normal(size=(600, 32))
    names = [f"class {label:02}" for label in labels]
    pq.write_table(pa.table({"embedding": list(vectors.astype(np.float32)), "label": names}), path)


def environment(**variables: object) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHERS and "SLURM" not in name}
    return {**clean, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **{k: str(v) for k, v in variables.items()}}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ranks(place: Place, *more: str, command: list[str] | None = None, **variables: object) -> None:
    """Two processes that know of each other by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT alone."""
    port = free_port()
    for rank in range(2):
        meeting = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place.start(rank, [*MODULE, *(command or TRAIN), *more], **meeting, **variables)


def agents(place: Place, *options: str, nodes: str = "2", **variables: object) -> None:
    """torchrun on both nodes."""
    meeting = [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-backend=c10d", "--rdzv-id=benchmark"]
    for node in range(2):
        command = [*TORCHRUN, f"--nnodes={nodes}", "--nproc-per-node=1", *meeting, *options, "-m", "divcon", *TRAIN]
        place.start(node, command, **variables)
        if node == 0:
            time.sleep(2)  # so that rank 0, which writes, is on the first node


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The ranks that a process has spawned."""
    return [pid for pid in children(process) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def script(place: Place, text: str) -> str:
    path = place.nodes[0].parent / "script.py"
    path.write_text(text)
    return str(path)


class Table:
    def __init__(self, folder: Path, only: str) -> None:
        self.folder, self.only = folder, only
        self.rows: list[tuple[str, str, str, str]] = []
        self.reference: Path | None = None

    def row(
        self, launcher: str, event: str, begin: Callable[[Place], str | None], *, shared: bool | None = False
    ) -> None:
        """Run one case. ``begin`` returns what to say of it beside whether the run is that of ``--devices 2``."""
        if self.reference is not None and self.only not in f"{launcher}, {event}":
            return
        folders = {True: "one", False: "each its own", None: "one machine"}[shared]
        place = Place(self.folder / str(len(self.rows)), shared=shared is not False)
        started = time.monotonic()
        try:
            said = begin(place)
            outcome = said if said and said.startswith(("refused", "not ")) else self.compared(place, said)
        except AssertionError as error:
            outcome = f"FAILED: {error}"
        for process in place.processes:
            process.kill()
        if self.reference is None:
            self.reference = place.run
        self.rows.append((launcher, folders, event, outcome))
        print(f"| {launcher} | {folders} | {event} | {outcome} |", flush=True)
        print(f"  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    def compared(self, place: Place, said: str | None) -> str:
        assert (place.run / "report.html").exists(), place.text()
        if not place.shared:
            left = sorted(path.name for path in place.nodes[1].iterdir())
            assert left == ["data.parquet"], f"the second node has {left}"
        said = f"{said}; " if said else ""
        if self.reference is None:
            return "trains"
        mine, theirs = (load_file(run / "last" / "model.safetensors") for run in (place.run, self.reference))
        if all((mine[name] == theirs[name]).all() for name in theirs):
            return f"{said}the same weights, bit for bit"
        losses = [
            [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in (place.run, self.reference)
        ]
        apart = float(np.abs(np.subtract(*losses) / losses[1]).max())
        assert apart < 0.01, f"losses differ by {apart:.2g}"
        return f"{said}the same losses to {apart:.1g}"


def finished(place: Place) -> None:
    codes = place.ended()
    assert not any(codes), f"exit codes {codes}:\n{place.text()}"
    place.processes.clear()


def resumed(place: Place) -> None:
    place.processes.clear()
    ranks(place, command=["train", "data.parquet", "--out", "run", "--resume"])
    finished(place)


def devices(place: Place) -> None:
    place.start(0, [*MODULE, *TRAIN, "--devices", "2"])
    finished(place)


def stopped_other(place: Place) -> str:
    process = place.start(0, [*MODULE, *TRAIN, "--devices", "2"])
    place.in_the_middle()
    os.kill(workers(process)[0], signal.SIGTERM)
    assert place.ended(60) == [143], place.text()
    place.processes.clear()
    place.start(0, [*MODULE, "train", "--out", "run", "--resume"])
    finished(place)
    return "exits with 143; resumed"


def by_torchrun(place: Place) -> None:
    place.start(0, [*TORCHRUN, "--standalone", "--nproc-per-node=2", "-m", "divcon", *TRAIN])
    finished(place)


def by_agents(place: Place) -> None:
    agents(place)
    finished(place)


def by_srun_torchrun(place: Place) -> None:
    agents(place, SLURM_JOB_ID=1, SLURM_NTASKS=2, SLURM_STEP_NUM_TASKS=1, SLURM_PROCID=0)
    finished(place)


def by_srun_alone(place: Place) -> str:
    for task in range(2):
        variables = {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 2, "SLURM_STEP_NUM_TASKS": 2, "SLURM_PROCID": task}
        place.start(task, [*MODULE, *TRAIN], **variables)
    codes, text = place.ended(), place.text()
    assert codes == [2, 2] and "srun --ntasks-per-node=1 torchrun" in text and not place.run.exists(), text
    return "refused, with the command to use"


def by_srun_variables(place: Place) -> None:
    ranks(place, SLURM_JOB_ID=1, SLURM_NTASKS=2, SLURM_STEP_NUM_TASKS=2)
    finished(place)


def by_variables(place: Place) -> None:
    ranks(place)
    finished(place)


def stopped(rank: int) -> Callable[[Place], str]:
    def begin(place: Place) -> str:
        ranks(place)
        place.in_the_middle()
        place.processes[rank].terminate()
        codes = place.ended(60)
        assert codes == [143, 143] and "stopped " in place.text(), f"{codes}\n{place.text()}"
        resumed(place)
        return "both exit with 143; resumed"

    return begin


def killed(rank: int) -> Callable[[Place], str]:
    def begin(place: Place) -> str:
        ranks(place)
        place.in_the_middle()
        place.processes[rank].kill()
        codes = place.ended(60)
        assert codes[1 - rank] == 2 and "another process of the group ended" in place.text(), place.text()
        resumed(place)
        return "the other ends with a message; resumed"

    return begin


def frozen(place: Place) -> str:
    ranks(place)
    place.in_the_middle()
    place.processes[1].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    assert place.processes[0].wait(300) == 1, place.text()
    seconds = time.monotonic() - since
    place.processes[1].kill()
    assert "has given no sign of life" in place.text(), place.text()
    resumed(place)
    return f"the other ends after {seconds:.0f} s with a message; resumed"


def restarted(place: Place) -> str:
    agents(place, "--max-restarts=2")
    place.in_the_middle()
    os.kill(children(place.processes[1])[0], signal.SIGKILL)
    finished(place)
    return "torchrun starts both again, which resume by themselves"


def shrunk(place: Place) -> str:
    agents(place, "--max-restarts=2", nodes="1:2")
    place.in_the_middle()
    lost = place.processes.pop()
    for pid in children(lost):
        os.kill(pid, signal.SIGKILL)
    lost.kill()
    finished(place)
    return "the first node goes on alone"


def preempted(place: Place) -> str:
    agents(place)
    place.in_the_middle()
    for process in place.processes:
        process.terminate()
    place.ended(90)
    assert "stopped " in place.text(), place.text()
    resumed(place)
    return "stops with a checkpoint; resumed"


def initialised(place: Place) -> None:
    path, port = script(place, INITIALISED), free_port()
    for rank in range(2):
        place.start(rank, [sys.executable, path, str(rank), str(port), str(place.nodes[rank])])
    finished(place)


def by_accelerate(place: Place) -> str | None:
    if importlib.util.find_spec("accelerate") is None:
        return "not run: accelerate is not installed"
    path = script(place, ACCELERATE)
    place.start(0, [*TORCHRUN, "--standalone", "--nproc-per-node=2", path, *map(str, place.nodes)])
    finished(place)
    return None


def by_ray(place: Place) -> str | None:
    try:
        import ray.train.torch  # noqa: F401
    except ImportError:
        return "not run: ray[train] is not installed"
    storage = place.nodes[0].parent / "ray"
    path = script(place, RAY)
    place.start(0, [sys.executable, path, *map(str, place.nodes), str(storage)], RAY_DISABLE_IMPORT_WARNING=1)
    finished(place)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="the rows with this text")
    parser.add_argument("--keep", type=Path, help="a folder for the runs and their logs, which stay")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="divcon-launchers-"))
    table = Table(folder, options.only)
    print("| launcher | folders | what happens | outcome |\n|---|---|---|---|")
    row = table.row
    row("`--devices 2`", "nothing", devices, shared=None)
    row("`--devices 2`", "SIGTERM to the other process", stopped_other, shared=None)
    row("torchrun, one machine", "nothing", by_torchrun, shared=None)
    row("torchrun on two nodes", "nothing", by_agents)
    row("torchrun on two nodes", "nothing", by_agents, shared=True)
    row("torchrun on two nodes", "a process is killed, `--max-restarts`", restarted)
    row("torchrun on two nodes", "SIGTERM to both, as of a preemption", preempted)
    row("torchrun, `--nnodes 1:2`", "a node is lost", shrunk)
    row("SLURM: `srun torchrun`", "nothing", by_srun_torchrun)
    row("SLURM: `srun divcon`", "nothing", by_srun_alone)
    row("SLURM: `srun` with RANK, WORLD_SIZE, MASTER_*", "nothing", by_srun_variables)
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "nothing", by_variables)
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "nothing", by_variables, shared=True)
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "SIGTERM to rank 0", stopped(0))
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "SIGTERM to rank 1", stopped(1))
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "rank 0 is killed", killed(0))
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "rank 1 is killed", killed(1))
    row("RANK, WORLD_SIZE, MASTER_* (env://)", "rank 1 is frozen, as a machine that is gone", frozen)
    row("a process group of your own script", "nothing", initialised)
    row("Accelerate, by torchrun", "nothing", by_accelerate)
    row("Ray Train (`TorchTrainer`)", "nothing", by_ray)
    if options.keep is None:
        shutil.rmtree(folder)
    sys.exit(any("FAILED" in outcome for *_, outcome in table.rows))


if __name__ == "__main__":
    main()
