"""Processor time of the commands, from start to end: mistakes, help, look-ups and searches.

    python benchmarks/commands.py
    python benchmarks/commands.py --src before=../divcon-0.1/src --src now=src

The seconds are those of the processor, user and system together, which a busy machine changes less than the time on the
clock. Each is the best of `--runs`; the commands take turns, and so does ``import torch``, to which they are compared:
the machine's speed, and where Python and its packages lie, change both alike. Several `--src`, each a checkout's folder
of the package, are timed side by side, each with a run and an index of its own.

The index holds 200 of the bundled icons, embedded at 64 pixels by EfficientNet-Lite0 with random weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

NUMBER = 200
TORCH = "import torch"
COMMANDS = {
    TORCH: "-c import torch",
    "import divcon": "-c import divcon",
    "divcon --help": "--help",
    "divcon train --help": "train --help",
    "divcon train /nope --out new": "train /nope --out {new}",
    "divcon train photos --out new --backbone rensnet50": "train {photos} --out {new} --backbone rensnet50",
    "divcon train photos --out new --loss TripletLoss": "train {photos} --out {new} --loss TripletLoss",
    "divcon evaluate /nope": "evaluate /nope",
    "divcon evaluate run /nope": "evaluate {run} /nope",
    "divcon compare /nope /nowhere": "compare /nope /nowhere",
    "divcon report /nope": "report /nope",
    "divcon export /nope --out model.onnx": "export /nope --out {new}.onnx",
    "divcon prune /nope --dims 8 --out new": "prune /nope --dims 8 --out {new}",
    "divcon features /nope --out v.parquet": "features /nope --out {new}.parquet",
    "divcon pack /nope --out new": "pack /nope --out {new}",
    "divcon check /nope": "check /nope",
    "divcon index /nope photos": "index /nope {photos}",
    "divcon index run": "index {run}",
    "divcon serve /nope": "serve /nope",
    "divcon search /nope query.png": "search /nope {query}",
    "divcon search run --k 0 query.png": "search {run} {query} --k 0",
    "divcon index --info run": "index --info {run}",
    "divcon search run INDEXED.png": "search {run} {indexed}",
    "divcon search run query.png": "search {run} {query}",
}


def write_photos(folder: Path, environment: dict[str, str], python: str) -> None:
    """Some of the bundled icons as files, in a folder for each class, and one beside them that is not indexed."""
    program = (
        "import io, sys, divcon, pathlib; from PIL import Image\n"
        "images, root = divcon.read('demo').train, pathlib.Path(sys.argv[1])\n"
        f"for i in range({NUMBER + 1}):\n"
        "    name = images.label_name(i) if i else 'query'\n"
        "    path = root / 'photos' / name / f'{i}.png' if i else root / 'query.png'\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    Image.open(io.BytesIO(images.content(i))).convert('RGB').save(path)\n"
    )
    subprocess.run([python, "-c", program, str(folder)], env=environment, check=True)


def seconds(words: list[str], environment: dict[str, str]) -> tuple[float, int, str]:
    """The processor time of a process and of those that it starts, its exit code, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    time = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time, done.returncode, done.stdout + done.stderr


def prepare(folder: Path, environment: dict[str, str], python: str) -> dict[str, str]:
    """The paths that the commands name: photos, a run that is trained on them, and an index in it."""
    write_photos(folder, environment, python)
    photos, run = folder / "photos", folder / "run"
    settings = "--backbone tf_efficientnet_lite0 --no-pretrained --size 64 --epochs 1 --workers 0 --no-validation"
    for words in (f"train {photos} --out {run} {settings}", f"index {run} {photos} --workers 0"):
        subprocess.run([python, "-m", "divcon", *words.split()], env=environment, check=True, capture_output=True)
    indexed = next(photos.rglob("*.png"))
    paths = {"photos": photos, "run": run, "indexed": indexed, "query": folder / "query.png", "new": folder / "new"}
    return {name: str(path) for name, path in paths.items()}


def table(best: dict[str, dict[str, float]]) -> str:
    """The seconds of each command by source, and their ratio to those of ``import torch``, as Markdown."""
    sources = list(best)
    lines = [
        "| command | " + " | ".join(f"{name}, s | {name} / import torch" for name in sources) + " |",
        "|---|" + "---|" * 2 * len(sources),
    ]
    for command in COMMANDS:
        cells = (f"{of[command]:.2f} | {of[command] / of[TORCH]:.2f}" for of in best.values())
        lines.append(f"| `{command}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = f"now={Path(__file__).parent.parent / 'src'}"
    parser.add_argument("--src", action="append", help="NAME=FOLDER of a package to time; repeat it for several")
    parser.add_argument("--python", default=sys.executable, help="the interpreter, with divcon's dependencies")
    parser.add_argument("--runs", type=int, default=5, help="of each command, the best of which counts")
    options = parser.parse_args()
    sources = dict(word.split("=", 1) for word in options.src or [own])
    best: dict[str, dict[str, float]] = {name: {} for name in sources}
    with tempfile.TemporaryDirectory() as scratch:
        environments, paths = {}, {}
        for name, source in sources.items():
            environments[name] = {**os.environ, "PYTHONPATH": str(Path(source).absolute())}
            folder = Path(scratch, name)
            folder.mkdir()
            paths[name] = prepare(folder, environments[name], options.python)
        for turn in range(options.runs):
            print(f"turn {turn + 1} of {options.runs}", file=sys.stderr)
            for command, words in COMMANDS.items():
                for name in sources:
                    if words.startswith("-c "):
                        arguments = ["-c", words.removeprefix("-c ")]
                    else:
                        arguments = ["-m", "divcon", *words.format(**paths[name]).split()]
                    took, code, said = seconds([options.python, *arguments], environments[name])
                    if code not in (0, 2):
                        sys.exit(f"{command}: exit code {code}\n{said}")
                    best[name][command] = min(took, best[name].get(command, took))
    print(f"Processor seconds, best of {options.runs}; Python {sys.version.split()[0]}\n\n{table(best)}")


if __name__ == "__main__":
    main()
