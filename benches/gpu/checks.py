"""Sections about what comes out: libraries, numbers, exports, copies, images."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from base import EXACT, FIXTURES, GRAPHS, HERE, Base, fit_text


class Checks(Base):
    def machine(self):
        ask = "name,driver_version,memory.total,memory.used,compute_cap,clocks.max.sm"
        _, smi, err, _ = self.call(["nvidia-smi", f"--query-gpu={ask}", "--format=csv"], 20)
        versions = {}
        for module in ("torch", "diffusers", "onnx", "onnxruntime", "transformers"):
            try:
                versions[module] = __import__(module).__version__
            except Exception as error:  # whatever an import may raise: it is what is reported
                versions[module] = repr(error)
        _, version, _, _ = self.call([self.args.crdiff, "--version"])
        wheels = (
            sorted(path.name for path in self.args.nvidia.parent.glob("nvidia_*.dist-info"))
            if self.args.nvidia
            else []
        )
        self.tell("machine", smi=smi or err, versions=versions, crdiff=version.strip(), wheels=wheels)

    def libraries(self):
        """What `doctor` says with no CUDA libraries to be found, with pip's wheels beside, and with a search path."""
        folders = sorted(self.args.nvidia.glob("*/lib")) if self.args.nvidia else []
        cases = {
            "library alone": (self.work / "alone", []),
            "pip's wheels beside it": (self.library(), []),
            "LD_LIBRARY_PATH": (self.work / "alone", folders),
        }
        works = {}
        for name, (library, path) in cases.items():
            status, out, err, seconds = self.call(
                [self.args.crdiff, "doctor", "--json", "--ort-lib", library], 60, self.search(path)
            )
            try:
                providers = {row["provider"]: row for row in json.loads(out)["providers"]}
                works[name] = providers["cuda"]["works"]
            except (ValueError, KeyError) as error:
                providers = f"{error!r}: {out}{err}"
            self.tell("libraries", name=name, status=status, seconds=seconds, providers=providers)
        self.search()
        if not works.get("pip's wheels beside it"):
            self.search(folders)

    def goldens(self):
        """diffusers' own latents against those of the device loop."""
        jobs = []
        for name in ("sd15", "sdxl", "lcm", "shapes"):
            folder = self.pipeline(name)
            golden = (
                FIXTURES / "shapes/pipeline" if name == "shapes" else FIXTURES / f"pipelines/{name}"
            ) / "golden"
            index = json.loads((golden / "index.json").read_text())
            expected = np.load(golden / "golden.npz")
            pruned = folder / "unet/pruned.onnx"
            self.compile(
                folder / "unet/model.onnx",
                self.plan(f"{name}-prune", f"version: 1\ncrdiff: {json.dumps(index['prune'])}\n"),
                "pruned",
                pruned,
            )
            for case in index["cases"]:
                wanted = re.search(self.args.cases, f"{name}/{case['name']}")
                if not wanted or "40x72" in case["name"]:
                    continue
                captured = case["name"].startswith(
                    ("ddim", "euler/", "heun", "unipc", "amplify/every", "amplify/cond", "dense")
                )
                for graphs in GRAPHS if captured and not self.args.tiny else ["no"]:
                    jobs.append(
                        (
                            name,
                            folder,
                            pruned,
                            index["defaults"] | case,
                            expected[f"{case['name']}/latents"],
                            graphs,
                        )
                    )
        begun = time.monotonic()
        with ThreadPoolExecutor(self.args.jobs) as pool:
            rows = list(pool.map(self.golden, jobs))
        good = [row for row in rows if row.get("difference") is not None]
        worst = max((row["difference"] for row in good), default=None)
        self.tell(
            "goldens",
            name="all",
            runs=len(rows),
            failed=len(rows) - len(good),
            worst=worst,
            seconds=time.monotonic() - begun,
        )

    def golden(self, job):
        name, folder, pruned, case, expected, graphs = job
        label = f"{name}/{case['name']}"
        stem = self.work / "goldens" / f"{label}-{graphs}".replace("/", "-")
        stem.parent.mkdir(exist_ok=True)
        amplify = case.get("amplify")
        command = [
            "run",
            folder,
            "--prompt",
            case["prompt"],
            "--size",
            f"{case['height']}x{case['width']}",
            "--json",
        ]
        command += [
            "--steps",
            case["steps"],
            "--guidance",
            case["guidance"],
            "--guidance-rescale",
            case["guidance_rescale"],
        ]
        command += [
            "--batch",
            case["batch"],
            "--eta",
            case["eta"],
            "--scheduler",
            case["scheduler"],
            *GRAPHS[graphs],
            *EXACT,
        ]
        for seed in case["seeds"]:
            command += ["--seed", seed]
        for key, value in case["config"].items():
            command += ["--scheduler-option", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        if case.get("negative") is not None:
            command += ["--negative-prompt", case["negative"]]
        if case.get("clip_skip") is not None:
            command += ["--clip-skip", case["clip_skip"]]
        if amplify is None:
            command += ["--dense"]
        else:
            plan = stem.with_suffix(".yaml")
            plan.write_text(f"version: 1\namplify: {json.dumps(amplify)}\nrules: []\n")
            command += ["--plan", plan, "--pruned", pruned]
        command += ["-o", stem.with_suffix(".png"), "--save-latents", stem.with_suffix(".npy")]
        status, out, err, seconds = self.crdiff(*command, timeout=120)
        row = {"name": label, "graphs": graphs, "status": status, "seconds": round(seconds, 2), "difference": None}
        if status == 0:
            latents = np.load(stem.with_suffix(".npy"))
            row["difference"] = float(np.abs(latents - expected).max() / max(1.0, np.abs(expected).max()))
        else:
            row["said"] = (out + err)[-600:]
        self.tell("goldens", **row)
        return row

    def exports(self):
        """Which exports run on the GPU, and which are captured as CUDA graphs: the CPU's latents against the GPU's."""

        def one(name):
            folder = self.pipeline("sd15", FIXTURES / "sd15-mini" / name / "unet.onnx")
            fit_text(folder, 16)
            latents, row = {}, {"name": name}
            for how in ("cpu", "no", "yes"):
                file = folder / f"{how}.npy"
                command = [
                    "run",
                    folder,
                    "--dense",
                    "--prompt",
                    "the cat",
                    "--size",
                    "64x64",
                    "--steps",
                    6,
                    "--seed",
                    1,
                ]
                command += ["--json", "-o", folder / f"{how}.png", "--save-latents", file]
                command += [] if how == "cpu" else [*GRAPHS[how], *EXACT]
                status, out, err, _ = self.crdiff(*command, provider=how != "cpu", timeout=60)
                if status == 0:
                    latents[how] = np.load(file)
                else:
                    row[f"said, {how}"] = (out + err)[-700:]
            if "cpu" in latents:
                largest = max(1.0, float(np.abs(latents["cpu"]).max()))
                row |= {
                    how: float(np.abs(latents[how] - latents["cpu"]).max() / largest)
                    for how in ("no", "yes")
                    if how in latents
                }
            self.tell("exports", **row)

        names = sorted(
            folder.name for folder in (FIXTURES / "sd15-mini").iterdir() if (folder / "unet.onnx").exists()
        )
        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(one, names))

    def copies(self):
        """Copies that a step makes: those of twelve steps less those of four, over eight."""
        shim = self.work / "copies.so"
        status, out, err, _ = self.call(["cc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "copies.c", "-ldl"])
        if status != 0:
            shim = self.args.copies
        folder, plan = self.pipeline("sd15"), self.plan("mid")
        cases = {
            "dense": ["--dense"],
            "amplified": ["--plan", plan],
            "every": ["--plan", self.plan("every")],
            "amplified, graphs": ["--plan", plan, *GRAPHS["yes"]],
            "ancestral": ["--plan", plan, "--scheduler", "EulerAncestralDiscreteScheduler"],
        }
        self.crdiff(
            "run",
            folder,
            "--plan",
            plan,
            "--prompt",
            "the cat",
            "--size",
            "32x32",
            "--steps",
            1,
            "-o",
            self.work / "first.png",
        )

        def count(name, steps):
            file = self.work / f"copies-{list(cases).index(name)}-{steps}.txt"
            watched = self.environment | {"LD_PRELOAD": str(shim), "COPIES_FILE": str(file)}
            command = [
                "run",
                folder,
                *cases[name],
                "--prompt",
                "the cat",
                "--size",
                "64x64",
                "--steps",
                steps,
                "--json",
            ]
            status, out, err, _ = self.crdiff(*command, "-o", file.with_suffix(".png"), environment=watched)
            lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
            return {f"{way} {size}": int(count) for way, size, count in lines}, (
                "" if status == 0 else (out + err)[-500:]
            )

        def one(name):
            (few, said), (many, _) = count(name, 4), count(name, 12)
            step = {key: (many[key] - few.get(key, 0)) / 8 for key in sorted(many)}
            self.tell(
                "copies",
                name=name,
                latent_bytes=4 * 16 * 16 * 4,
                said=said,
                each_step={key: number for key, number in step.items() if number},
                four_steps=few,
            )

        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(one, cases))

    def shapes(self):
        """Images of a trained pipeline, CPU against GPU."""
        from PIL import Image

        folder, plan = self.pipeline("shapes"), self.plan("crdiff")
        runs = {
            "cpu": (False, []),
            "exact": (True, EXACT),
            "tf32": (True, []),
            "graphs": (True, GRAPHS["yes"] + EXACT),
        }

        def one(how):
            provider, more = runs[how]
            file = self.out / f"shapes-{how}.png"
            command = [
                "run",
                folder,
                "--plan",
                plan,
                "--pruned",
                pruned,
                "--prompt",
                "a red circle",
                "--seed",
                3,
                "--steps",
                20,
            ]
            return self.crdiff(*command, *more, "--json", "-o", file, provider=provider)

        pruned = folder / "unet/shapes.onnx"
        self.compile(folder / "unet/model.onnx", plan, "pruned", pruned)
        with ThreadPoolExecutor(self.args.jobs) as pool:
            results = dict(zip(runs, pool.map(one, runs)))
        read = lambda how: np.asarray(Image.open(self.out / f"shapes-{how}.png")).astype(int)
        for how, (status, out, err, seconds) in results.items():
            row = {"status": status, "seconds": seconds, "said": "" if status == 0 else (out + err)[-600:]}
            if status == 0 and results["cpu"][0] == 0:
                difference = np.abs(read(how) - read("cpu"))
                row |= {"largest": int(difference.max()), "other_pixels": float((difference.max(-1) > 0).mean())}
            self.tell("shapes", name=how, **row)
