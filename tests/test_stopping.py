"""What the first and the second signal do; real signals, sent to this process."""

from __future__ import annotations

import signal

import pytest

from penstock.jobs.stopping import StopSignals


def test_the_first_signal_asks_and_the_second_does_not_wait(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as stop:
        stop.is_graceful = True
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked is signal.SIGTERM
        assert "stopping after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.asked is signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # the third one is the system's


def test_where_nothing_is_worth_finishing_the_first_signal_stops_at_once() -> None:
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.asked is signal.SIGINT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3), (signal.SIGHUP, 3)])
def test_only_ctrl_c_is_exit_code_130(number: signal.Signals, code: int) -> None:
    stop = StopSignals()
    assert stop.exit_code == 130
    stop.asked = number
    assert stop.exit_code == code


def test_handlers_are_put_back_and_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not interrupt
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGHUP, before)
