"""Add a task to ``steppe compare``: two half-moons in the plane, and a small network.

A task of your own needs none of this: it is a ``Task`` in a file, as in examples/tasks. In the
package it is one ``TaskMaker`` in src/steppe/compare/tasks/makers.py, which makes it at two sizes,
its name in src/steppe/compare/records/choices.py, and a function in src/steppe/compare/data that
loads its data. Everything else (tuning, seeds, statistics, the page) comes from the task::

    python examples/extending/add_a_task.py
"""

import tempfile
from pathlib import Path

import torch

from steppe._shared.recipes import find_recipe
from steppe.compare import TASKS, Data, Run, RunContext, RunSettings, TaskMaker, find_task, train
from steppe.compare.data.datasets import TensorSamples, fingerprint_of, held_out
from steppe.compare.models.image_models import find_model
from steppe.compare.tasks.makers import Size


def half_moons() -> Data:
    """1 000 points of scikit-learn's two half-moons: 640 to train, 160 to validate, 200 to test."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(1000, noise=0.2, random_state=0)
    # One channel of 1×2 "pixels", as the networks for images take them: shape (n, 1, 1, 2).
    inputs = torch.tensor(points, dtype=torch.float32).reshape(-1, 1, 1, 2)
    targets = torch.tensor(labels)
    # Fixed, whatever the seed of a run: every optimizer gets the same samples.
    rest, tested = held_out(targets, 0.2)
    kept, validated = held_out(targets[rest], 0.2)
    rows = rest[kept], rest[validated], tested
    train, validation, test = (TensorSamples(inputs[part], targets[part]) for part in rows)
    return Data(train, validation, test, fingerprint=fingerprint_of(train, validation, test))


HALF_MOONS = TaskMaker(
    "half-moons",
    half_moons,
    make=lambda name: find_model(name)((1, 1, 2), 2),
    full=Size("mlp", epochs=10, batch_size=32),
    small=Size("mlp", epochs=3, batch_size=32),
    threads=1,
)


def main() -> None:
    """Register the task, and train two optimizers on it as a study would."""
    # In the package it is in the table already, which the processes of a study read.
    TASKS[HALF_MOONS.name] = HALF_MOONS
    loaded = find_task("half-moons").task().load()
    task, data = loaded
    steps = len(data.train) // task.batch_size
    settings = RunSettings(
        task.name, task.model_name, None, data.fingerprint, task.epochs, steps, task.batch_size
    )
    for name, lr in (("adamw", 0.01), ("sgd", 0.1)):
        run = Run(settings, find_recipe(name), {"lr": lr}, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(run, loaded, RunContext(Path(folder)))
        accuracy = outcome.final.test_score
        assert accuracy > 0.85
        print(f"{name}: {accuracy:.1%} of the test points after {task.epochs} epochs")


if __name__ == "__main__":
    main()
