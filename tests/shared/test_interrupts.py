"""Signals are put off, noted, and raised only where it is asked for."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from steppe._shared.interrupts import (
    StoppedError,
    ending_at_once,
    raise_if_stopped,
    stop_requests,
    stop_signals,
    stopping_at_once,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_raised_where_it_may_be(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals():
        raise_if_stopped()
        signal.raise_signal(number)
        assert stop_requests() == 1
        with pytest.raises(StoppedError) as raised:
            raise_if_stopped()
        assert raised.value.code == 128 + number
        with pytest.raises(StoppedError), stopping_at_once():
            pytest.fail("a signal had come before")
    assert signal.getsignal(number) is before
    assert stop_requests() == 0
    raise_if_stopped()


def test_in_training_a_signal_is_raised_at_once() -> None:
    with stop_signals():
        with pytest.raises(StoppedError), stopping_at_once():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop_requests() == 2


def test_other_threads_have_nothing_to_note() -> None:
    seen: list[int] = []

    def work() -> None:
        with stop_signals(), stopping_at_once():
            seen.append(stop_requests())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [0]


def test_an_import_is_never_interrupted_by_half() -> None:
    """Ctrl-C ends the process: code that catches everything does not get to see it."""
    code = (
        "import signal\n"
        "from steppe._shared.interrupts import ending_at_once\n"
        "with ending_at_once():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException:\n"
        "        pass\n"
        "print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ending_at_once():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
