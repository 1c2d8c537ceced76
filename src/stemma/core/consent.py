"""Consent: terms that a person must agree to before files are fetched, asked for once.

Some weights may be used only by those who accept their terms. A person at a terminal is shown the
licence and asked; where nobody can answer, the use is refused with the command that agrees. What
was agreed to is written down beside the asset and counts as long as licence and terms stay the
same.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import UsageError
from stemma.core.files import write_json

YES = ("y", "yes")


class Agreement(StrictModel):
    """What was agreed to, and when."""

    format_version: Literal[1] = 1
    licence: str = Field(description="name of the licence")
    terms: str = Field(description="address of its text")
    agreed: str = Field(description="when, in UTC")


def has_agreed(record: Path, *, licence: str, terms: str) -> bool:
    """Whether a record says that just this licence was agreed to."""
    try:
        found = Agreement.model_validate_json(record.read_bytes())
    except (OSError, ValueError):
        return False
    return (found.licence, found.terms) == (licence, terms)


def require_consent(
    name: str, record: Path, *, licence: str, terms: str, given: bool = False
) -> None:
    """Go on only where the terms of `name` are agreed to, and write that down.

    They are where `record` says so, where consent is `given`, or where a person at the terminal
    says yes. Raises UsageError, which tells how to agree, otherwise; OSError where the record
    cannot be written.
    """
    if has_agreed(record, licence=licence, terms=terms):
        return
    if not given and not (may_ask() and asked(name, licence, terms)):
        what = f"its licence, {licence} ({terms}), must be agreed to before use"
        fix = f"read it, then: stemma pull {name} --accept-licence"
        raise UsageError(what, place=name, fix=fix)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    agreement = Agreement(licence=licence, terms=terms, agreed=now)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, agreement.model_dump(mode="json"))


def may_ask() -> bool:
    """Whether a person sees a question and can answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def asked(name: str, licence: str, terms: str) -> bool:
    """The answer of the person at the terminal; anything but yes is no."""
    question = f"{name} may be used under its licence: {licence}\n{terms}\nDo you agree? [y/N] "
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in YES
