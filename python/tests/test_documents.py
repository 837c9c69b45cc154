"""The Python of the documents and of the example notebook, run."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(document):
    """The blocks that are to be run, in one namespace, with their places."""
    lines = (ROOT / document).read_text().splitlines()
    for index, line in enumerate(lines):
        if line == "```python" and not lines[index - 1].startswith("<!-- not run"):
            end = lines.index("```", index)
            # As many lines before it as in the document, so that tracebacks point there.
            yield "\n" * (index + 1) + "\n".join(lines[index + 1 : end])


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with what the documents name."""
    shutil.copy(ROOT / "fixtures/sd15/torchscript/unet.onnx", tmp_path)
    shutil.copy(ROOT / "configs/crdiff-0.2.yaml", tmp_path / "plan.yaml")
    shutil.copytree(ROOT / "fixtures/pipelines/sd15", tmp_path / "sd15-onnx")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("document, least", [("docs/python.md", 5), ("README.md", 1)])
def test_documents(workshop, document, least):
    namespace, ran = {}, 0
    for block in blocks(document):
        exec(compile(block, ROOT / document, "exec"), namespace)
        ran += 1
    assert ran >= least


def test_the_notebook(monkeypatch):
    path = ROOT / "examples/notebook.ipynb"
    monkeypatch.chdir(path.parent)
    namespace, shown = {}, []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        *statements, last = re.split(r"\n(?=\S)", source)
        try:
            value = compile(last, path, "eval")
        except SyntaxError:
            exec(compile(source, path, "exec"), namespace)
            continue
        exec(compile("\n".join(statements), path, "exec"), namespace)
        shown.append(eval(value, namespace))
    assert sum(hasattr(value, "_repr_html_") for value in shown) >= 2
    assert any(hasattr(value, "_repr_png_") for value in shown)
