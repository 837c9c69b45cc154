"""A worker of an Optuna study whose trials are run by `crdiff search trial`.

    python worker.py study.journal --trials 60 -- crdiff search trial sd15-onnx space.yaml

Start as many as there are machines or accelerators: they share the study through its journal, a file that may lie on a
network file system. Each stops when the study has its trials. The best values and plan are printed at the end.
"""

import argparse
import json
import subprocess

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", help="the study's journal, made if it is not there")
    parser.add_argument("--study", default="crdiff", help="its name")
    parser.add_argument("--trials", type=int, default=60, help="of all workers together")
    parser.add_argument("--seed", type=int, help="of this worker's sampler; give each another")
    parser.add_argument("command", nargs="+", help="-- crdiff search trial PIPELINE SPACE ...")
    args = parser.parse_args()
    space = args.command[args.command.index("trial") + 2]
    with open(space, encoding="utf-8") as file:
        variables = yaml.safe_load(file)["variables"]

    study = optuna.create_study(
        study_name=args.study,
        storage=JournalStorage(JournalFileBackend(args.journal)),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=args.seed),
        load_if_exists=True,
    )
    with subprocess.Popen(args.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crdiff:

        def objective(trial):
            values = {name: suggest(trial, name, variable) for name, variable in variables.items()}
            crdiff.stdin.write(json.dumps(values) + "\n")
            crdiff.stdin.flush()
            line = crdiff.stdout.readline()
            if not line:
                raise SystemExit(f"crdiff ended with {crdiff.wait()}")
            answer = json.loads(line)
            trial.set_user_attr("plan", answer["plan"])
            trial.set_user_attr("failed", answer.get("failed"))
            return answer["score"]

        states = (TrialState.COMPLETE, TrialState.RUNNING)
        study.optimize(objective, callbacks=[MaxTrialsCallback(args.trials, states=states)])
        crdiff.stdin.close()
    best = study.best_trial
    print(json.dumps({"score": best.value, "values": best.params, "plan": best.user_attrs["plan"]}))


if __name__ == "__main__":
    main()
