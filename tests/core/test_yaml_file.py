"""YAML: every mistake at its line, types by the field, overrides by the same rules."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from stemma.core import yaml_file
from stemma.core.config import StrictModel
from stemma.core.errors import UsageError


class Circle(StrictModel):
    kind: Literal["circle"]
    radius: Annotated[float, Field(gt=0)]


class Square(StrictModel):
    kind: Literal["square"]
    side: int


class Drawing(StrictModel):
    name: str = "x"
    rate: float = 1.0
    count: int = Field(default=1, ge=1)
    flag: bool = False
    shape: Circle | Square | None = None
    words: tuple[str, ...] = ()
    by_name: dict[str, int] = {}
    level: Literal["low", "high"] = "low"


def read(text, *overrides):
    root = yaml_file.parse_yaml(text, "d.yaml")
    for assignment in overrides:
        yaml_file.override(root, assignment)
    return yaml_file.build(Drawing, root)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("3", 3.0), ("6M", 6e6), ("-.5", -0.5), ("1.5k", 1500.0), ("2GiB", 2.0**31)],
)
def test_plain_numbers_take_the_type_of_the_field(written, value):
    got = read(f"rate: {written}").rate
    assert got == value and isinstance(got, float)


def test_whole_numbers_with_units():
    assert read("count: 2MiB").count == 1 << 21
    assert read("count: 1_000").count == 1000
    assert read("count: 1e6").count == 1_000_000


def test_plain_word_stays_text_where_text_is_wanted():
    assert read("name: 1e-4").name == "1e-4"
    assert read("name: no").name == "no"
    assert read('words: [a, "2", yes]').words == ("a", "2", "yes")


def test_nested_values():
    got = read("shape: {kind: circle, radius: 2}\nby_name: {a: 1, b: 2k}\nlevel: high")
    assert got.shape == Circle(kind="circle", radius=2.0)
    assert got.by_name == {"a": 1, "b": 2000} and got.level == "high"
    assert read("shape: null").shape is None


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("name: a\nrat: 1", "d.yaml:2: rat", "did you mean rate"),
        ('rate: "3e-4"', "d.yaml:1: rate", "expected a number"),
        ("flag: yes", "d.yaml:1: flag", "expected true or false"),
        ("count: 1.5", "d.yaml:1: count", "whole number"),
        ("name: a\ncount: 0", "d.yaml:2: count", "greater than or equal to 1"),
        ("rate: [1]", "d.yaml:1: rate", "got a list"),
        ("name: a\nname: b", "d.yaml:2:1", "stands twice (first at d.yaml:1:1)"),
        ("name: a\n\tcount: 2", "d.yaml:2:1", "no tabs"),
        ("a:\n- b\n c: d", "d.yaml:3", "not YAML"),
        ("name: !!python/object/apply:os.system [ls]", "d.yaml:1", "refused"),
        ("name: !thing a", "d.yaml:1", "refused"),
        ("shape: {kind: circel, radius: 1}", "d.yaml:1: kind", "did you mean circle"),
        ("shape: {radius: 1}", "d.yaml:1: shape.kind", "circle, square"),
        ("shape: {kind: circle, radius: 0}", "d.yaml:1: radius", "greater than 0"),
        ("shape: {kind: square}", "d.yaml:1: side", "required"),
        ("level: hihg", "d.yaml:1: level", "did you mean high"),
        ("words: word", "d.yaml:1: words", "expected a list"),
        ("by_name: {a: x}", "d.yaml:1: by_name.a", "whole number"),
        ("", "d.yaml", "empty"),
        ("- 1", "d.yaml:1", "expected keys and values"),
        ("rate: 1e999", "d.yaml:1: rate", "expected a number"),
        ("rate: .nan", "d.yaml:1: rate", "expected a number"),
    ],
)
def test_mistake_is_named_at_its_place(text, place, words):
    with pytest.raises(UsageError) as caught:
        read(text)
    assert str(caught.value).startswith(place) and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_typed_and_checked():
    assert read("rate: 1", "rate=2e-3").rate == 2e-3
    assert read("name: x", "shape={kind: square, side: 3}").shape == Square(kind="square", side=3)
    assert read("shape: {kind: square, side: 1}", "shape.side=4").shape.side == 4
    assert read("rate: 1", "shape.kind=square", "shape.side=5").shape.side == 5  # absent before


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("rat=1", "did you mean rate"),
        ("rate=fast", "expected a number"),
        ("rate", "written key.path=value"),
        ("shpe.side=1", "did you mean shape"),
        ("shape.sid=1", "kind"),
        ("rate.x=1", "holds no keys"),
        ("count=-1", "greater than"),
    ],
)
def test_wrong_override_names_itself(assignment, words):
    with pytest.raises(UsageError) as caught:
        read("rate: 1", assignment)
    assert words in str(caught.value) and assignment in str(caught.value)


def test_deep_nesting_is_refused_without_recursion_error():
    with pytest.raises(UsageError, match="deep|not YAML"):
        read("name: " + "[" * 5000 + "]" * 5000)


def test_alias_bomb_stays_small():
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30)]
    with pytest.raises(UsageError):
        read("\n".join(lines))


@pytest.mark.parametrize("raw", [b"name: \xff", b"\xff\xfen\x00"])
def test_file_that_is_not_utf8(tmp_path, raw):
    path = tmp_path / "r.yaml"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=r"r\.yaml:1: not UTF-8"):
        yaml_file.read_yaml(path)
