"""Rotary positions in a `config.json`, the same for all families that Hugging Face stores alike.

The base is written twice: as `rope_theta` for transformers 4 and inside `rope_parameters` for
transformers 5; so is what scales the angles, which transformers 4 looks for in `rope_scaling`. A
file that says two things is refused, as is every scheme and key that nothing here computes.
"""

from collections.abc import Mapping
from typing import Any

from stemma.nn.rope_scaling import NTK, Scaling, Unscaled, sharpness

RopeNumbers = dict[str, Any]
PLACES = ("rope_parameters", "rope_scaling")
KEYS: Mapping[str, Mapping[str, str]] = {  # by `rope_type`: theirs, ours
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor", "max_position_embeddings": "context"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "context",
        "beta_fast": "fast",
        "beta_slow": "slow",
        "attention_factor": "temperature",
        "truncate": "whole",
    },
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "context",
        "high_freq_factor": "fast",
        "low_freq_factor": "slow",
    },
}
OPTIONAL = {"beta_fast", "beta_slow", "attention_factor", "truncate"}
READ = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}  # by every scheme
UNREAD = {"original_max_position_embeddings"}  # beside schemes whose equation does not have it
SHARES = ("mscale", "mscale_all_dim")  # of YaRN, as DeepSeek writes its factor
TAGS = {"none": "default"}  # where ours is not the foreign name


def read_rope(
    foreign: Mapping[str, Any], *, base: float = 10_000.0, partial: bool = False
) -> dict[str, Any]:
    """`rope_base` and `rope_scaling` of a config.

    `base` is the class's own default. `partial` lets `partial_rotary_factor` pass, for families
    that read it themselves. Raises KeyError for a key that must be there, ValueError for a scheme
    that we cannot compute.
    """
    bases = [foreign["rope_theta"]] if foreign.get("rope_theta") is not None else []
    scalings: list[RopeNumbers] = []
    for name in PLACES:
        rope = foreign.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ValueError(f"{name} is {rope!r}, not an object")
        scalings.append(read_scaling(rope, foreign, name=name, partial=partial))
        bases += [rope["rope_theta"]] if rope.get("rope_theta") is not None else []
    if any(each != bases[0] for each in bases):
        raise ValueError(f"rope_theta is given twice, as {bases[0]} and as {bases[-1]}")
    if any(each != scalings[0] for each in scalings):
        raise ValueError(f"rope_scaling ({scalings[1]}) and rope_parameters ({scalings[0]}) differ")
    return {
        "rope_base": bases[0] if bases else base,
        "rope_scaling": scalings[0] if scalings else {"kind": "none"},
    }


def read_base(foreign: Mapping[str, Any], *, base: float = 10_000.0, partial: bool = False) -> Any:
    """The base of the angles, for families without any scheme. Raises ValueError where one is."""
    numbers = read_rope(foreign, base=base, partial=partial)
    kind = numbers["rope_scaling"]["kind"]
    if kind != "none":
        raise ValueError(f"rope_scaling of type {kind!r} is not supported, only 'default'")
    return numbers["rope_base"]


def read_scaling(
    rope: Mapping[str, Any], foreign: Mapping[str, Any], *, name: str, partial: bool = False
) -> RopeNumbers:
    """Numbers of a scheme from one object of the config, which the file calls `name`."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in KEYS:
        wanted = ", ".join(map(repr, KEYS))
        raise ValueError(f"{name} of type {kind!r} is not supported, only {wanted}")
    if not partial and rope.get("partial_rotary_factor", 1.0) not in (1.0, None):
        what = f"a partial_rotary_factor of {rope['partial_rotary_factor']!r} is not supported"
        raise ValueError(f"{name}: {what}")
    keys = KEYS[kind]
    known = READ | UNREAD | keys.keys() | (set(SHARES) if kind == "yarn" else set())
    if unknown := sorted(rope.keys() - known):
        raise ValueError(f"{name} has the unknown key {unknown[0]!r}")
    if kind == "default":
        return {"kind": "none"}
    found = _filled(rope, foreign, kind)
    for theirs in keys:
        if found.get(theirs) is None and theirs not in OPTIONAL:
            raise KeyError(f"{name}.{theirs}")
    numbers = {ours: found[key] for key, ours in keys.items() if found.get(key) is not None}
    return {"kind": kind, **numbers}


def _filled(rope: Mapping[str, Any], foreign: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """One object of the config with what transformers adds to it from outside."""
    found, original = dict(rope), "original_max_position_embeddings"
    longest = found["max_position_embeddings"] = foreign.get("max_position_embeddings")
    # a length outside of the object counts more than one inside
    found[original] = foreign.get(original) or rope.get(original) or longest
    if kind == "yarn" and found.get("factor") is None and found[original]:
        found["factor"] = longest / found[original] if isinstance(longest, int) else None
    shares, factor = [rope.get(key) for key in SHARES], found.get("factor")
    if all(shares) and factor is not None and found.get("attention_factor") is None:
        over, under = (sharpness(factor, share) for share in shares if share)
        found["attention_factor"] = over / under
    return found


def key_of(scaling: Any, ours: str) -> str:
    """What a file calls a number of a scheme, `scaling` as it was read from one."""
    kind = scaling.get("kind") if isinstance(scaling, Mapping) else None
    return next((key for key, name in KEYS.get(str(kind), {}).items() if name == ours), ours)


def write_rope(
    base: float, scaling: Scaling | None = None, *, dim: int, **more: Any
) -> dict[str, Any]:
    """What a config says of its rotary positions: in the forms of transformers 4 and 5.

    `dim` rotary features are needed for a scheme that transformers has no word for: NTK with one
    factor is a larger base. `more` is written into the object, as it is.
    """
    if isinstance(scaling, NTK):
        base, scaling = scaling.base(dim, base), Unscaled()
    rope = {**write_scaling(scaling or Unscaled()), **more}
    found: dict[str, Any] = {"rope_parameters": {"rope_theta": base, **rope}, "rope_theta": base}
    if rope["rope_type"] != "default":
        found["rope_scaling"] = rope
    if rope["rope_type"] == "dynamic":  # the length that its factor is counted from
        found["max_position_embeddings"] = rope.pop("max_position_embeddings")
        del found["rope_parameters"]["max_position_embeddings"]
    return found


def write_scaling(scaling: Any) -> dict[str, Any]:
    """One scheme as an object of a config."""
    kind = TAGS.get(scaling.kind, scaling.kind)
    numbers = {theirs: getattr(scaling, ours) for theirs, ours in KEYS[kind].items()}
    return {"rope_type": kind, **{key: n for key, n in numbers.items() if n is not None}}
