"""Configuration: a mistake is one complaint, in the same words wherever it is made."""

import pytest
from pydantic import Field, ValidationError, model_validator

from stemma.core.config import Complaint, StrictModel, complaint, multiple


class Size(StrictModel):
    width: int = Field(ge=1)
    heads: int = 1
    numbers: dict[str, int] = {}

    @model_validator(mode="after")
    def _fits(self):
        multiple("width", self.width, "heads", self.heads)
        return self


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ({}, Complaint("width", "required key is missing", "missing")),
        ({"width": 2, "deep": 1}, Complaint("deep", "unknown key", "extra_forbidden")),
        (
            {"width": 0},
            Complaint(
                "width", "input should be greater than or equal to 1 (got 0)", "greater_than_equal"
            ),
        ),
        (
            {"width": "x" * 99},
            Complaint("width", f"input should be a valid integer (got '{'x' * 59})", "int_type"),
        ),
        (
            {"width": 3, "heads": 2},
            Complaint("", "width (3) must be a multiple of heads (2)", "value_error"),
        ),
    ],
    ids=["missing", "unknown", "small", "long", "together"],
)
def test_first_complaint_in_our_words(numbers, wanted):
    with pytest.raises(ValidationError) as caught:
        Size(**numbers)
    assert complaint(caught.value) == wanted


def test_a_mapping_is_not_repeated_in_the_complaint():
    with pytest.raises(ValidationError) as caught:
        Size(width={"a": 1})
    assert complaint(caught.value).what == "input should be a valid integer"
