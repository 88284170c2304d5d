import os
import signal
import threading

import pytest

from nash.run.interrupts import Interrupts


@pytest.mark.parametrize("each", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_for_what_is_held(each: signal.Signals) -> None:
    done = []
    before = signal.getsignal(each)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.held():
        os.kill(os.getpid(), each)
        done.append("to its end")
    assert done == ["to its end"]
    assert signal.getsignal(each) == before


def test_outside_it_comes_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")


def test_the_second_one_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")


def test_an_error_in_what_is_held_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="this"), Interrupts() as interrupts, interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("this")


def test_in_another_thread_signals_stay_as_they_are() -> None:
    found: list[bool] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with Interrupts():
            found.append(signal.getsignal(signal.SIGINT) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
