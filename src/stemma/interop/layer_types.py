"""Which blocks of a config attend through a window: `layer_types`, or the older keys before it."""

from collections.abc import Callable, Mapping
from typing import Any

WINDOW, FULL = "sliding_attention", "full_attention"
DEEPEST = 10_000  # blocks, more than any network has: a lying config makes no endless list


def read_windowed(
    foreign: Mapping[str, Any], *, depth: Any, otherwise: Callable[[int], bool]
) -> tuple[int, ...]:
    """The blocks with a window: those that `layer_types` names, else those that `otherwise` does.

    Raises ValueError for another kind of block, or for another number of them than `depth`.
    """
    kinds = foreign.get("layer_types")
    if not isinstance(depth, int) or not 1 <= depth <= DEEPEST:
        raise ValueError(f"num_hidden_layers is {depth!r}, not a number from 1 to {DEEPEST}")
    if kinds is None:
        return tuple(index for index in range(depth) if otherwise(index))
    if not isinstance(kinds, list) or len(kinds) != depth:
        found = len(kinds) if isinstance(kinds, list) else repr(kinds)
        raise ValueError(f"layer_types has {found} entries, num_hidden_layers is {depth}")
    for index, kind in enumerate(kinds):
        if kind not in (WINDOW, FULL):
            wanted = f"{FULL!r} or {WINDOW!r}"
            raise ValueError(f"layer_types: block {index} is {kind!r:.60}, wanted {wanted}")
    return tuple(index for index, kind in enumerate(kinds) if kind == WINDOW)


def write_windowed(windowed: tuple[int, ...], depth: int) -> list[str]:
    """`layer_types` of a config."""
    return [WINDOW if index in windowed else FULL for index in range(depth)]


def read_late_windows(foreign: Mapping[str, Any], *, depth: Any) -> dict[str, Any]:
    """`window` and `windowed` of Qwen 2 and 3: from block `max_window_layers` on, if at all."""
    window = foreign.get("sliding_window", 4096) if foreign.get("use_sliding_window") else None
    first = foreign.get("max_window_layers", 28)

    def late(index: int) -> bool:
        return window is not None and index >= first

    windowed = read_windowed(foreign, depth=depth, otherwise=late)
    if windowed and window is None:
        what = f"layer_types has {len(windowed)} blocks of type {WINDOW!r}"
        raise ValueError(f"{what}, but use_sliding_window or sliding_window gives no window")
    return {"window": window if windowed else None, "windowed": windowed}


def write_late_windows(window: int | None, windowed: tuple[int, ...], depth: int) -> dict[str, Any]:
    """What Qwen 2 and 3 say of their windows."""
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": min(windowed, default=depth),
        "layer_types": write_windowed(windowed, depth),
    }
