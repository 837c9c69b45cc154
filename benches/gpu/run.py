#!/usr/bin/env python3
"""What crdiff does on an NVIDIA GPU: numbers, copies, CUDA graphs, speed and memory. README.md says how to start it.

Each section is independent: it appends lines of JSON to OUT/results.jsonl, and goes on after a failure. With --tiny
everything runs on the CPU with small networks, to try the script out.
"""

import argparse
import threading
import traceback
from pathlib import Path

from checks import Checks
from speed import Speed

SECTIONS = (
    "machine",
    "libraries",
    "goldens",
    "exports",
    "copies",
    "shapes",
    "speed",
    "speed_fused",
    "memory",
    "speed_more",
)
FULL_SIZE = {"speed", "speed_fused", "memory", "speed_more"}


class Bench(Checks, Speed):
    """All sections."""

    def run(self):
        chosen = [name for name in SECTIONS if not self.args.only or name in self.args.only]
        self.lay_out()
        full = FULL_SIZE & set(chosen)
        if full:
            self.start_torch()
            fusing = threading.Thread(target=self.guarded, args=("fuse",))
            fusing.start()
        for name in chosen:
            if name in full and fusing.is_alive():
                fusing.join()
            if name == "speed" and not self.args.beside:
                self.wait_for_torch()
            self.guarded(name)
        if full:
            self.wait_for_torch()
        self.tell("done")

    def guarded(self, name):
        if self.left() < 5:
            self.tell(name, name="left out: no time")
            return
        try:
            getattr(self, name)()
        except Exception:  # one section's failure is not the next one's
            self.tell(name, name="failed", said=traceback.format_exc()[-1500:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crdiff", type=Path, required=True, help="the program")
    parser.add_argument("--ort-lib", type=Path, required=True, help="folder with libonnxruntime and its providers")
    parser.add_argument("--nvidia", type=Path, help="site-packages/nvidia, where pip put CUDA and cuDNN")
    parser.add_argument("--copies", type=Path, help="copies.c, compiled, where there is no C compiler")
    parser.add_argument("--work", type=Path, required=True, help="a folder with 30 GB of room")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="these sections only")
    parser.add_argument("--cases", default=".", help="a pattern that names of golden cases must match")
    parser.add_argument("--seconds", type=float, default=540, help="for everything")
    parser.add_argument(
        "--torch-seconds", type=float, default=240, help="from the start, until which to wait for torch"
    )
    parser.add_argument("--before", type=Path, help="another build of crdiff to time")
    parser.add_argument("--beside", action="store_true", help="time crdiff while torch still compiles")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6, help="golden runs at once")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with small networks")
    args = parser.parse_args()
    args.crdiff, args.work, args.out = args.crdiff.resolve(), args.work.resolve(), args.out.resolve()
    Bench(args).run()


if __name__ == "__main__":
    main()
