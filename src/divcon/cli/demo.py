"""``divcon demo``."""

from __future__ import annotations

from pathlib import Path

from divcon.cli.app import Workers, app, console, notes


@app.command
def demo(*, out: Path = Path("divcon-demo"), epochs: int = 8, seed: int = 0, workers: Workers = 1) -> None:
    """Train one metric, and divide and conquer, on the bundled icons; compare them on classes never seen. Minutes on a
    laptop, no network.

    Parameters
    ----------
    out
        The folder that gets both runs and the pictures.
    epochs
        Epochs of each method.
    seed
        Decides everything random.
    """
    from divcon.experiments.demo import demo as run_demo
    from divcon.experiments.demo import print_scores

    try:
        result = run_demo(out, epochs=epochs, seed=seed, workers=workers, notes=notes)
    except KeyboardInterrupt:
        notes.print("stopped; the same command goes on from here")
        raise SystemExit(130) from None
    print_scores(result, out, console)
