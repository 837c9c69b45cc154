"""A worker of an Optuna study whose trials are drawn and scored by crdiff.

    python worker.py --storage postgresql://user@host/optuna --make-study
    python worker.py --storage postgresql://user@host/optuna --trials 60 sd15-onnx space.yaml

Make the study once, then start as many workers as there are machines or accelerators. They share it through its storage: a
database (PostgreSQL, MySQL, SQLite; redis://HOST), or a file that may lie on a network file system. Each stops when the
study has its trials, prints the study's best so far, and writes its plan.
"""

import argparse
import json
import os
import tempfile

import crdiff.search
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState


def storage_of(text):
    """The storage at a URL, or else in a file of this name."""
    if text.startswith("redis://"):
        from optuna.storages.journal import JournalRedisBackend

        return JournalStorage(JournalRedisBackend(text))
    if "://" in text:
        return text
    return JournalStorage(JournalFileBackend(text))


def suggest(trial, name, variable):
    """A value for one variable of the space."""
    for kind in ("ratio", "number"):
        if kind in variable:
            low, high = variable[kind]
            return trial.suggest_float(name, low, high)
    if "choice" in variable:
        return trial.suggest_categorical(name, variable["choice"])
    modules = variable["modules"]
    if any(not isinstance(module, str) or set(module) & set("*{") for module in modules):
        raise SystemExit(f"{name}: write its modules out; `crdiff search PIPELINE SPACE --dry-run` lists them")
    choose = variable.get("choose", "any")
    if choose == "any":
        return [module for module in modules if trial.suggest_categorical(f"{name}: {module}", [False, True])]
    options = modules if choose == "one" else ["", *modules]
    chosen = trial.suggest_categorical(name, options)
    return [chosen] if chosen else []


def write(path, plan):
    """Writes a plan; the file appears whole or not at all."""
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".yaml", delete=False, encoding="utf-8") as file:
        yaml.safe_dump(plan, file, sort_keys=False)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="study.journal", help="a database's URL, or a file [study.journal]")
    parser.add_argument("--study", default="crdiff", help="its name [crdiff]")
    parser.add_argument("--make-study", action="store_true", help="make the study, if it is not there, and stop")
    parser.add_argument("--trials", type=int, default=60, help="of all workers together [60]")
    parser.add_argument("--seed", type=int, help="of this worker's sampler; give each another")
    parser.add_argument("--output", default="plan.yaml", help="where the best plan is written [plan.yaml]")
    parser.add_argument("--provider", action="append", help="an execution provider, such as cuda [the plan's]")
    parser.add_argument("--device", type=int, help="the accelerator to run on")
    parser.add_argument("--engine", help="ort or rten")
    parser.add_argument("pipeline", nargs="?", help="the pipeline's folder")
    parser.add_argument("space", nargs="?", help="the space, with its modules written out")
    args = parser.parse_args()
    study = optuna.create_study(
        study_name=args.study,
        storage=storage_of(args.storage),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=args.seed),
        load_if_exists=True,
    )
    if args.make_study:
        print(json.dumps({"study": args.study, "trials": len(study.trials)}))
        return
    if args.space is None:
        parser.error("a pipeline and a space are needed")
    with open(args.space, encoding="utf-8") as file:
        variables = yaml.safe_load(file)["variables"]
    device = {} if args.device is None else {"device_id": args.device}
    providers = args.provider and [(name, {} if name == "cpu" else device) for name in args.provider]
    trials = crdiff.search.Trials(args.pipeline, args.space, providers=providers, engine=args.engine)

    def objective(trial):
        found = trials({name: suggest(trial, name, variable) for name, variable in variables.items()})
        trial.set_user_attr("plan", found.plan.to_dict())
        trial.set_user_attr("failed", found.failed)
        return found.score

    states = (TrialState.COMPLETE, TrialState.RUNNING)
    study.optimize(objective, callbacks=[MaxTrialsCallback(args.trials, states=states)])
    best = study.best_trial
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    plan = best.user_attrs["plan"]
    write(args.output, plan)
    print(json.dumps({"trials": done, "best": best.number, "score": best.value, "values": best.params, "plan": plan}))


if __name__ == "__main__":
    main()
