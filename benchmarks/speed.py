"""All that divcon says of its speed, in one command: the table of docs/results/speed.md.

    python benchmarks/speed.py                    # about an hour on two cores
    python benchmarks/speed.py --only step --turns 3

Each part is a script that can be run alone, with its sizes as options, and says what it times; its results are
docs/results/speed-PART.json. The table is made of all parts whose results are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from turns import table

HERE = Path(__file__).parent
PARTS = {
    "evaluate": ("evaluate.py",),
    "kmeans-8": ("kmeans.py", "--clusters", "8"),
    "kmeans-32": ("kmeans.py", "--clusters", "32"),
    "step": ("step.py",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to run again")
    parser.add_argument("--turns", type=int, default=5, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/results", help="(default: docs/results)")
    options = parser.parse_args()
    for part in options.only:
        script, *sizes = PARTS[part]
        command = [sys.executable, HERE / script, *sizes, "--turns", str(options.turns)]
        subprocess.run([*command, "--json", options.out / f"speed-{part}.json"], check=True)
    sections = []
    for part, command in PARTS.items():
        path = options.out / f"speed-{part}.json"
        path.with_suffix(".md").unlink(missing_ok=True)  # one table of all
        if path.exists():
            found = json.loads(path.read_text())
            about = f"{found['title']}; {found['machine']['cores']} cores, {found['turns']} turns:"
            sections.append(f"{about}\n\n    python benchmarks/{' '.join(command)}\n\n{table(found['results'])}\n")
    (options.out / "speed.md").write_text("\n".join(sections))


if __name__ == "__main__":
    main()
