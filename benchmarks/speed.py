"""What divcon's speed is beside others', in one command.

    python benchmarks/speed.py                    # everything: leave the machine alone meanwhile
    python benchmarks/speed.py --only step --turns 3

Each part is a script that can be run alone, with its sizes as options, and says what it times; its results are
speed-PART.json in the folder ``--out``, and the tables of all parts whose results are there speed.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from turns import section

HERE = Path(__file__).parent
PARTS = {
    "evaluate": ("evaluate.py",),
    "million": (
        *("evaluate.py", "--n", "1000000", "--classes", "187000", "--queries", "10000"),
        *("--only", "divcon", "faiss"),  # of so many classes k-means takes hours, and a plain topk more memory
    ),
    "decode-large": ("decode.py",),
    "decode-small": ("decode.py", "--width", "640", "--height", "480"),
    "kmeans-8": ("kmeans.py", "--clusters", "8"),
    "kmeans-32": ("kmeans.py", "--clusters", "32"),
    "step": ("step.py",),
    "embed": ("embed.py",),
    "embed-resnet": ("embed.py", "--backbone", "resnet50", "--size", "224", "--images", "320", "--turns", "5"),
}


def tables(folder: Path) -> str:
    """In Markdown, of the parts whose results are in the folder, each with its command."""
    files = {part: folder / f"speed-{part}.json" for part in PARTS}
    return "\n".join(
        f"    python benchmarks/{' '.join(PARTS[part])}\n\n{section(json.loads(path.read_text()))}"
        for part, path in files.items()
        if path.exists()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to run again")
    parser.add_argument("--turns", type=int, help="runs of each contender (default: the script's own)")
    parser.add_argument("--out", type=Path, default=Path("build"), help="(default: %(default)s)")
    options = parser.parse_args()
    for part in options.only:
        script, *sizes = PARTS[part]
        command = [sys.executable, HERE / script, *sizes]
        if options.turns:
            command += ["--turns", str(options.turns)]
        subprocess.run([*command, "--json", options.out / f"speed-{part}.json"], check=True)
    (options.out / "speed.md").write_text(tables(options.out))


if __name__ == "__main__":
    main()
