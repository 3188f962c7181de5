"""The notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_stored_in_it():
    """Texts and figures may be others on other machines; which cells show something may not."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    run = nbformat.from_dict(stored)
    NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown, expected = ([bool(cell.get("outputs")) for cell in each.cells] for each in (run, stored))
    assert shown == expected
    assert any(expected)
