"""The time of the first step of each shape, in which a Gaudi compiles, next to that of all other steps."""

import time
from collections.abc import Callable

import torch


class FirstSteps:
    """The seconds of the first step of each shape, from its start to that of the next one.

    The device is waited for before and after such a step alone. At the start of a step nothing is queued that a Gaudi in lazy
    mode would compile on its own.

    Attributes:
        seconds: by shape, `{"32 x 384": 41.2}`; of shapes that are new since the last `report`.
        known: all shapes so far.
    """

    def __init__(self, device: torch.device, paused: Callable[[], float] = lambda: 0.0):
        """Begin without any shape; `paused` returns the seconds so far that count for no step."""
        self.wait, self.paused = getattr(torch, device.type).synchronize, paused
        self.known, self.seconds = set(), {}
        self.steps, self.total = 0, 0.0
        self.start, self.first = None, None  # of the steps since the last `end`; the shape and start of a first step

    def clock(self) -> float:
        self.wait()
        return time.perf_counter() - self.paused()

    def begin_step(self, inputs: dict) -> None:
        """Note that a step on a batch begins, and that the one before has ended."""
        shape = shape_of(inputs)
        is_new = shape not in self.known
        if self.start is None or self.first is not None or is_new:
            now = self.clock()
            self.close_first(now)
            self.start = now if self.start is None else self.start
            self.first = (shape, now) if is_new else None
        self.known.add(shape)
        self.steps += 1

    def close_first(self, now: float) -> None:
        if self.first is not None:
            shape, start = self.first
            self.seconds[shape], self.first = now - start, None

    def end(self) -> None:
        """Note that the last step has ended."""
        if self.start is not None:
            now = self.clock()
            self.close_first(now)
            self.total, self.start = self.total + now - self.start, None

    def report(self) -> dict:
        """Return what the new shapes took since the last report, in seconds; empty without any.

        No compilation of their graphs took more than `all_first_steps`. `later_step` is the mean of all other steps, None
        without one.
        """
        first, count = sum(self.seconds.values()), len(self.seconds)
        later = max(self.total - first, 0) / (self.steps - count) if self.steps > count else None
        found = {
            "shapes": count,
            "all_first_steps": round(first, 3),
            "later_step": later if later is None else round(later, 4),
            "first_steps": {shape: round(seconds, 3) for shape, seconds in self.seconds.items()},
        }
        self.seconds, self.steps, self.total = {}, 0, 0.0
        return found if count else {}


def shape_of(inputs: dict) -> str:
    """Return the shape of a batch as text: rows x tokens, with those of answers to write.

    >>> shape_of({"input_ids": torch.zeros(32, 384)})
    '32 x 384'
    >>> shape_of({"input_ids": torch.zeros(8, 384), "labels": torch.zeros(8, 30)})
    '8 x 384, answers 30'
    """
    rows, tokens = inputs["input_ids"].shape
    labels = inputs.get("labels")
    return f"{rows} x {tokens}" + ("" if labels is None else f", answers {labels.shape[1]}")
