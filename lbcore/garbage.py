"""When Python looks for garbage that counting references does not find."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 20_000
"""Python's own 700 is for scripts: a process that serves hundreds of requests at once would go through all of them,
alive as they are, every few requests, and through everything it has every few thousand."""


def look_seldom() -> None:
    """Leaves out what is here already, which will stay, and looks for garbage among new objects less often.

    Called once, when a process is ready to serve. Requests leave hardly any garbage of this kind behind; what they do
    leave is still found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
