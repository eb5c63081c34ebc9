"""Coverage-guided fuzzing by atheris of what reads files: ``make fuzz-guided``.

    python tests/fuzz/guided.py --seconds 60                  # each target in turn
    python tests/fuzz/guided.py --only rows.jsonl pack.json

Each target begins with its whole file, and libFuzzer changes it so that other code of divcon's is reached. What is
neither a value nor an error of divcon's own ends the target; its file is kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports] — of the extra `fuzz`

if "--target" in sys.argv:
    with atheris.instrument_imports(include=["divcon"]):
        import mutations
else:
    import mutations

KEPT = Path("build/fuzz")


def fuzz(name: str, seconds: int) -> None:
    """One target; ends the process."""
    target = mutations.targets()[name]
    folder = Path(tempfile.mkdtemp(prefix="divcon-fuzz-"))
    whole = folder / "whole"
    whole.mkdir()
    target.write(whole / name)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes((whole / name).read_bytes())
    warnings.simplefilter("ignore")

    def attempt(content: bytes) -> None:
        tried = folder / "tried"
        shutil.copytree(whole, tried)
        try:
            (tried / name).write_bytes(content)
            target.read(tried / name)
        except mutations.EXPECTED:
            pass
        finally:
            shutil.rmtree(tried)

    KEPT.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=8192", "-timeout=120", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={KEPT}/{name}-", str(corpus)], attempt)
    atheris.Fuzz()


def main() -> None:
    names = list(mutations.targets())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="targets (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each (default: %(default)s)")
    parser.add_argument("--target", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target:
        fuzz(options.target, options.seconds)
    failed = []
    for name in options.only:
        command = [sys.executable, __file__, "--target", name, "--seconds", str(options.seconds)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        tried = [line.split()[-1] for line in result.stdout.splitlines() if "number_of_executed_units" in line]
        text = result.stdout[-3000:] if result.returncode or not tried else f"{tried[-1]} files read"
        print(f"{name}: {text}", flush=True)
        failed += [name] if result.returncode else []
    sys.exit(f"something else than an error of divcon's: {', '.join(failed)} (in {KEPT})" if failed else 0)


if __name__ == "__main__":
    main()
