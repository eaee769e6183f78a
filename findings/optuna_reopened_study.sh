#!/usr/bin/env bash
# optuna: a study opened again keeps its old direction, whatever is asked for, and a seeded sampler tries the first points again.
#
# Versions: optuna 5.0.0
# Guess:    create_study(direction="maximize", load_if_exists=True) on a study that minimises is refused, or maximises; with TPESampler(seed=1) a
#           search that goes on tries new points.
# Seen:     the study still minimises, and its sampler looks for the lowest accuracy: best_trial is the worst. The only message is "Using an
#           existing study". The seed starts the sampler's random numbers again, so the trials after the interruption are those of the beginning,
#           each trained a second time with the same settings.
# Effect:   a changed metric name with an old study name spoils a search without a word. Compare study.direction with what was asked for; take a seed
#           that depends on len(study.trials). Talaria's sweeps are a list of settings, without such a state.
source "$(dirname "$0")/install.sh" optuna==5.0.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import optuna


def opened(direction):
    sampler = optuna.samplers.TPESampler(seed=1)
    return optuna.create_study(
        study_name="sweep", storage="sqlite:///sweep.db", direction=direction, load_if_exists=True, sampler=sampler
    )


def accuracy(trial):
    return trial.suggest_float("dropout", 0.0, 1.0)


opened("minimize").optimize(accuracy, n_trials=4)
study = opened("maximize")
study.optimize(accuracy, n_trials=4)
points = [round(trial.params["dropout"], 3) for trial in study.trials]
print("asked for maximize:", study.direction.name, "- the best of", points, "is", round(study.best_value, 3))
assert study.direction.name == "MINIMIZE"
assert study.best_value == min(trial.value for trial in study.trials)
print("tried before the interruption:", points[:4], "and after it:", points[4:])
assert points[:4] == points[4:]
PY
grep -q "Using an existing study" log.txt
