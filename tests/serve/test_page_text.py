"""The page's Markdown in a browser: attacks stay text, links are safe, and it is read as it should.

The reference is markdown-it-py, for what a text means; for a text that is still being written it is
the same text read at once.
"""

import re
from contextlib import contextmanager

import pytest

from tests.serve.page_answers import answering
from tests.serve.page_browser import ask
from tests.serve.page_outline import OUTLINE, plain, reference
from tests.serve.page_texts import ALIKE, ATTACKS, EVERYTHING, HEAVY, LINKS

pytestmark = pytest.mark.browser


# what the page may hold in its turns, and the attributes that may be on it
ELEMENTS = """
[...document.querySelectorAll("#turns *")]
  .map((node) => [node.localName, ...node.getAttributeNames()])
"""
TURNS = {"li", "h2", "div", "p", "button", "svg", "use", "span"}
MARKDOWN = {"a", "blockquote", "br", "code", "del", "em", "figcaption", "figure", "h3", "hr", "ol"}
MARKDOWN |= {"pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}
ATTRIBUTES = {
    "aria-busy",
    "aria-hidden",
    "aria-label",
    "class",
    "data-act",
    "dir",
    "href",
    "hidden",
}
ATTRIBUTES |= {"rel", "tabindex", "target", "title", "type"}


def check_nodes(page):
    for name, *attributes in page.evaluate(ELEMENTS):
        assert name in TURNS | MARKDOWN and set(attributes) <= ATTRIBUTES, (name, attributes)
    for link in page.locator("#turns a").all():
        assert re.match(r"https?://|mailto:", link.get_attribute("href"))
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("target") == "_blank"


def test_attacks_stay_text(visit):
    """Each is sent, and comes back as an answer in parts of three characters."""

    def echo(body):
        text = body["messages"][-1]["content"]
        return [text[at : at + 3] for at in range(0, len(text), 3)]

    with answering(answer=echo) as canned, visit(canned.url) as watched:
        page = watched.page
        for attack in ATTACKS:
            ask(page, attack)
            assert canned.requests[-1]["messages"][-1]["content"] == attack
        check_nodes(page)
        assert page.locator("#turns a").count() >= 3, "some of them hold links that are harmless"
        page.get_by_label("System prompt").evaluate(
            "(field, text) => field.value = text", ATTACKS[3]
        )
        page.reload()
        assert page.locator(".turn").count() == 2 * len(ATTACKS)
        check_nodes(page)
        words = page.locator("#turns").inner_text()
        assert "<script>alert(1)</script>" in words and "javascript:alert(1)" in words


@contextmanager
def markdown_page(visit):
    """A page to which the page's own renderer is at hand as `render(text)`."""
    with answering() as canned, visit(canned.url) as watched:
        watched.page.evaluate(
            """async () => {
              const { Markdown } = await import("/page/markdown.js");
              window.Markdown = Markdown;
              window.render = (text, element = document.createElement("div")) => {
                new Markdown(element).update(text);
                return element;
              };
            }"""
        )
        yield watched.page


def test_links_lead_to_the_web_or_to_mail(visit):
    with markdown_page(visit) as page:
        href = "(text) => render(text).querySelector('a')?.getAttribute('href') ?? null"
        for address, target in LINKS.items():
            if not address.startswith("<"):
                assert page.evaluate(href, f"[x]({address})") == target, address
                title = page.evaluate(
                    "(t) => render(t).querySelector('a')?.title", f"[x]({address})"
                )
                assert title == target
                shown = page.evaluate("(text) => render(text).textContent", f"[x]({address})")
                assert target or shown == f"[x]({address})"
            bare = target if address.lower().startswith(("http", "<")) else None
            assert page.evaluate(href, f"see {address}.") == bare, address
        posing = "(text) => render(text).textContent"
        assert "evil.example" in page.evaluate(
            posing, "[https://bank.example](https://evil.example/)"
        )
        assert "evil.example" in page.evaluate(posing, "[www.bank.example](https://evil.example/)")


def test_markdown_is_read_as_the_reference_reads_it(visit):
    with markdown_page(visit) as page:
        for text in ALIKE:
            found = page.evaluate(f"(text) => ({OUTLINE})(render(text))", text)
            assert plain(["body", *found]) == reference(text), text


def test_letter_by_letter_gives_the_same_nodes_as_at_once(visit):
    grown = """(text) => {
      const element = document.createElement("div");
      const growing = new Markdown(element);
      for (let end = 1; end <= text.length; end += 1) {
        growing.update(text.slice(0, end));
        if (!element.isEqualNode(render(text.slice(0, end)))) return text.slice(0, end);
      }
      return null;
    }"""
    with markdown_page(visit) as page:
        for text in [EVERYTHING, EVERYTHING.replace("\n", "\r\n"), *ALIKE, *ATTACKS]:
            assert page.evaluate(grown, text) is None


def test_no_text_takes_long(visit):
    """Careless readers need minutes for some of these; ours has a generous second or two."""
    clocked = """(text) => {
      const started = performance.now();
      render(text);
      return performance.now() - started;
    }"""
    with markdown_page(visit) as page:
        took = {name: page.evaluate(clocked, text) for name, text in HEAVY.items()}
        assert max(took.values()) < 4000, took
