"""The command ``steppe``."""

_EXTRA = ("typer", "rich")


def main() -> None:
    """Run the command line.

    Raises
    ------
    SystemExit
        With the command's status; with a remedy if the packages it needs are not installed.
    """
    try:
        from steppe.cli.app import app
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        raise SystemExit(f"steppe: {package} is missing: pip install 'steppe[compare]'") from None
    app()
