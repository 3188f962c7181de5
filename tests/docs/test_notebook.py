"""The notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "tour.ipynb"


@pytest.mark.slow
def test_notebook_runs_and_same_cells_have_output():
    """Outputs may differ between machines, but the same cells have some."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    run = nbformat.from_dict(stored)
    NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown, expected = ([bool(cell.get("outputs")) for cell in each.cells] for each in (run, stored))
    assert shown == expected
    assert any(expected)
