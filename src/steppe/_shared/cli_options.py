"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Storage = Annotated[
    str | None,
    typer.Option(
        help="Where the study is kept: a URL such as postgresql://me@host/studies, or a file. "
        "Default: OUT/study.sqlite."
    ),
]
StudyName = Annotated[
    str | None, typer.Option("--study", help="Its name, if the storage holds several.")
]
Device = Annotated[str, typer.Option(help="A torch device, such as cuda.")]
Data = Annotated[
    Path | None, typer.Option(help="Directory of the task's files, for tasks that read files.")
]
Track = Annotated[str, typer.Option(help="Log every run to tensorboard, mlflow or wandb as well.")]
Checkpoints = Annotated[
    bool,
    typer.Option(
        help="Whether each run leaves its weights and optimizer state in OUT/checkpoints, for "
        "steppe profile: gigabytes, of a large model."
    ),
]
Heartbeat = Annotated[
    int,
    typer.Option(
        help="Seconds between a worker's signs of life; after six that did not come, its trial is "
        "given to another."
    ),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]
