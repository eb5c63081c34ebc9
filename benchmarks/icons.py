"""One metric against divide and conquer (slices; learned masks, flat and in a hierarchy) on icons of 2,000 classes,
three seeds each, on unseen classes.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz
    python tools/icons.py package --out data/icons-2000 --classes 2000 --seed 0
    python benchmarks/icons.py data/icons-2000 --runs runs/icons-2000 --out docs/results/icons-2000.json

Twelve runs of 12 epochs (1,008 batches), about ten minutes each on two idle cores. A run that is there already is not
trained again; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import divcon as dc

METHODS: dict[str, list[object]] = {
    "single": ["--method", "single"],
    "slices": ["--method", "slices"],
    "masks": ["--method", "masks"],
    "hierarchy": ["--method", "masks", "--hierarchy"],
}
SETTINGS = {
    "--learners": 4,
    "--dim": 128,
    "--backbone": "tf_efficientnet_lite0",
    "--size": 64,
    "--epochs": 12,
    "--batch-size": 80,
    "--images-per-class": 4,
    "--lr": 1e-4,
    "--head-lr": 1e-3,
    "--weight-decay": 1e-4,
    "--full-weight": 0,
}
SCORES = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "r_precision", "map_at_r", "nmi", "ami")


def divcon(*arguments: object) -> None:
    program = "from divcon.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what `python tools/icons.py` built")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    results = []
    for seed in options.seeds:
        for method, flags in METHODS.items():
            run = options.runs / f"{method}-{seed}"
            scores = run / "scores.json"
            if not scores.exists():
                source = ["icons", options.data]
                words = [word for setting in SETTINGS.items() for word in setting]
                words += [*flags, "--seed", seed, "--no-validation", "--resume", "--out", run]
                divcon("train", *source, *words)
                divcon("evaluate", run, *source, "--parts", "--json", scores)
            result = json.loads(scores.read_text())
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            results.append(
                {
                    "method": method,
                    "seed": seed,
                    "split_hash": result["split_hash"],
                    "protocol": result["protocol"],
                    "images_seen": sum(line["images"] for line in lines),
                    "batches": sum(line["batches"] for line in lines),
                    "kept_pairs": [
                        line["kept_pairs"] for line in lines if line["redivided"] and len(line["sizes"]) > 1
                    ],
                    **{name: result[name] for name in SCORES},
                    "features_recall_at_1": result["features"]["recall_at_1"],
                }
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    untrained = untrained_features(options.data)
    content = {"settings": SETTINGS, "untrained_features": untrained, "runs": results}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(results, untrained))


def untrained_features(data: Path) -> dict[str, float]:
    """The same scores of the pooled features of the backbone pretrained on ImageNet."""
    benchmark = dc.read("icons", data)
    features = dc.EmbeddingModel("tf_efficientnet_lite0", image_size=64).features(benchmark.query)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    metrics = dc.retrieval_metrics(features, benchmark.query.labels)
    return {name: metrics[name] for name in SCORES if name in metrics}


def table(results: list[dict], untrained: dict[str, float]) -> str:
    """A row a run and the mean of each method, as Markdown, in percent."""
    names = ("recall_at_1", "recall_at_4", "r_precision", "map_at_r", "nmi")
    lines = [f"| method | seed | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]

    def row(method: str, seed: object, values: dict[str, float]) -> str:
        cells = " | ".join(f"{100 * values[name]:.1f}" if name in values else "" for name in names)
        return f"| {method} | {seed} | {cells} |"

    lines.append(row("untrained features", "", untrained))
    lines += [row(r["method"], r["seed"], r) for r in sorted(results, key=lambda r: (r["method"], r["seed"]))]
    for method in METHODS:
        of = [r for r in results if r["method"] == method]
        lines.append(row(f"**{method}**", "mean", {name: float(np.mean([r[name] for r in of])) for name in names}))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
