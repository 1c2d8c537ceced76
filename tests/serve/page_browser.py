"""A headless browser for the chat page, and a record of all that a page should not have done."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 15_000  # milliseconds that a page may take for anything
PHONE = {"width": 360, "height": 740}

# before any script of the page: what would show that a text was run, or a rule of the page broken
WATCH = """
window.faults = [];
for (const name of ["alert", "confirm", "prompt", "open", "print"])
  window[name] = () => window.faults.push(`${name} was called`);
document.addEventListener("securitypolicyviolation", (event) =>
  window.faults.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));
window.addEventListener("error", (event) => window.faults.push(`error: ${event.message}`));
window.addEventListener("unhandledrejection", (event) =>
  window.faults.push(`rejection: ${event.reason}`));
"""


@contextmanager
def browser():
    """The Chromium of the system where there is one, else the one that playwright brought."""
    from playwright.sync_api import sync_playwright  # of the extra browser, which few tests need

    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        # --no-sandbox: the tests may run as root in a container, where Chromium cannot make its own
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@dataclass
class Watched:
    """A page, the addresses and bodies of its requests, and what its console said."""

    page: Any  # of playwright
    asked: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """All that must not happen: scripts run, rules broken, complaints of the console."""
        return [*self.page.evaluate("window.faults"), *self.said]

    def elsewhere(self, origin: str) -> list[str]:
        """Requests that left the server."""
        return [address for address in self.asked if not address.startswith(origin)]


@contextmanager
def tab(opened, **settings):
    """A fresh tab, without memory of others; answers of refused requests are no complaints."""
    settings = {"viewport": {"width": 1200, "height": 800}, **settings}
    context = opened.new_context(**settings)
    context.set_default_timeout(SECONDS)
    context.add_init_script(WATCH)
    page = context.new_page()
    watched = Watched(page)
    page.on("request", lambda request: record(watched, request))
    page.on("console", lambda message: listen(watched, message))
    try:
        yield watched
    finally:
        context.close()


def record(watched, request):
    """Keep where a request went and what it held."""
    watched.asked.append(request.url)
    if request.method == "POST":
        watched.bodies.append(request.post_data_json)


def listen(watched, message):
    """Keep what the console says of errors and warnings."""
    refused = message.text.startswith("Failed to load resource: the server responded with")
    if message.type in ("error", "warning") and not refused:
        watched.said.append(message.text)


@contextmanager
def visiting(opened, url, **settings):
    """A tab on a page of a server; when it is left, the page must have been quiet."""
    with tab(opened, **settings) as watched:
        watched.page.goto(url)
        yield watched
        assert watched.faults() == []
        assert watched.elsewhere(url.rstrip("/")) == []


# What a person does on the page


def say(page, words):
    """Write a message and send it."""
    page.get_by_label("Message", exact=True).fill(words)
    page.get_by_role("button", name="Send", exact=True).click()


def ask(page, words):
    """Send a message and wait until it is answered."""
    say(page, words)
    return answered(page)


def answered(page):
    """Wait for the end of the answer; returns its text."""
    page.get_by_role("button", name="Answer again").wait_for()
    return page.locator(".turn.assistant .body").last.inner_text()


def settings(page):
    """Open the settings where they are not."""
    if not page.get_by_role("complementary").is_visible():
        page.get_by_role("button", name="Settings", exact=True).click()


def note(page):
    """The note above the message field."""
    return page.get_by_role("alert")
