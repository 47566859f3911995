"""The command ``steppe profile``: the curvature and the robustness of a saved run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import (
    AT_LEAST_ONE,
    OUTPUT,
    THREAD_COUNT,
    WHERE,
    Count,
    Data,
    Device,
)
from steppe._shared.console import refusals
from steppe._shared.interrupts import ending_at_once
from steppe.compare.records.choices import check_task


def profile(
    checkpoint: Path,
    /,
    *,
    task: Annotated[str, Parameter(metavar="NAME")],
    own: Annotated[str | None, Parameter("--optimizer", metavar="MODULE:CLASS")] = None,
    network: Annotated[str | None, Parameter("--model", metavar="NAME")] = None,
    samples: Count = None,
    seed: Annotated[int, Parameter(metavar="N")] = 0,
    device: Device = "cpu",
    threads: Annotated[Count, WHERE] = None,
    out: Annotated[Path | None, OUTPUT, Parameter("--figure", metavar="FILE")] = None,
    data: Data = None,
    robustness: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure the curvature of the loss where a run ended, print it, and draw it.

    Eigenvalues, trace and spectral density of the Hessian, sharpness, and, if the checkpoint holds
    an optimizer with a diagonal preconditioner, whether its steps are stable there. Ctrl-C keeps
    what has been measured. --robustness adds what is left of the score once weights or inputs
    change.

    Parameters
    ----------
    checkpoint
        A file that steppe compare has written to OUT_DIR/checkpoints, or a state_dict of the task's
        model, saved with torch.save.
    task
        Task that the model was trained on, such as digits or digits+noise40; steppe compare --help
        lists them.
    own
        The checkpoint's optimizer, if it is a class of your own. Code that a file names is imported
        only if you name it too.
    network
        Name of the model. Default: what the checkpoint says, or the task's.
    samples
        Number of training samples to measure on; the first ones are taken. Default: as
        many as a study measures on.
    seed
        Seed of the random vectors that eigenvalues, trace and density start from.
    threads
        Number of CPU threads. Default: the task's.
    out
        PNG file for the figure. Default: CHECKPOINT with .png instead of .pt.
    robustness
        Measure the score on test data, too, with rounded weights, noise on weights and corrupted
        inputs, as steppe compare --robustness does. A second figure ends in -robustness.png.

    Examples
    --------
    The run that ended with seed 0:

        steppe profile results/digits/checkpoints/digits-adamw-recommended-seed7-1a.pt --task digits
    """
    with refusals(), ending_at_once():
        check_task(task)
        AT_LEAST_ONE.check("samples", samples)
        THREAD_COUNT.check("threads", threads)
        # Imported here because torch takes two seconds: help and misspelt options do without.
        from steppe.compare.cli.saved_run import report_curvature

    with refusals():
        report_curvature(
            checkpoint,
            task,
            own=own,
            network=network,
            samples=samples,
            seed=seed,
            device=device,
            threads=threads,
            picture=out or checkpoint.with_suffix(".png"),
            directory=data,
            robustness=robustness,
        )
