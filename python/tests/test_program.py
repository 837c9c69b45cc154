"""The programs of the wheel: what a shell sees of them."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import crdiff

SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command, **options):
    return subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, **options)


def test_both_programs_and_the_module_are_one():
    programs = [[SCRIPTS / "crdiff"], [sys.executable, "-m", "crdiff"]]
    said = [run(*program, "--version").stdout for program in programs]
    assert said[0] == said[1] and said[0].startswith(f"crdiff {crdiff.__version__}")
    assert run(SCRIPTS / "crdiff-compile", "-V").stdout.split() == ["crdiff-compile", crdiff.__version__]
    usage = run(SCRIPTS / "crdiff", "verify", "--help").stdout
    assert "Usage: crdiff verify" in usage


def test_exit_codes(unet, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("version: 1\nrules: [{ bypass: mid_block.attentions.0 }]\n")
    output = tmp_path / "out.onnx"
    assert run(SCRIPTS / "crdiff-compile", unet, plan, "-o", output).returncode == 0
    verify = [SCRIPTS / "crdiff", "verify", unet]
    assert run(*verify, output, "--plan", plan).returncode == 0
    assert run(*verify, unet, "--plan", plan).returncode == 1
    assert run(*verify, tmp_path / "nowhere.onnx", "--plan", plan).returncode == 2
    assert run(SCRIPTS / "crdiff", "verify").returncode == 2
    mistaken = run(SCRIPTS / "crdiff-compile", "verify", unet, cwd=tmp_path)
    assert mistaken.returncode == 2 and "`verify` is a command of `crdiff`" in mistaken.stderr


def test_a_reader_that_goes_away(unet):
    with subprocess.Popen([SCRIPTS / "crdiff", "print", unet], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.read(10)
        program.stdout.close()
        assert program.wait() == 0 and program.stderr.read() == b""


def test_an_interrupt_leaves_nothing(fixtures, tmp_path):
    image = tmp_path / "a.png"
    words = ["run", fixtures / "pipelines/sd15", "--dense", "--prompt", "x", "--steps", "900", "--json", "-o", image]
    program = [SCRIPTS / "crdiff", *map(os.fspath, words), "--engine", "rten"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while '"step"' not in running.stdout.readline():
            pass
        running.send_signal(signal.SIGINT)
        running.stdout.read()
    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_the_onnxruntime_of_this_python_is_found(tmp_path):
    import onnxruntime

    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV")}
    report = run(SCRIPTS / "crdiff", "doctor", "--json", env={**environment, "XDG_CACHE_HOME": os.fspath(tmp_path)})
    library = Path(json.loads(report.stdout)["library"]["path"])
    assert library.is_relative_to(Path(onnxruntime.__file__).parent)
