"""The house: what is public, what may import what, how long files are, what the repository must not name."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import divcon as dc

ROOT = Path(__file__).parent.parent


def test_public_names_are_pinned() -> None:
    assert sorted(dc.__all__, key=str.casefold) == [
        "ablate",
        "Benchmark",
        "compare",
        "Context",
        "DataConfig",
        "DivconError",
        "divide",
        "DivideAndConquer",
        "Division",
        "draw_map",
        "EmbeddingModel",
        "encode",
        "evaluate",
        "export",
        "ImageSet",
        "Index",
        "LabeledSet",
        "ModelConfig",
        "pack",
        "prune",
        "read",
        "report",
        "reproduce",
        "retrieval_metrics",
        "run",
        "RunConfig",
        "train",
        "TrainConfig",
    ]
    for name in dc.__all__:
        assert callable(getattr(dc, name)), name


@pytest.mark.heavy
def test_functions_are_functions_and_modules_are_modules() -> None:
    import divcon.exports
    import divcon.runs.report

    for name in (
        "ablate",
        "compare",
        "divide",
        "evaluate",
        "export",
        "pack",
        "prune",
        "read",
        "report",
        "run",
        "train",
    ):
        assert inspect.isfunction(getattr(dc, name)), name
    assert not inspect.isgeneratorfunction(dc.train)  # it checks its arguments at the call
    assert not callable(divcon.exports) and not callable(divcon.runs.report)
    code = "import divcon as dc, divcon.runs.run, divcon.exports.onnx; assert callable(dc.run) and callable(dc.export)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rooms_import_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_nothing_lies_loose_at_the_top() -> None:
    at_the_top = {path.name for path in (ROOT / "src" / "divcon").iterdir() if path.is_file()}
    assert at_the_top == {"__init__.py", "__main__.py", "errors.py", "py.typed"}


def test_every_public_function_says_what_it_does() -> None:
    import importlib
    import pkgutil

    missing = []
    for module in pkgutil.walk_packages(dc.__path__, "divcon."):
        loaded = importlib.import_module(module.name)
        missing += [] if loaded.__doc__ else [module.name]
        for name, value in vars(loaded).items():
            own = getattr(value, "__module__", None) == module.name
            if own and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                missing += [] if inspect.getdoc(value) else [f"{module.name}.{name}"]
    assert not missing


def test_the_repository_names_no_registry_and_no_machine() -> None:
    wrong = re.compile(r"index-url|https?://(pypi|files\.pythonhosted|registry\.npmjs)|[ \"'=(]/(root|home|work|opt)/")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in tracked()
        if path.suffix in {".py", ".toml", ".md", ".yml", ".txt", ""} and path.name != Path(__file__).name
        for line in path.read_text(errors="ignore").splitlines()
        if wrong.search(line)
    ]
    assert not found
