"""One metric against divide and conquer on vectors of icons of 2,000 classes, three seeds each, on unseen classes.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz
    python tools/icons.py package --out data/icons-2000 --classes 2000 --seed 0
    divcon features icons data/icons-2000 --backbone tf_efficientnet_lite0 --size 64 --out data/vectors-2000.parquet
    python benchmarks/vectors.py data/vectors-2000.parquet --runs runs/vectors --out docs/results/vectors-2000.json

and, for each of four losses, single against slices:

    python benchmarks/vectors.py data/vectors-2000.parquet --losses --runs runs/vectors \\
        --out docs/results/vectors-2000-losses.json

A run is less than a minute on two idle cores. One that is there already is not trained again; one that was stopped
goes on. The settings were chosen on validation classes, which were held out of the train classes; the test classes are
scored once a run, at its last epoch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from divcon.cli import main as command_line

SETTINGS = {"--learners": 4, "--dim": 128, "--epochs": 30, "--dropout": 0.3, "--full-weight": 0}
METHODS: dict[str, list[str]] = {
    "single": ["--method", "single"],
    "slices": ["--method", "slices"],
    "masks": ["--method", "masks"],
    "hierarchy": ["--method", "masks", "--hierarchy"],
}
LOSSES = ("MarginLoss", "TripletMarginLoss", "ProxyNCALoss", "NPairsLoss")
SCORES = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "r_precision", "map_at_r", "nmi", "ami")


def divcon(*arguments: object) -> None:
    try:
        command_line([str(argument) for argument in arguments])
    except SystemExit as stop:
        if stop.code:
            raise


def train_and_score(run: Path, data: Path, words: list[object]) -> dict:
    """The scores of a run on the test classes."""
    scores = run / "scores.json"
    if not scores.exists():
        divcon("train", data, *words, "--no-validation", "--resume", "--out", run)
        divcon("evaluate", run, data, "--parts", "--json", scores)
    result = json.loads(scores.read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    divided = [line for line in lines if line["redivided"] and len(line["sizes"]) > 1]
    return {
        "split_hash": result["split_hash"],
        "protocol": result["protocol"],
        "batches": sum(line["batches"] for line in lines),
        "kept_pairs": [line["kept_pairs"] for line in divided],
        **{name: result[name] for name in SCORES},
        "untrained_recall_at_1": result["features"]["recall_at_1"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what `divcon features` wrote")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="some of them alone")
    parser.add_argument("--losses", action="store_true", help=f"single and slices under {', '.join(LOSSES)}")
    options = parser.parse_args()

    methods = options.methods or (["single", "slices"] if options.losses else list(METHODS))
    results = []
    for seed in options.seeds:
        for loss in LOSSES if options.losses else LOSSES[:1]:
            for method in methods:
                words = [word for setting in SETTINGS.items() for word in setting]
                words += [*METHODS[method], "--loss", loss, "--seed", seed]
                run = options.runs / f"{method}-{loss}-{seed}"
                result = train_and_score(run, options.data, words)
                results.append({"method": method, "loss": loss, "seed": seed, **result})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"settings": SETTINGS, "runs": results}, indent=1) + "\n")
    print(table(results))


def table(results: list[dict]) -> str:
    """A row a method and loss, as Markdown, in percent: each seed's Recall@1, their mean, and other means."""
    seeds = sorted({r["seed"] for r in results})
    columns = ["method", "loss", *(f"seed {seed}" for seed in seeds), "**Recall@1**", "R-precision", "MAP@R"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    untrained = f"**{100 * results[0]['untrained_recall_at_1']:.1f}**"
    lines.append(f"| untrained vectors | {'| ' * (1 + len(seeds))}| {untrained} | | |")
    for loss, method in dict.fromkeys((r["loss"], r["method"]) for r in results):
        of = {r["seed"]: r for r in results if (r["loss"], r["method"]) == (loss, method)}
        each = [f"{100 * of[seed]['recall_at_1']:.1f}" if seed in of else "" for seed in seeds]

        def mean(name: str, of: dict[int, dict] = of) -> float:
            return float(np.mean([r[name] for r in of.values()]))

        means = [f"**{100 * mean('recall_at_1'):.1f}**", *(f"{100 * mean(n):.1f}" for n in ("r_precision", "map_at_r"))]
        lines.append(f"| {' | '.join([method, loss, *each, *means])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
