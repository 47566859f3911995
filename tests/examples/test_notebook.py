"""The notebook runs from the first cell to the last, and shows what it promises."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.thorough

NOTEBOOK = Path(__file__).parents[2] / "examples" / "does_it_help.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its kernel is a process of its own, which has the package from where the tests have it.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = {
        cell.source.splitlines()[-1]: {kind for out in cell.outputs for kind in out.get("data", ())}
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert "text/html" in shown["study"]
    assert "image/png" in shown["study.plot_budget()"]
    assert "image/png" in shown["study.plot_curves()"]
    assert "text/html" in shown['study.to_pandas("curvature")']
    assert (tmp_path / "diabetes.html").stat().st_size > 1_000_000
    assert "".join(notebook.cells[-1].outputs[-1].data["text/plain"]) == "True"
