from types import SimpleNamespace

import pytest

from scgpt_ray import patience
from scgpt_ray.patience import impatient, patiently

SLOW = OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.")
AWAY = OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only pauses move."""
    clock = SimpleNamespace(now=0.0, pauses=[])

    def sleep(seconds):
        clock.pauses.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def asks(error, times):
    """A question that fails so many times."""
    left = [error] * times

    def ask():
        if left:
            raise left.pop()
        return "answer"

    return ask


@pytest.mark.parametrize("error", [
    SLOW, AWAY,
    OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
    ValueError("S3: Failed to read S3 object [Error Type: 19] [HTTP Response Code: 503] [Exception: SlowDown]"),
])  # fmt: skip
def test_what_passes_is_waited_for(clock, error, caplog):
    assert patiently(asks(error, 3), "s3://b/x") == "answer"
    assert len(clock.pauses) == 3
    assert caplog.text.count("s3://b/x: waiting") == 3


@pytest.mark.parametrize("error", [
    FileNotFoundError("no such key"),
    OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"),
    ValueError("503"),
])  # fmt: skip
def test_what_does_not_pass_is_not(clock, error):
    with pytest.raises(type(error)):
        patiently(asks(error, 1), "s3://b/x")
    assert clock.pauses == []


def test_a_store_that_was_never_there_is_not_waited_for_if_asked_so(clock):
    with pytest.raises(OSError, match="connect"):
        patiently(asks(AWAY, 1), "s3://b/x", even_away=False)
    assert patiently(asks(SLOW, 1), "s3://b/x", even_away=False) == "answer"


def interrupted(ask):
    """Ask while an interruption is handled, as the end of a run does."""
    try:
        raise KeyboardInterrupt  # noqa: TRY301 - as a signal does
    except KeyboardInterrupt:
        return patiently(ask, "s3://b/x")


def at_once(ask):
    with impatient():
        return patiently(ask, "s3://b/x")


@pytest.mark.parametrize("how", [interrupted, at_once])
def test_what_is_not_waited_for(clock, how):
    assert how(asks(SLOW, 0)) == "answer"
    with pytest.raises(OSError, match="SLOW_DOWN"):
        how(asks(SLOW, 1))
    assert clock.pauses == []


def test_pauses_double_with_jitter_for_more_than_ten_minutes(clock):
    with pytest.raises(OSError, match="SLOW_DOWN"):
        patiently(asks(SLOW, 1000), "s3://b/x")
    assert 600 < clock.now < 1000
    assert max(clock.pauses) <= 10
    for number, pause in enumerate(clock.pauses):
        assert 0.5 <= pause / min(0.5 * 2**number, 10) <= 1.0
    assert len(set(clock.pauses)) == len(clock.pauses)
