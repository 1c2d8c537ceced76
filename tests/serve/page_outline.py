"""Outlines of Markdown: what the page made of a text, and what a reference makes of it.

An outline is nested lists of tag and contents. What the page does otherwise on purpose is taken out
of both: heads and wrappers of code and tables, levels of headings, paragraphs of list items, and
how a link is opened.
"""

from html.parser import HTMLParser

from markdown_it import MarkdownIt

# the same outline, walked over the page's nodes; runs in the browser
OUTLINE = """
(node) => {
  const outline = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    const inner = [...node.childNodes].map(outline);
    const tag = node.localName;
    if (tag === "figure") return outline(node.querySelector("pre"));
    if (node.className === "table") return inner[0];
    return [tag === "a" ? `a ${node.getAttribute("href")}` : tag, ...inner];
  };
  return [...node.childNodes].map(outline);
}
"""
VOID = {"hr", "br"}
NAMES = {"s": "del", "h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6"}


class Reader(HTMLParser):
    """The outline of HTML that the reference wrote."""

    def __init__(self):
        super().__init__()
        self.open = [[""]]

    def handle_starttag(self, tag, attrs):
        node = [NAMES.get(tag, tag) if tag != "a" else f"a {dict(attrs)['href']}"]
        self.open[-1].append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].append(data)


def plain(node):
    """An outline without the differences, texts joined and without the spaces between blocks."""
    if isinstance(node, str):
        return node
    tag, *inner = node
    joined = []
    for child in map(plain, inner):
        if tag == "li" and child[0] == "p" and not "".join(map(str, joined)).strip():
            joined = child[1:]
        elif isinstance(child, str) and joined and isinstance(joined[-1], str):
            joined[-1] += child
        else:
            joined.append(child)
    if tag == "code":
        return [tag, "".join(joined).removesuffix("\n")]
    kept = [child.strip("\n") if isinstance(child, str) else child for child in joined]
    return [tag, *(child for child in kept if child)]


def reference(text):
    """What CommonMark with tables and strikethrough makes of a text; lines stay lines."""
    options = {"html": False, "linkify": False, "breaks": True}
    reader = Reader()
    known = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    reader.feed(known.render(text))
    return plain(["body", *reader.open[0][1:]])
