from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tvnet_cli.interrupt import interruptible, nothing_begun

# Whoever runs the tests in the background may have Ctrl-C ignored, which programs inherit.
WORK = """
import signal, sys, time
from tvnet_cli.interrupt import interruptible
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
with interruptible(hard=sys.argv[1] == "hard") as stop:
    print("ready", flush=True)
    try:
        while not stop.wait(0.01):
            pass
        print("finishing", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("dropped", flush=True)
        raise SystemExit(7)
    finally:
        print("tidied up", flush=True)
"""


def stopped_twice(kind: str, *signals: signal.Signals, then: signal.Signals | None = None) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WORK, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        for line, number in zip(("ready\n", "finishing\n"), signals, strict=True):
            assert process.stdout.readline() == line
            process.send_signal(number)
        if then is not None:
            process.send_signal(then)
        return process.wait(), process.stdout.read()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_is_an_event_and_the_second_stops_at_once(first):
    assert stopped_twice("soft", first, signal.SIGINT) == (7, "dropped\ntidied up\n")


def test_a_program_under_nohup_does_not_hear_that_its_terminal_is_closed():
    assert stopped_twice("nohup", signal.SIGINT, signal.SIGHUP, then=signal.SIGINT) == (7, "dropped\ntidied up\n")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_where_work_may_be_killed_the_second_ends_the_process_on_the_spot(second):
    assert stopped_twice("hard", signal.SIGINT, second) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_afterwards_signals_are_what_they_were(number):
    handled = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    kept = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        before = list(map(signal.getsignal, handled))
        with interruptible() as stop:
            os.kill(os.getpid(), number)
            assert stop.wait(5)
        assert list(map(signal.getsignal, handled)) == before
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_in_another_thread_it_is_an_event_that_nothing_sets():
    found = []

    def work() -> None:
        with interruptible() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_where_nothing_has_begun_the_first_ends_the_process_on_the_spot():
    work = (
        "import time\nfrom tvnet_cli.interrupt import nothing_begun\nwith nothing_begun():\n"
        "    print('ready', flush=True)\n    try:\n        time.sleep(60)\n"
        "    finally:\n        print('amid an import', flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stdout.read()) == (130, "")
    before = signal.getsignal(signal.SIGINT)
    with nothing_begun():
        pass
    assert signal.getsignal(signal.SIGINT) == before
