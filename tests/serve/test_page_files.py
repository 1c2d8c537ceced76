"""The files of the chat page: one script, nothing inline, no markup made from text, readable."""

import re
from html.parser import HTMLParser

import pytest

from stemma.serve.app import PAGE

SCRIPTS = sorted(PAGE.glob("*.js"))


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


TAGS = Tags((PAGE / "index.html").read_text("utf-8")).found


def test_page_has_one_script_and_nothing_inline():
    scripts = [attributes for tag, attributes in TAGS if tag == "script"]
    assert [script["src"] for script in scripts] == ["page/chat.js"]
    assert not [tag for tag, _ in TAGS if tag == "style"]
    for tag, attributes in TAGS:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            address = attributes.get(name, "")
            assert address.startswith("#") or not address or (PAGE.parent / address).is_file()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_keep_the_sizes_of_the_house(path):
    text = path.read_text("utf-8")
    assert text.startswith("// ") and len(text.splitlines()) <= 600
    functions = re.findall(r"^(?:export |async )*function.*?^}$", text, re.MULTILINE | re.DOTALL)
    assert functions and max(len(one.splitlines()) for one in functions) <= 80


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_nodes_and_parse_no_markup(path):
    text = path.read_text("utf-8")
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|\bFunction\("
    )
    assert not re.search(
        sinks + r"|createContextualFragment|srcdoc|import\(|https?://(?!www\.w3)", text
    )


def test_scripts_use_only_what_the_page_has():
    ids = {attributes["id"] for _, attributes in TAGS if "id" in attributes}
    text = "".join(path.read_text("utf-8") for path in SCRIPTS)
    used = set(re.findall(r'byId\("([\w-]+)"\)', text))
    icons = {f"icon-{name}" for name in re.findall(r'icon\("(\w+)"\)', text)}
    assert used and icons and used | icons <= ids


def colours(theme):
    """The colours of one theme by name, as red, green and blue from 0 to 1."""
    text = (PAGE / "chat.css").read_text("utf-8")
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", text)
    codes = {name: (light, dark)[theme == "dark"] for name, light, dark in found}
    return {n: [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for n, c in codes.items()}


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """Contrast by WCAG 2.2: 1 to 21."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_by_weak_eyes(theme):
    found = colours(theme)
    grounds = ("paper", "panel", "raised")
    words = [(word, ground) for word in ("ink", "muted", "accent") for ground in grounds]
    words += [("on-accent", "accent"), ("ink", "soft"), ("ink", "shade"), ("ink", "bad-paper")]
    for word, ground in words:
        assert contrast(found[word], found[ground]) >= 4.5, (word, ground)
    for ground in grounds:  # the edges of fields
        assert contrast(found["edge"], found[ground]) >= 3, ground
