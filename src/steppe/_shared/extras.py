"""How a missing package gets installed, for error messages: by which extra of steppe.

The core install has few packages; a command says what the rest needs.
"""

_EXTRAS = {
    "torchvision": "vision",
    "timm": "vision",
    "transformers": "language",
    "peft": "language",
    "gguf": "language",
    "psycopg": "postgresql",
    "pytorch_optimizer": "optimizers",
    "schedulefree": "optimizers",
}

# What is installed for packages that are in no extra of steppe.
_BY_NAME = {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "pymysql": "pymysql",
    "MySQLdb": "mysqlclient",
}


def install_command(package: str) -> str:
    """Return what installs a package. steppe is on no index: extras come from a checkout of it.

    Parameters
    ----------
    package : str
        The package as it is imported.

    Examples
    --------
    >>> install_command("timm")
    "pip install '.[vision]' in a checkout of steppe"
    >>> install_command("mlflow")
    'pip install mlflow'
    """
    if package in _BY_NAME:
        return f"pip install {_BY_NAME[package]}"
    return f"pip install '.[{_EXTRAS.get(package, 'compare')}]' in a checkout of steppe"
