"""Execute docs/tutorial.ipynb and keep what it prints and draws: `python docs/run_tutorial.py`.

It needs the extra [test]. The notebook keeps a hash of the code that made its outputs.
"""

import hashlib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIAL = Path(__file__).with_name("tutorial.ipynb")


def read() -> NotebookNode:
    return nbformat.read(TUTORIAL, as_version=4)


def executed(notebook: NotebookNode) -> NotebookNode:
    """Run all cells in a new kernel, in the folder that an editor would run them in."""
    where = {"metadata": {"path": str(TUTORIAL.parent)}}
    client = NotebookClient(notebook, timeout=600, resources=where, record_timing=False)
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # and not the patch of Python here
    notebook.metadata["executed_sha256"] = code_hash(notebook)
    return notebook


def code_hash(notebook: NotebookNode) -> str:
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


if __name__ == "__main__":
    nbformat.write(executed(read()), TUTORIAL)
