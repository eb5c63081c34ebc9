"""``divcon demo``."""

from __future__ import annotations

from pathlib import Path

from divcon.cli.app import TRAIN, Place, Workers, app, console, notes


@app.command(group=TRAIN)
def demo(
    *, out: Place = Path("divcon-demo"), epochs: int = 0, compare: bool = False, seed: int = 0, workers: Workers = 1
) -> None:
    """Train on the bundled icons with the default settings, and show on classes that training has not seen what it
    brings. Takes minutes on a laptop, without network.

    divcon demo

    divcon demo --compare --out runs/demo

    Parameters
    ----------
    out
        The folder for the run and the pictures.
    epochs
        Epochs of each run. 0: as many as the data give, as in train.
    compare
        Also train with four learners, at the same budget, which takes as long again.
    seed
        Seed of everything random.
    """
    from divcon.cli.messages import in_flags
    from divcon.config.settings import TrainConfig
    from divcon.runtime.files import check_folder

    TrainConfig(epochs=epochs, seed=seed)  # checks them, before PyTorch is imported
    check_folder(out)
    from divcon.experiments.demo import demo as run_demo
    from divcon.experiments.demo import print_scores

    options = {"epochs": epochs, "seed": seed, "compare": compare, "workers": workers}
    try:
        result = run_demo(out, **options, notes=notes, reword=in_flags)
    except KeyboardInterrupt:
        notes.print("stopped; run the same command again to resume")
        raise SystemExit(130) from None
    print_scores(result, out, console)
