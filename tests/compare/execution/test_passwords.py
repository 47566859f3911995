"""A password is shown to nobody, however its URL is written."""

import sys
import traceback
from pathlib import Path

import pytest

from helpers.command_line import run_steppe
from steppe._shared.credentials import scrubbed, shown, without_credentials
from steppe.compare.cli.run_study import _typed
from steppe.compare.execution.study_storage import open_storage

URLS = [
    "postgresql://me:s3cret@host/db",
    "POSTGRESQL://me:s3cret@host/db",
    "postgresql://:s3cret@host/db",
    "postgresql://host/db?user=me&password=s3cret",
    "postgresql://host/db?sslpassword=s3cret",
    "postgresql://host/db?token=s3cret#s3cret",
    "postgresql://me:se@s3cret@host/db",
    "postgresql://me:a:s3cret@host/db",
    "postgresql://me:s s3cret@host/db",
    "postgresql://me:s/s3cret@host/db",
    "postgresql://me:%73%33cret@host/db",
    "postgresql://me%40corp:s3cret@host/db",
    "postgresql+psycopg://me:s3cret@[::1/db",
    "postgresql://me:s3cret",
    "mysql+pymysql://host/db?password=s3cret",
    "mysql://me:s3cret@host",
    "redis://:s3cret@host:6379/0",
    "journal://s3cret",
    "://me:s3cret@host/db",
    "postgresql:/me:s3cret@host/db",
    "postgresql:me:s3cret@host/db",
    "host=here user=me password=s3cret",
    "password = 's3cret' host=here",
]
SECRETS = ("s3cret", "%73%33cret", "3cret")


def is_told(text: str) -> bool:
    return any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("form", [["--storage", "{}"], ["--storage={}"], ["{}"]], ids=len)
def test_what_was_typed_is_kept_without_it(
    url: str, form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [each.format(url) for each in form]
    monkeypatch.setattr(sys, "argv", ["steppe", "compare", "digits", *words])
    assert not is_told(_typed())
    assert _typed().startswith("steppe compare digits ")


@pytest.mark.parametrize("where", ["results/digits", "a=b/c:d", "100%?#.sqlite", "-x", "~/it"])
def test_a_path_is_shown_as_it_is(where: str) -> None:
    assert shown(where) == where


@pytest.mark.parametrize("url", URLS)
def test_a_storage_that_cannot_be_opened_does_not_tell_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steppe.compare.execution.study_storage._PAUSE_S", 0.0)
    # Nobody is there, and looking for a host takes its time.
    url = url.replace("@host", "@127.0.0.1:1").replace("//host", "//127.0.0.1:1")
    try:
        open_storage(url, create=True)
    except (ValueError, OSError, ImportError):
        assert not is_told(traceback.format_exc().partition("open_storage(url")[2])
    else:
        pytest.fail("it was opened")
    assert not list(tmp_path.iterdir())
    for command in (["report", url], ["report", url, "more"], ["report", "--storag", url]):
        result = run_steppe(*command)
        assert result.exit_code == 2
        assert not is_told(result.output), result.output
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "url"),
    [
        ("invalid literal for int() with base 10: 's3cret'", "postgresql://host:s3cret"),
        ("invalid port: s3cret", "postgresql://me:x@host:s3cret/db"),
        ("bad value 's3cret word'", "postgresql://host/db?options=s3cret%20word"),
        ("bad value 's3cret word'", "postgresql://host/db?options=s3cret+word"),
        ("cannot parse postgresql://me:s3cret@host", "postgresql://me:s3cret@host"),
    ],
)
def test_a_drivers_error_is_told_without_it(message: str, url: str) -> None:
    assert not is_told(scrubbed(message, url))


def test_of_an_error_the_rest_is_told() -> None:
    message = 'connection to server at "127.0.0.1", port 1 failed: Connection refused'
    assert scrubbed(message, "postgresql://me:s3cret@127.0.0.1:1/db") == message
    assert without_credentials("unknown option --x", ["--x", "a"]) == "unknown option --x"
