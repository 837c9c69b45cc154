#!/usr/bin/env python3
"""Measures crdiff and its Python peers on full-size models. README.md says what, and how to get the models.

Every case is a process of its own. All cases run once in a round, so that whatever else the machine does falls on all
of them alike. The first round warms the page cache and measures memory; times are those of the others.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
PLANS = {
    "bypass": "version: 1\nrules:\n  - bypass: {block}\n",
    "crdiff": "version: 1\ncrdiff: {{ down: 0.2, mid: 0.2, up: 0.2 }}\n",
}
MIB = 1 << 20
# Peak memory over the size of the model, where a peer loads everything: it is left out where that does not fit.
LOADED = {"onnx-loaded": 1.2, "numpy-prune": 1.7, "graphsurgeon": 3.2}


def measure(command, peak_file):
    """Runs `command`; returns its wall and processor seconds and, through `peak_file` if there is one, its peak MiB."""
    if peak_file:
        # A child's peak cannot read lower than the memory of what forked it, and GNU time is smaller than Python.
        command = ["time", "--quiet", "--format=%M", "--output", peak_file, *command]
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {child.returncode}:\n{error}")
    peak = int(peak_file.read_text()) / 1024 if peak_file else None
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak}


def python_with_peers():
    """The Python of a virtual environment with requirements.txt in it, made where there is none."""
    folder = REPOSITORY / "target" / "full_size_venv"
    python = folder / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(wanted)
    return python


def available_mib():
    with open("/proc/meminfo") as info:
        return next(int(line.split()[1]) // 1024 for line in info if line.startswith("MemAvailable"))


def size_mib(model):
    """The model and what lies beside it under its name."""
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*")) / MIB


def cases(model, out, args, python):
    """(name, command) for every case; the two that are copied read what an earlier case has written."""
    def ours(plan, weights):
        path = out / f"{plan}.yaml"
        path.write_text(PLANS[plan].format(block=args.block))
        output = model.parent / f"bench-{plan}-{weights}.onnx"
        return [args.crdiff, model, path, "-o", output, "--weights", weights, "--quiet"]

    yield "crdiff-compile bypass share", ours("bypass", "share")
    yield "crdiff-compile bypass copy", ours("bypass", "copy")
    yield "crdiff-compile crdiff-0.2 share", ours("crdiff", "share")
    pruned = model.parent / "bench-crdiff-share.onnx_data"
    copied = model.parent / "bench-copied"
    yield "cat pruned bytes", ["sh", "-c", 'cat "$1" > "$2"', "sh", pruned, copied]
    verify = args.crdiff.with_name("crdiff")
    yield "crdiff verify crdiff-0.2 share", [
        verify, "verify", model, pruned.with_suffix(".onnx"), "--plan", out / "crdiff.yaml", "--quiet",
    ]
    weights = max(model.parent.glob(f"{model.name}*"), key=lambda path: path.stat().st_size)
    both = 'cat "$1" > "$3"; dd if="$2" of="$3" bs=128K count="$(stat -c %s "$1")" iflag=count_bytes status=none'
    yield "cat new and original bytes", ["sh", "-c", both, "sh", pruned, weights, os.devnull]
    yield "dd pruned bytes, flushed", ["dd", f"if={pruned}", f"of={copied}", "bs=4M", "conv=fdatasync"]
    if args.no_peers:
        return
    size = size_mib(model)
    for peer in ["onnx-headers", "onnx-ir-headers", "onnx-ir-copied", "onnx-loaded", "numpy-prune", "graphsurgeon"]:
        needed = LOADED.get(peer, 0) * size
        if needed > available_mib():
            print(f"{peer} left out: it takes about {needed:.0f} MiB, {available_mib()} are free", file=sys.stderr)
            continue
        output = model.parent / f"bench-{peer}.onnx"
        yield f"{peer} {'prune' if 'prune' in peer else 'bypass'}", [
            python, HERE / "peers.py", peer, model, output, args.block,
        ]


def run(model, args, python):
    """Measures every case on `model`; returns name -> list of runs."""
    results = {}
    out = model.parent / "bench-plans"
    out.mkdir(exist_ok=True)
    try:
        warm = [path for path in model.parent.glob(f"{model.name}*") if path.is_file()]
        for path in warm:
            with open(path, "rb", buffering=0) as file:
                while file.read(4 * MIB):
                    pass
        for round_ in range(args.repeat + 1):
            for name, command in cases(model, out, args, python):
                if args.only and not any(part in name for part in args.only):
                    continue
                slow = name.split()[0] in LOADED or name.startswith("onnx-ir-copied")
                # Minutes each: these run in as few rounds as asked for, and need no warming round.
                if slow and not 1 <= round_ <= args.slow_repeat:
                    continue
                measured = measure(command, out / "peak" if slow or round_ == 0 else None)
                print(f"{model.parent.name} {round_}: {name}: {measured['wall']:.3f} s", file=sys.stderr)
                results.setdefault(name, []).append({"round": round_, **measured})
                if slow:
                    remove_outputs(model.parent, keep="bench-crdiff-share")
    finally:
        remove_outputs(model.parent)
        shutil.rmtree(out)
    return results


def remove_outputs(folder, keep=None):
    for path in folder.glob("bench-*"):
        if path.is_file() and not (keep and path.name.startswith(keep)):
            path.unlink()


def summary(runs):
    timed = [run for run in runs if run["round"] > 0]
    return {
        "runs": len(timed),
        "wall_median_s": statistics.median(run["wall"] for run in timed),
        "wall_min_s": min(run["wall"] for run in timed),
        "cpu_median_s": statistics.median(run["cpu"] for run in timed),
        "peak_max_mib": max(run["peak"] for run in runs if run["peak"] is not None),
    }


def ratios(found):
    """What the targets are about."""
    def ratio(over, under, key):
        return found[over][key] / found[under][key] if over in found and under in found else None

    bypass, prune = "crdiff-compile bypass share", "crdiff-compile crdiff-0.2 share"
    peers = [name for name in ("onnx-headers bypass", "onnx-ir-headers bypass") if name in found]
    fastest = min(peers, key=lambda name: found[name]["wall_median_s"], default=None)
    return {
        "wall of the fastest peer that copies nothing / wall of bypass share": ratio(fastest, bypass, "wall_median_s"),
        "peak of graphsurgeon / peak of bypass share": ratio("graphsurgeon bypass", bypass, "peak_max_mib"),
        "wall of crdiff-0.2 share / wall of cat": ratio(prune, "cat pruned bytes", "wall_median_s"),
        "wall of crdiff-0.2 share / wall of dd, flushed": ratio(prune, "dd pruned bytes, flushed", "wall_median_s"),
        "wall of verify / wall of cat of new and original bytes": ratio(
            "crdiff verify crdiff-0.2 share", "cat new and original bytes", "wall_median_s"
        ),
        "wall of numpy-prune / wall of crdiff-0.2 share": ratio("numpy-prune prune", prune, "wall_median_s"),
    }


def table(found):
    lines = [
        "| case | wall, median s | wall, least s | processor, median s | peak MiB | runs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['wall_median_s']:.3f} | {row['wall_min_s']:.3f} | {row['cpu_median_s']:.3f} "
            f"| {row['peak_max_mib']:.0f} | {row['runs']} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="a folder with model.onnx and its data")
    parser.add_argument("--block", default="mid_block.attentions.0", help="the module to bypass [%(default)s]")
    parser.add_argument("--repeat", type=int, default=7, help="rounds that count [%(default)s]")
    parser.add_argument("--slow-repeat", type=int, default=3, help="rounds of peers that copy all weights [%(default)s]")
    parser.add_argument("--no-peers", action="store_true", help="measure crdiff, cat and dd only")
    parser.add_argument("--only", nargs="+", metavar="PART", help="measure cases only whose names contain one of these")
    parser.add_argument("--crdiff", type=Path, help="crdiff-compile, beside crdiff [built from this repository]")
    parser.add_argument("--json", type=Path, help="write every run here")
    args = parser.parse_args()
    args.slow_repeat = min(args.slow_repeat, args.repeat)
    if args.crdiff is None:
        subprocess.run(["cargo", "build", "--release", "--bins"], cwd=REPOSITORY, check=True)
        args.crdiff = REPOSITORY / "target" / "release" / "crdiff-compile"
    python = None if args.no_peers else python_with_peers()
    report = {"load_before": os.getloadavg(), "processors": os.cpu_count(), "models": {}}
    for folder in args.folder:
        model = folder.resolve() / "model.onnx"
        runs = run(model, args, python)
        found = {name: summary(of_case) for name, of_case in runs.items()}
        known = {name: value for name, value in ratios(found).items() if value is not None}
        report["models"][folder.name] = {
            "model_mib": size_mib(model), "summary": found, "ratios": known, "runs": runs,
        }
        print(f"\n## {folder.name}: {size_mib(model):.0f} MiB\n\n{table(found)}\n")
        print("\n".join(f"- {name}: {value:.1f}" for name, value in known.items()), flush=True)
    report["load_after"] = os.getloadavg()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
