"""The example notebook runs from top to bottom, on packaged data, as a reader would run it."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MISSING = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.packaged
@pytest.mark.skipif(bool(MISSING), reason=f"fedpft[dev] is not installed: no {', '.join(MISSING)}")
# Of Jupyter's own code, about its event loop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_example_notebook_tunes_a_model_that_knows_its_sections(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "bbc_news.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "it is kept without outputs"
    client = NotebookClient(notebook, timeout=540, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    answers = [output for output in outputs if output["output_type"] == "execute_result"]
    results = [answer["data"]["text/plain"] for answer in answers]
    assert results[-1] == "['sports', 'business']"
    assert "Phase.FINISHED" in results[-2]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert (tmp_path / "bbc-run" / "run" / "run.sqlite").is_file()
