"""The timer that is moved often and rings seldom, on a clock that the test turns."""

import asyncio
from collections.abc import Callable
from typing import cast

from corral.upstream.alarm import Alarm


class Timer:
    def __init__(self, timers: list["Timer"], when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self._timers = timers
        timers.append(self)

    def cancel(self) -> None:
        self._timers.remove(self)


class TurnedLoop:
    """Of an event loop only the timers; time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.armed = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.armed += 1
        return Timer(self.timers, when, callback)

    def turn_to(self, now: float) -> None:
        while due := [timer for timer in self.timers if timer.when <= now]:
            first = min(due, key=lambda timer: timer.when)
            self.fire(first, at=first.when)
        self.now = now

    def fire(self, timer: Timer, at: float) -> None:
        self.now = at
        timer.cancel()
        timer.callback()


class Bell:
    def __init__(self) -> None:
        self.loop = TurnedLoop()
        self.rung_at: list[float] = []
        self.alarm = Alarm(cast(asyncio.AbstractEventLoop, self.loop), lambda: self.rung_at.append(self.loop.now))


def test_it_rings_once_when_it_is_due() -> None:
    bell = Bell()
    bell.alarm.set(5)
    bell.loop.turn_to(4.9)
    assert bell.rung_at == []
    bell.loop.turn_to(100)
    assert bell.rung_at == [5]


def test_to_move_it_later_arms_no_further_timer() -> None:
    bell = Bell()
    for now in range(100):
        bell.loop.turn_to(now * 0.01)
        bell.alarm.set(5)
    assert bell.loop.armed == 1
    bell.loop.turn_to(100)
    assert bell.rung_at == [0.99 + 5]
    assert bell.loop.armed == 2


def test_to_move_it_earlier_takes_effect() -> None:
    bell = Bell()
    bell.alarm.set(300)
    bell.alarm.set(5)
    assert len(bell.loop.timers) == 1
    bell.loop.turn_to(400)
    assert bell.rung_at == [5]


def test_it_can_be_set_again_after_it_rang() -> None:
    bell = Bell()
    bell.alarm.set(5)
    bell.loop.turn_to(10)
    bell.alarm.set(5)
    bell.loop.turn_to(20)
    assert bell.rung_at == [5, 15]


def test_a_timer_that_fires_a_little_early_counts() -> None:
    bell = Bell()
    bell.alarm.set(5)
    bell.loop.fire(bell.loop.timers[0], at=4.9995)
    assert bell.rung_at == [4.9995]


def test_stopped_it_never_rings_and_leaves_no_timer() -> None:
    bell = Bell()
    bell.alarm.set(5)
    bell.alarm.stop()
    assert bell.loop.timers == []
    bell.alarm.set(1)
    assert bell.loop.timers == []
    bell.loop.turn_to(100)
    assert bell.rung_at == []
