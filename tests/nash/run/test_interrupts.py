import os
import signal
import threading

import pytest

from nash.run.interrupts import Interrupts

BOTH = pytest.mark.parametrize("each", [signal.SIGINT, signal.SIGTERM])


def signalled(each: signal.Signals, times: int = 1, *, held: bool, fails: bool = False) -> list[str]:
    """What is still done after a signal, which ends in KeyboardInterrupt."""
    done: list[str] = []
    before = signal.getsignal(each)

    def work() -> None:
        for _ in range(times):
            os.kill(os.getpid(), each)
        done.append("the rest")
        if fails:
            raise ValueError("its own")

    try:
        with Interrupts() as interrupts:
            if held:
                with interrupts.held():
                    work()
                done.append("what follows")
            else:
                work()
    except KeyboardInterrupt:
        done.append("interrupted")
    finally:
        assert signal.getsignal(each) == before
    return done


@BOTH
def test_it_waits_for_what_is_held(each: signal.Signals) -> None:
    assert signalled(each, held=True) == ["the rest", "interrupted"]


@BOTH
def test_outside_it_comes_at_once(each: signal.Signals) -> None:
    assert signalled(each, held=False) == ["interrupted"]


@BOTH
def test_the_second_one_does_not_wait(each: signal.Signals) -> None:
    assert signalled(each, 2, held=True) == ["interrupted"]


def test_an_error_in_what_is_held_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="its own"):
        signalled(signal.SIGINT, held=True, fails=True)


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
