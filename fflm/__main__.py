"""The command as a module: ``python -m fflm ...`` is ``fflm ...``."""

from fflm.cli import main

if __name__ == "__main__":
    main()
