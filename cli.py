"""Launcher: ``python cli.py ...`` is ``fflm ...``."""

from fflm.cli import main

if __name__ == "__main__":
    main()
