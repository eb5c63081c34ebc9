"""The wheel: what is in it, and that it works where it is installed; and what the source distribution adds."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.heavy
def test_the_wheel_carries_the_demo_and_installs_clean(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "divcon/data/demo/icons.parquet" in names
    assert "divcon/data/demo/ATTRIBUTION.md" in names
    assert "divcon/runs/report/report.css" in names
    assert {"divcon/maps/alone.html", "divcon/serve/page/scatter.js", "divcon/serve/page/views.css"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if "test" in name or "tools" in name or name.endswith(".pyc")]
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tools/icons.py", "tests/test_package.py", "src/divcon/__init__.py", "Makefile"} <= sources
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    program = "import divcon; print(divcon.__file__); print(len(divcon.read('demo').train))"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, number = done.stdout.split()
    assert Path(where).is_relative_to(target)
    assert int(number) > 1000
