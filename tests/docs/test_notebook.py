"""The notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "tour.ipynb"


@pytest.mark.slow
def test_notebook_runs_and_cells_have_outputs_of_same_types():
    """Outputs may differ between machines. The progress of training is one output, which is updated."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    run = nbformat.from_dict(stored)
    NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown, expected = ([[each.output_type for each in cell.get("outputs", [])] for cell in book.cells] for book in (run, stored))
    assert shown == expected
    assert ["display_data", "execute_result"] in expected
