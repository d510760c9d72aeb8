"""The example notebook runs, and is kept without what it put out."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("pandas")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def executed() -> Any:
    """The notebook after a run of all its cells, in a kernel of its own."""
    notebook = read(EXAMPLES / "search.ipynb")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")  # the bar of a build that is slow here
        warnings.simplefilter("ignore")  # of Jupyter's own libraries
        client = nbclient.NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": str(EXAMPLES)}},
        )
        asyncio.run(client.async_execute())
    return notebook


def texts(notebook: Any) -> list[str]:
    """The text of each output of a notebook, of tables the plain one."""
    return [
        output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]


def test_the_notebook_runs_and_finds_the_same_with_the_index(executed: Any) -> None:
    found = texts(executed)
    scanned, indexed = [text for text in found if "ec2ssh" in text and "0.0" in text]
    assert scanned.splitlines()[1].split()[1] == "ec2ssh"
    assert indexed.splitlines()[1].split()[1] == "ec2ssh"
    assert any("IVF_FLAT" in text and "ready" in text for text in found)
    recalls = next(text for text in found if "index_ms" in text).splitlines()[1:]
    measured = [float(line.split("}")[1].split()[0]) for line in recalls]
    assert measured == sorted(measured)
    assert measured[-1] > 0.95


def test_the_notebook_says_nothing_on_stderr(executed: Any) -> None:
    streams = [
        output
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    assert streams == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
