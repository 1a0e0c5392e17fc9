"""The time of the first step of each shape: without pauses, next to later steps, and of new shapes alone."""

from types import SimpleNamespace

import torch

import qa.first_steps
from qa.first_steps import FirstSteps


def batch(width: int) -> dict:
    return {"input_ids": torch.zeros(4, width)}


def test_first_steps_are_timed_from_start_to_start(monkeypatch):
    """Steps of 96 tokens take 20 s, then 2 s; of 32 tokens 10 s, then 2 s, with a pause of 100 s within the first one."""
    now, waits, pause = SimpleNamespace(seconds=1000.0), [], [0.0]
    monkeypatch.setattr(qa.first_steps, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: waits.append(now.seconds))
    timed = FirstSteps(torch.device("cpu"), lambda: pause[0])
    for width, seconds, paused in ((96, 20, 0), (32, 110, 100), (32, 2, 0), (96, 2, 0), (96, 2, 0)):
        timed.begin_step(batch(width))
        now.seconds += seconds
        pause[0] += paused
    timed.end()
    assert waits == [1000, 1020, 1130, 1136]  # around first steps alone, and at the end
    first = {"4 x 96": 20.0, "4 x 32": 10.0}
    assert timed.report() == {"shapes": 2, "all_first_steps": 30.0, "later_step": 2.0, "first_steps": first}
    for width in (96, 48, 96):  # a later evaluation has one shape that is new
        timed.begin_step(batch(width))
        now.seconds += 5
    timed.end()
    assert timed.report() == {"shapes": 1, "all_first_steps": 5.0, "later_step": 5.0, "first_steps": {"4 x 48": 5.0}}
    timed.begin_step(batch(48))
    timed.end()
    assert timed.report() == {}


def test_a_single_step_is_compared_with_none():
    timed = FirstSteps(torch.device("cpu"))
    timed.begin_step(batch(96))
    timed.end()
    found = timed.report()
    assert found["all_first_steps"] == found["first_steps"]["4 x 96"] and found["later_step"] is None
