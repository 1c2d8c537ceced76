"""How much one rendering of a chat template may do, counted in steps and characters.

A template is a program that comes with a model, and a program may loop, double or nest until the
memory is full. Every turn of a loop, call, filter and value made costs steps from a budget that
grows with the conversation, so the same template and conversation stop at the same place on every
machine. The clock is only the last resort.
"""

import time
from contextvars import ContextVar
from typing import Any

STEPS = 20_000  # for a conversation of nothing
STEPS_PER_VALUE = 100  # a message is about three values
STEPS_PER_CHARACTER = 16
CHARACTERS_PER_STEP = 64
LENGTH = 1 << 16  # characters of the longest text, for a conversation of nothing
LENGTH_PER_CHARACTER = 8
DEPTH = 64  # lists in lists
SECONDS = 2.0  # of this thread's own time
GLANCE = 500  # steps between two looks at the clock


class OverBudget(Exception):
    """A rendering did more than it may."""


class Budget:
    """What is left to one rendering.

    `values` counts the entries of the conversation, `characters` those of its texts.
    """

    def __init__(self, values: int, characters: int) -> None:
        self.left = STEPS + STEPS_PER_VALUE * values + STEPS_PER_CHARACTER * characters
        self.length = LENGTH + LENGTH_PER_CHARACTER * characters
        self.until = time.thread_time() + SECONDS
        self.glance_at = self.left - GLANCE

    def spend(self, steps: int) -> None:
        """Take steps. Raises OverBudget where none are left."""
        self.left -= steps
        if self.left < 0:
            raise OverBudget("more steps than such a conversation can need")
        if self.left <= self.glance_at:
            self.glance_at = self.left - GLANCE
            if time.thread_time() > self.until:
                raise OverBudget(f"more than {SECONDS:.0f} seconds of work")

    def held(self, value: Any) -> Any:
        """Charge for a value that was made, with all that it holds, and give it back.

        Lists that hold one list twice, again and again, are small in memory and endless to walk:
        they are charged as walked, each time they are put into another.
        """
        self.spend(1)
        waiting = [(value, 0)]
        while waiting:
            one, depth = waiting.pop()
            if isinstance(one, str):
                self._long(one)
            elif isinstance(one, dict | list | tuple):
                if depth > DEPTH:
                    raise OverBudget(f"values nested deeper than {DEPTH}")
                self.spend(len(one))
                waiting += [(inner, depth + 1) for inner in entries(one)]
        return value

    def weighed(self, value: Any) -> Any:
        """Charge for reading a value, before it is compared or worked on, and give it back."""
        if isinstance(value, str):
            self.spend(1 + len(value) // CHARACTERS_PER_STEP)
            return value
        return self.held(value) if isinstance(value, dict | list | tuple) else value

    def walked(self, value: Any) -> Any:
        """Charge for a value that is gone through one by one, in advance, and give it back."""
        self.spend(len(value) if isinstance(value, str | dict | list | tuple | range) else 1)
        return value

    def _long(self, text: str) -> None:
        if len(text) > self.length:
            raise OverBudget(f"a text of {len(text):,} characters")
        self.spend(len(text) // CHARACTERS_PER_STEP)


def entries(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> list[Any]:
    """What a list or dictionary holds, keys included."""
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


BUDGET: ContextVar[Budget] = ContextVar("budget")


def budget() -> Budget:
    """The budget of the rendering that is going on."""
    return BUDGET.get()
