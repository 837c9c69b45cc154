"""Compiling and checking: against torch's outputs, and against what the command line prints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import crdiff
import numpy as np
import onnxruntime
import pytest

BYPASS = {"version": 1, "rules": [{"bypass": "mid_block.attentions.0"}]}
PRUNE = {"version": 1, "crdiff": {"down": 0.3, "mid": 0.5, "up": 0.1}}
AT = "up_blocks.1.resnets.1"


def run(*arguments, code=0, **options):
    """Returns the output of the command line."""
    command = [sys.executable, "-m", "crdiff", *map(os.fspath, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    assert done.returncode == code, done.stderr
    return done.stderr if code == 2 else done.stdout


def case(golden, kind):
    """The first case of a kind, whose plan is a dict."""
    return next(case for case in golden.index["cases"] if case["kind"] == kind and golden.size in case["outputs"])


@pytest.mark.parametrize("kind", ["bypass", "prune"])
def test_a_compiled_model_computes_what_torch_does(mini, tmp_path, kind):
    chosen = case(mini, kind)
    output = tmp_path / "unet.onnx"
    report = crdiff.compile(mini.model, chosen["plan"], output)
    assert [written.path for written in report.outputs] == [str(output)]
    (found,) = onnxruntime.InferenceSession(output).run(None, mini.inputs())
    assert np.abs(found - mini.output(chosen["name"])).max() < 1e-4
    assert np.abs(found - mini.output("dense")).max() > 1e-3
    assert crdiff.verify(mini.model, output, chosen["plan"]).proven


def test_a_cached_model_is_two_graphs(mini, tmp_path):
    chosen = case(mini, "prune")
    plan = {**chosen["plan"], "cache": {"at": AT, "every": 3}}
    report = crdiff.compile(mini.model, plan, tmp_path / "unet.onnx", emit="cached")
    full, shallow = [written.path for written in report.outputs]
    assert [Path(path).name for path in (full, shallow)] == ["unet.full.onnx", "unet.shallow.onnx"]
    for path in (full, shallow):
        assert crdiff.verify(mini.model, path, plan).proven
        assert crdiff.verify(mini.model, path, plan, emit="cached").proven
        assert not crdiff.verify(mini.model, path, plan, emit="pruned").proven
    found, kept = onnxruntime.InferenceSession(full).run(None, mini.inputs())
    assert np.abs(found - mini.output(chosen["name"])).max() < 1e-4
    session = onnxruntime.InferenceSession(shallow)
    given = {**mini.inputs(), "cache": kept}
    (found,) = session.run(None, {entry.name: given[entry.name] for entry in session.get_inputs()})
    assert np.abs(found - mini.output(chosen["name"])).max() < 1e-4
    with pytest.raises(ValueError, match="emit"):
        crdiff.compile(mini.model, plan, emit="cached-prunned")
    with pytest.raises(ValueError, match="two files"):
        crdiff.compile(mini.model.read_bytes(), plan, emit="cached")


def test_a_plan_is_the_same_in_every_form(unet, tmp_path):
    text = "version: 1\ncrdiff: { down: 0.3, mid: 0.5, up: 0.1 }\n"
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    numpy_numbers = {**PRUNE, "crdiff": dict(PRUNE["crdiff"], down=np.float64(0.3))}
    forms = [PRUNE, text, path, str(path), json.dumps(PRUNE), crdiff.Plan.load(path), numpy_numbers]
    contents = set()
    for form in forms:
        output = tmp_path / "out.onnx"
        crdiff.compile(unet, form, output, weights="copy")
        contents.add(output.read_bytes())
    assert len(contents) == 1


def test_reports_are_the_command_lines(unet, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(PRUNE))
    output = tmp_path / "out.onnx"
    printed = run("compile", unet, plan, "-o", output, "--at", "8x8", "--report", "-")
    report = crdiff.compile(unet, plan, output, at="8x8")
    assert report.to_dict() == json.loads(printed)
    assert str(report) == run("compile", unet, plan, "-o", output, "--at", "8x8")
    assert report.graph.macs_before == report.to_dict()["graph"]["macs_before"] > 0
    assert crdiff.compile(unet, plan, output, at=(8, 8)) == report

    assert crdiff.inspect(unet).to_dict() == json.loads(run("inspect", unet, "--json"))
    assert str(crdiff.inspect(unet, filter="mid_block.**")) == run("inspect", unet, "--filter", "mid_block.**")
    assert crdiff.digest(unet) == json.loads(run("digest", unet, "--json"))
    assert crdiff.print(unet, "mid_block.**.attn1") + "\n" == run("print", unet, "--module", "mid_block.**.attn1")

    found = crdiff.diff(unet, output)
    assert not found and not found.same
    assert found.to_dict() == json.loads(run("diff", unet, output, "--json", code=1))
    assert str(found) == run("diff", unet, output, code=1)

    def timeless(report):
        report["summary"] = [pair for pair in report["summary"] if pair[0] != "time"]
        return report

    proven = crdiff.verify(unet, output, plan)
    printed = json.loads(run("verify", unet, output, "--plan", plan, "--json"))
    assert timeless(proven.to_dict()) == timeless(printed)


def test_what_is_not_the_plan_is_not_proven(unet, tmp_path):
    output = tmp_path / "out.onnx"
    crdiff.compile(unet, BYPASS, output)
    assert crdiff.verify(unet, output, BYPASS, emit="pruned")
    verdict = crdiff.verify(unet, output, PRUNE)
    assert not verdict and not verdict.proven and verdict.findings
    untouched = crdiff.verify(unet, unet, BYPASS)
    assert not untouched and "was not applied" in untouched.findings[0].message


def test_models_as_content(unet, fixtures, tmp_path):
    content = unet.read_bytes()
    report = crdiff.compile(content, BYPASS)
    assert report.outputs[0].path == "" and report.model == "model.onnx"
    crdiff.compile(unet, BYPASS, tmp_path / "out.onnx", weights="copy")
    assert report.onnx == (tmp_path / "out.onnx").read_bytes()
    assert crdiff.verify(content, report.onnx, BYPASS).proven
    assert crdiff.digest(content) == crdiff.digest(unet)
    assert crdiff.inspect(content).nodes == crdiff.inspect(unet).nodes
    assert crdiff.compile(content, BYPASS, dry_run=True).onnx is None
    compact = crdiff.compile(content, PRUNE, weights="compact").onnx
    assert b"Where" in compact and crdiff.verify(content, compact, PRUNE).proven
    with pytest.raises(ValueError, match="share"):
        crdiff.compile(content, PRUNE, weights="share")
    with pytest.raises(crdiff.ModelError, match="unet.onnx.data.*give its path"):
        crdiff.compile((fixtures / "sd15-mini/dynamo/unet.onnx").read_bytes(), BYPASS)


def test_a_plans_mistakes_have_places(unet, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("version: 1\nrules:\n  - bypass: mid_block.atentions.0\n")
    with pytest.raises(crdiff.PlanError) as caught:
        crdiff.compile(unet, plan)
    error = caught.value
    assert isinstance(error, ValueError) and not isinstance(error, crdiff.NotLegal)
    assert (error.path, error.line, error.column, error.code) == (str(plan), 3, 13, "plan::no_match")
    assert "mid_block.attentions.0" in error.help
    assert str(error) == run("compile", unet, plan, code=2).rstrip()
    assert not list(tmp_path.glob("*.pruned.onnx"))

    with pytest.raises(crdiff.PlanError) as caught:
        crdiff.compile(unet, {"version": 1, "rules": [{"bypas": "mid_block"}, {"bypass": 3}]})
    assert [problem["line"] for problem in caught.value.problems] == [5, 8]
    with pytest.raises(crdiff.PlanError, match="can't be read"):
        crdiff.compile(unet, tmp_path / "nowhere.yaml")


def test_what_cannot_be_bypassed_is_not_legal(unet):
    with pytest.raises(crdiff.NotLegal) as caught:
        crdiff.compile(unet, {"version": 1, "rules": [{"bypass": "down_blocks.0"}]})
    assert caught.value.code == "plan::illegal_bypass" and caught.value.line == 5


def test_models_that_are_none(tmp_path):
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"no model")
    for model in [path, tmp_path / "nowhere.onnx", b"no model"]:
        with pytest.raises(crdiff.ModelError) as caught:
            crdiff.inspect(model)
        assert caught.value.path is not None and caught.value.path in str(caught.value)
    with pytest.raises(TypeError):
        crdiff.inspect(3)


def test_arguments_that_mean_nothing(unet):
    for wrong in [{"emit": "prunned"}, {"weights": "all"}, {"poa_weight": "input"}, {"at": "large"}]:
        with pytest.raises(ValueError, match=next(iter(wrong)) + "|HEIGHTxWIDTH"):
            crdiff.compile(unet, BYPASS, **wrong)
    with pytest.raises(ValueError, match="no module matches"):
        crdiff.print(unet, "nothing.**")


def test_pages_for_notebooks(unet, tmp_path):
    report = crdiff.compile(unet, BYPASS, tmp_path / "out.onnx")
    run("compile", unet, tmp_path / "nowhere.yaml", code=2)
    page = report.to_html()
    assert page.startswith("<!") and "mid_block.attentions.0" in page
    shown = report._repr_html_()
    assert shown.startswith("<iframe") and "srcdoc" in shown and "<script" not in shown
    assert crdiff.inspect(unet).to_html().startswith("<!")
    assert crdiff.diff(unet, tmp_path / "out.onnx").to_html().startswith("<!")
    assert crdiff.verify(unet, tmp_path / "out.onnx", BYPASS)._repr_html_().startswith("<pre>")
    unet.unlink()
    assert report._repr_html_().startswith("<pre>")


def test_progress_and_how_it_stops(unet, tmp_path):
    heard = []
    crdiff.compile(unet, PRUNE, tmp_path / "out.onnx", weights="copy", progress=lambda *told: heard.append(told))
    assert {stage for stage, _ in heard} == {"ranking weights", "writing"} and sum(done for _, done in heard) > 0

    class Bar:
        described, total = [], 0

        def update(self, n):
            self.total += n

        def set_description(self, text):
            self.described.append(text)

    bar = Bar()
    assert crdiff.verify(unet, tmp_path / "out.onnx", PRUNE, progress=bar)
    assert bar.described == ["checking weights"] and bar.total > 0

    def refuse(stage, done):
        raise RuntimeError("enough")

    for stopped in [
        lambda: crdiff.compile(unet, PRUNE, tmp_path / "stopped.onnx", weights="copy", progress=refuse),
        lambda: crdiff.verify(unet, tmp_path / "out.onnx", PRUNE, progress=refuse),
        lambda: crdiff.diff(unet, tmp_path / "out.onnx", progress=refuse),
        lambda: crdiff.digest(unet, progress=refuse),
    ]:
        with pytest.raises(RuntimeError, match="enough"):
            stopped()
    assert not list(tmp_path.glob("stopped*"))
    # Nothing is left in a state that a later call would feel.
    assert crdiff.verify(unet, tmp_path / "out.onnx", PRUNE)

    def interrupt(stage, done):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        crdiff.compile(unet, PRUNE, tmp_path / "stopped.onnx", progress=interrupt)
    assert not list(tmp_path.glob("stopped*"))


def test_calls_from_several_threads(unet, tmp_path):
    proven = []

    def one(number):
        output = tmp_path / f"{number}.onnx"
        crdiff.compile(unet, PRUNE, output)
        proven.append(crdiff.verify(unet, output, PRUNE).proven)

    threads = [threading.Thread(target=one, args=[number]) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert proven == [True] * 4


def test_results_are_objects(unet):
    report = crdiff.compile(unet, PRUNE, dry_run=True)
    assert report.outputs == [] and report.prune[0].per_tensor[0].zeros > 0
    assert "graph" in dir(report) and "CompileReport(" in repr(report)
    report.to_dict()["prune"].clear()
    assert report.prune
    with pytest.raises(AttributeError, match="it has"):
        report.nothing
    with pytest.raises(AttributeError, match="to_dict"):
        report.model = "another"


@pytest.mark.parametrize(
    "used, without",
    [("crdiff.__main__", ["json", "logging", "re", "typing"]), ("crdiff.__all__", ["numpy", "PIL", "onnxruntime", "torch"])],
)
def test_importing_is_light(used, without):
    code = f"import sys; before = set(sys.modules); import crdiff.__main__; {used}; print({{*{without}}} & {{*sys.modules}} - before)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_names_are_those_of_the_types():
    assert {"compile", "Pipeline", "PlanError", "CompileReport"} < set(crdiff.__all__) <= set(dir(crdiff))
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        crdiff.compil


USES = """
import crdiff
import crdiff.search

report: crdiff.CompileReport = crdiff.compile("unet.onnx", {"version": 1})
proven: bool = crdiff.verify("unet.onnx", report.outputs[0].path, "plan.yaml").proven
pipe = crdiff.Pipeline("sd15-onnx", providers=["cpu"])
pipe = crdiff.Pipeline("sd15-onnx", device="gpu", provider_options={"device_id": 1}, provider_libraries={"rtx": "rtx.so"})
made: crdiff.PipelineOutput = pipe(["a", "b"], negative_prompt="c", output_type="np")
net = crdiff.Interleave("unet.onnx", engine="rten")
score: float = crdiff.search.trial("sd15-onnx", "space.yaml", {"w": 1.5}).score
error: type[ValueError] = crdiff.PlanError
"""


def test_types(tmp_path):
    """The package in mypy's strict mode, and what uses it rightly and wrongly."""
    shutil.copytree(Path(crdiff.__file__).parent, tmp_path / "crdiff", ignore=shutil.ignore_patterns("*.so", "*.dylib"))
    (tmp_path / "right.py").write_text(USES)
    wrong = [("proven: bool", "proven: str"), ('"rten"', "1"), ('"np"', '"jpeg"')]
    for number, change in enumerate(wrong):
        (tmp_path / f"wrong{number}.py").write_text(USES.replace(*change))
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10", "--ignore-missing-imports"]
    command += ["--cache-dir", os.devnull, "."]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    errors = sorted(line.partition(":")[0] for line in found.splitlines() if ": error:" in line)
    assert errors == ["wrong0.py", "wrong1.py", "wrong2.py"], found
