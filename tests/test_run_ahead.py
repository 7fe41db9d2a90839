"""What is made ahead is what would have been made when it is asked for."""

import threading

import pytest

from run.ahead import Ahead


def test_what_was_begun_is_taken_and_what_was_not_is_made_now():
    made = []

    def double(x):
        made.append((x, threading.current_thread() is threading.main_thread()))
        return 2 * x

    ahead = Ahead(double)
    assert ahead(3) == 6
    ahead.start(4)
    assert ahead(4) == 8
    ahead.start(5)
    assert ahead(6) == 12 and ahead(5) == 10  # something else was asked for
    ahead.thread.shutdown()
    assert sorted(made) == [(3, True), (4, False), (5, False), (5, True), (6, True)]


def test_a_failure_is_raised_where_the_result_is_asked_for():
    ahead = Ahead(lambda x: 1 / x)
    ahead.start(0)
    with pytest.raises(ZeroDivisionError):
        ahead(0)
