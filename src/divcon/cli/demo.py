"""``divcon demo``."""

from __future__ import annotations

from pathlib import Path

from divcon.cli.app import TRAIN, Workers, app, console, notes


@app.command(group=TRAIN)
def demo(*, out: Path = Path("divcon-demo"), epochs: int = 8, seed: int = 0, workers: Workers = 1) -> None:
    """Train single and slices on the bundled icons and compare them on classes that neither was trained on. Takes
    minutes on a laptop, without network.

    divcon demo

    divcon demo --out runs/demo --epochs 12

    Parameters
    ----------
    out
        The folder for both runs and the pictures.
    epochs
        Epochs of each method.
    seed
        Seed of everything random.
    """
    from divcon.experiments.demo import demo as run_demo
    from divcon.experiments.demo import print_scores

    try:
        result = run_demo(out, epochs=epochs, seed=seed, workers=workers, notes=notes)
    except KeyboardInterrupt:
        notes.print("stopped; run the same command again to resume")
        raise SystemExit(130) from None
    print_scores(result, out, console)
