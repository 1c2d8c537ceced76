"""Markup that is safe by construction: every string is escaped unless it is already `Html`.

The report shows texts that nobody has checked (samples of a model, names of files), so there is
one way to make an element, `element`, and it escapes what it is given. Characters that HTML or
UTF-8 cannot hold (controls, lone surrogates) become U+FFFD, the replacement character.
"""

import html
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Text that is markup already. Nothing but this room's own elements should make one."""


Content: TypeAlias = Html | str | None


def clean(text: object) -> str:
    """Text without characters that a page cannot hold; line ends become newlines.

    >>> clean("a\\r\\nb\\x00")
    'a\\nb\\ufffd'
    """
    return FORBIDDEN.sub("\ufffd", re.sub(r"\r\n?", "\n", str(text)))


def escape(content: Content) -> Html:
    """Markup for a piece of content: `Html` as it is, a string escaped, None as nothing."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(clean(content), quote=True)) if content is not None else Html()


def join(contents: Iterable[Content]) -> Html:
    """Pieces of content one after the other."""
    return Html("".join(map(escape, contents)))


def element(name: str, *children: Content, **attributes: object) -> Html:
    """One element. A final `_` of an attribute's name falls off, the others become hyphens.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{''.join(pairs)}>{join(children)}</{name}>")


def paragraphs(*texts: Content, class_: str | None = None) -> Html:
    """A paragraph for each text that is not empty."""
    return join(element("p", text, class_=class_) for text in texts if text)


def row(cells: Sequence[Content], *, classes: Sequence[str | None] = (), **attributes: str) -> Html:
    """A row of a table; its first cell heads the row. `classes` go with the cells in order."""
    kinds = [*classes, *[None] * (len(cells) - len(classes))]
    first = element("th", cells[0], scope="row", class_=kinds[0])
    rest = (element("td", c, class_=k) for c, k in zip(cells[1:], kinds[1:], strict=True))
    return element("tr", first, *rest, **attributes)


def table(
    heads: Sequence[str],
    rows: Iterable[Html],
    *,
    classes: Sequence[str | None] = (),
    caption: str | None = None,
    class_: str | None = None,
) -> Html:
    """A table that scrolls inside its own box where the screen is narrow."""
    kinds = [*classes, *[None] * (len(heads) - len(classes))]
    head = [element("th", h, scope="col", class_=k) for h, k in zip(heads, kinds, strict=True)]
    body = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *head)) if any(heads) else None,
        element("tbody", *rows),
        class_=class_,
    )
    # A box that scrolls must be reachable by keyboard.
    return element("div", body, class_="scroll", tabindex="0", role="group", aria_label=caption)


def pairs(entries: Iterable[tuple[str, Content]]) -> Html:
    """A list of terms with what they are."""
    return element(
        "dl",
        *(element("div", element("dt", term), element("dd", what)) for term, what in entries),
        class_="pairs",
    )


def folded(title: str, *contents: Content) -> Html:
    """Content that opens on a click."""
    return element("details", element("summary", title), *contents)


def bar(value: float, interval: Sequence[float] | None, longest: float) -> Html:
    """A bar with its interval as a bracket. The number beside it says the same in text."""

    def share(part: float) -> str:
        return f"{100 * min(1.0, max(0.0, part / longest)):.2f}%"

    bracket = None
    if interval:
        low, high = interval
        bracket = element("b", style=f"left:{share(low)};width:{share(high - low)}")
    return element(
        "div",
        element("i", style=f"width:{share(value)}"),
        bracket,
        class_="bar",
        aria_hidden="true",
    )
