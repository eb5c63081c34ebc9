"""``python -m divcon``, as ``torchrun -m divcon`` needs it."""

from __future__ import annotations

from divcon.cli import main

if __name__ == "__main__":
    main()
