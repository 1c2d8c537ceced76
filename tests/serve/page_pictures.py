"""Pictures of the chat page for the documents, with answers that are given beforehand.

    python -m tests.serve.page_pictures docs/pictures

The words are canned, since no small model writes well enough; everything else is the page itself.
"""

import sys
from pathlib import Path

from tests.serve.page_answers import answering
from tests.serve.page_browser import PHONE, browser, tab

SHEET = """\
A hash table keeps pairs of a **key** and a value, and finds a value by its key in about the same \
time however many there are.

1. A *hash function* turns the key into a number.
2. The number, taken modulo the size of the table, says in which slot to look.
3. Keys that meet in one slot are told apart by comparing them.

```python
slots = [[] for _ in range(8)]

def put(key, value):
    slots[hash(key) % len(slots)].append((key, value))

def get(key):
    return next(v for k, v in slots[hash(key) % len(slots)] if k == key)
```
"""
TABLE = """\
For single keys it usually is. With `n` pairs the costs are:

| structure | find | insert | sorted |
| --- | ---: | ---: | :---: |
| hash table | O(1) | O(1) | no |
| balanced tree | O(log\u00a0n) | O(log\u00a0n) | yes |
| sorted list | O(log\u00a0n) | O(n) | yes |

So take a hash table unless you need the keys *sorted*; see the \
[Python manual](https://docs.python.org/3/library/stdtypes.html#dict).
"""
TURNS = [
    ("What is a hash table? Explain it with a short example.", SHEET),
    ("Is it always the fastest choice? Compare it with a tree.", TABLE),
]
DESK = {"width": 1100, "height": 860}
LOOKS = {
    "chat-light": {"color_scheme": "light"},
    "chat-dark": {"color_scheme": "dark"},
    "chat-phone": {
        "color_scheme": "light",
        "viewport": PHONE,
        "has_touch": True,
        "is_mobile": True,
    },
}


def pieces(text, size=4):
    """A text in parts of a few characters, as a model writes it."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def talk(page, canned):
    """Ask all questions and wait for the answers."""
    for question, answer in TURNS:
        canned.answer = lambda body, answer=answer: pieces(answer)
        page.get_by_label("Message", exact=True).fill(question)
        page.get_by_role("button", name="Send", exact=True).click()
        page.get_by_role("button", name="Answer again").wait_for()


def take_pictures(folder: Path):
    """Write one picture for each look."""
    with browser() as opened, answering(pause=0.03) as canned:
        for name, look in LOOKS.items():
            with tab(opened, **{"viewport": DESK, **look}) as watched:
                watched.page.goto(canned.url)
                if name == "chat-dark":
                    watched.page.get_by_role("button", name="Settings", exact=True).click()
                talk(watched.page, canned)
                watched.page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
