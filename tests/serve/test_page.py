"""The chat page in a browser does what it is for, with the real server and tiny random models.

Where a text must be known before, the server of `page_answers` says it. After each test no script
was run that is not the page's, no rule of the content policy was broken, nothing was asked of
another server, and the console was silent.
"""

import re
import time
from dataclasses import replace

import pytest

from stemma import api
from stemma.serve.limits import Limits
from tests.serve.conftest import served
from tests.serve.page_answers import answering, model
from tests.serve.page_browser import PHONE, answered, ask, note, say, settings

pytestmark = pytest.mark.browser
WRITTEN = "() => document.querySelector('.assistant .body').textContent.length > 20"
KEY = "correct-horse-battery-staple"
KEY_BOX = "This server asks for a key"


@pytest.fixture(scope="module")
def endless(models):
    """The models without ends: an answer lasts until its limit, or until it is stopped."""
    return [replace(one, chat_ends=frozenset(), text_ends=frozenset()) for one in models]


@pytest.fixture
def server(endless, start):
    with start(endless, limits=Limits(leaving=1.0)) as live:
        yield live


def free(live):
    """Wait until the engine has nothing to"""
    started = time.monotonic()
    while live.service.engine.state() != {"running": 0, "waiting": 0}:
        assert time.monotonic() - started < 10, live.service.engine.state()
        time.sleep(0.01)


def limit_tokens(page, count):
    settings(page)
    page.get_by_label("Tokens at most").fill(str(count))


# how long the text of the answer was after each change of the page
LENGTHS = """
window.lengths = [];
const WHOLE = { childList: true, subtree: true, characterData: true };
new MutationObserver(() => {
  const body = document.querySelector(".turn.assistant:last-child .body");
  if (body && body.textContent.length !== lengths.at(-1)) lengths.push(body.textContent.length);
}).observe(document.getElementById("turns"), WHOLE);
"""


def test_answer_is_seen_while_it_is_written(server, visit):
    with visit(server.url) as watched:
        page = watched.page
        limit_tokens(page, 300)
        page.evaluate(LENGTHS)
        text = ask(page, "hi")
        lengths = page.evaluate("lengths")
        assert len(lengths) >= 5 and lengths == sorted(lengths) and len(text) > 50
        (body,) = watched.bodies
        assert body["messages"] == [{"role": "user", "content": "hi"}] and body["stream"]
        status = page.locator(".turn.assistant .status").inner_text().replace("\xa0", " ")
        assert re.search(r"300 tokens · [\d.]+ tokens/s · [\d.]+ s · seed \d+", status), status
        assert "cut at the limit" in status
        page.get_by_role("button", name="Continue").click()
        answered(page)
        roles = [message["role"] for message in watched.bodies[1]["messages"]]
        assert roles == ["user", "assistant", "user"]


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_keeps_what_came_and_frees_the_server(way, server, visit):
    with visit(server.url) as watched:
        page = watched.page
        say(page, "hi")
        page.wait_for_function(WRITTEN)
        if way == "button":
            page.get_by_role("button", name="Stop", exact=True).click()
        else:
            page.keyboard.press("Escape")
        text = answered(page)
        free(server)
        assert len(text) > 10 and "stopped" in page.locator(".assistant .status").inner_text()
        limit_tokens(page, 5)
        ask(page, "again")
        messages = watched.bodies[1]["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert len(messages[1]["content"]) > 10


def test_versions_of_an_answer(server, visit):
    with visit(server.url) as watched:
        page = watched.page
        limit_tokens(page, 20)
        first = ask(page, "hi")
        page.get_by_role("button", name="Answer again").click()
        second = answered(page)
        assert second != first and page.locator(".place").inner_text() == "2 / 2"
        one, other = watched.bodies
        assert one["seed"] != other["seed"] and one["messages"] == other["messages"]
        page.get_by_role("button", name="Earlier version").click()
        assert page.locator(".assistant .body").inner_text() == first
        ask(page, "go on")  # from the version that is shown
        content = watched.bodies[2]["messages"][1]["content"]
        assert (
            server.ask("/v1/chat/completions", {**one, "stream": False, "stream_options": None})[2][
                "choices"
            ][0]["message"]["content"]
            == content
        )


def test_the_seed_that_is_shown_gives_the_same_answer(server, visit):
    with visit(server.url) as watched:
        page = watched.page
        limit_tokens(page, 20)
        first = ask(page, "hi")
        page.get_by_label("Seed").fill(str(watched.bodies[0]["seed"]))
        page.get_by_role("button", name="New conversation").click()
        assert ask(page, "hi") == first


def test_system_prompt_counts_from_the_next_answer_on(server, visit):
    with visit(server.url) as watched:
        page = watched.page
        limit_tokens(page, 5)
        ask(page, "one")
        page.get_by_label("System prompt").fill("Be brief.")
        ask(page, "two")
        page.get_by_label("System prompt").fill("Be kind.")
        page.get_by_role("button", name="Answer again").click()
        answered(page)
        first, *later = [body["messages"][0] for body in watched.bodies]
        assert first == {"role": "user", "content": "one"}
        assert later == [{"role": "system", "content": text} for text in ("Be brief.", "Be kind.")]
        assert page.get_by_role("button", name="System prompt: Be kind.").is_visible()


def test_sampling_panel(server, visit):
    typed = {
        "Temperature": ("temperature", "0.5", 0.5),
        "Top-p": ("top_p", "0.9", 0.9),
        "Top-k": ("top_k", "40", 40),
        "Min-p": ("min_p", "0.05", 0.05),
        "Repetition penalty": ("repetition_penalty", "1.1", 1.1),
        "Tokens at most": ("max_completion_tokens", "7", 7),
        "Seed": ("seed", "123", 123),
        "Stop strings": ("stop", "END\n\\n\\n", ["END", "\n\n"]),
    }
    with visit(server.url) as watched:
        page = watched.page
        settings(page)
        assert page.get_by_label("Temperature").get_attribute("placeholder") == "0.8"
        for label, (_, text, _) in typed.items():
            page.get_by_label(label).fill(text)
        ask(page, "hi")
        page.reload()  # it remembers
        page.get_by_role("button", name="Answer again").click()
        answered(page)
        for number, body in enumerate(watched.bodies):
            for key, _, value in typed.values():
                # a version after the first is drawn with the next seed
                assert body[key] == (value + number if key == "seed" else value)
        settings(page)
        page.get_by_label("Temperature").fill("7")
        say(page, "not sent")
        assert len(watched.bodies) == 2 and page.get_by_label("Temperature").is_visible()
        page.get_by_role("button", name="Reset").click()
        limit_tokens(page, 5)
        ask(page, "hi")
        assert not watched.bodies[2].keys() & {"temperature", "top_p", "top_k", "min_p", "stop"}


def test_a_key_is_asked_for_kept_in_the_tab_and_sent_in_a_header(endless, start, visit):
    with start(endless, keys=[KEY], limits=Limits(leaving=1.0)) as live, visit(live.url) as watched:
        page = watched.page
        box = page.get_by_role("dialog", name=KEY_BOX)
        for key in ("a-key-that-is-wrong", KEY):
            box.get_by_label("Key", exact=True).fill(key)
            box.get_by_role("button", name="Go on").click()
        box.wait_for(state="hidden")
        limit_tokens(page, 5)
        ask(page, "hi")
        page.reload()
        ask(page, "hi again")
        assert not [address for address in watched.asked if KEY in address]
        assert KEY not in page.evaluate("JSON.stringify(localStorage)")
        assert KEY not in page.content()


def test_without_a_key_the_page_says_so(endless, start, visit):
    with start(endless, keys=[KEY], limits=Limits(leaving=1.0)) as live, visit(live.url) as watched:
        page = watched.page
        page.get_by_role("dialog", name=KEY_BOX).wait_for()
        page.keyboard.press("Escape")
        note(page).get_by_role("button", name="Give the key").click()
        page.get_by_role("dialog", name=KEY_BOX).wait_for()


def test_a_busy_server_is_asked_again(endless, start, visit):
    with start(endless, limits=Limits(waiting=0, leaving=1.0)) as live, visit(live.url) as watched:
        page = watched.page
        limit_tokens(page, 5)
        say(page, "hi")
        assert "busy" in note(page).locator("p").inner_text()
        live.service.engine.limit = 1
        note(page).get_by_role("button", name="Try again").click()
        assert answered(page)
        assert note(page).is_hidden() and len(page.locator(".turn").all()) == 2


def test_oldest_turns_are_left_out_of_a_long_conversation(endless, start, visit):
    chatty, plain_text = endless
    short = [replace(chatty, network=short_context(200)), plain_text]
    with start(short, limits=Limits(leaving=1.0)) as live, visit(live.url) as watched:
        page = watched.page
        limit_tokens(page, 5)
        number = 0
        while not note(page).is_visible():
            number += 1
            assert number < 30
            say(page, f"question {number} " + "the cat sat " * 3)
            page.locator(".assistant .status, .notice:not([hidden])").last.wait_for()
            page.wait_for_function("() => document.getElementById('stop').hidden")
        assert "too long" in note(page).locator("p").inner_text() and number > 2
        note(page).get_by_role("button", name="Leave out the oldest turns").click()
        answered(page)
        sent = watched.bodies[-1]["messages"]
        assert 0 < len(sent) < len(watched.bodies[-2]["messages"])
        assert sent[0]["role"] == "user" and sent[-1]["content"].startswith(f"question {number} ")
        assert (
            page.locator(".seam:visible").inner_text() == "The model no longer sees what is above."
        )
        say(page, "the cat " * 200)
        note(page).get_by_text("This message alone is too long").wait_for()


def test_a_new_conversation_stops_the_answer_of_the_old_one(server, visit):
    with visit(server.url) as watched:
        page = watched.page
        say(page, "hi")
        page.wait_for_function(WRITTEN)
        page.get_by_role("button", name="New conversation").click()
        free(server)
        assert page.locator(".turn").count() == 0 and note(page).is_hidden()
        limit_tokens(page, 5)
        ask(page, "hello")
        sent = [message["content"] for message in watched.bodies[-1]["messages"]]
        assert sent == ["hello"] and page.locator(".turn").count() == 2


def streams(body):
    """A route that answers with a stream as it stands."""
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")


def test_what_is_no_answer_is_told(visit):
    with answering() as canned, visit(canned.url) as watched:
        page = watched.page
        page.get_by_role("heading", name="quickstart").wait_for()
        for body, words in {
            "data: <html>\n\n": "no answer of this server",
            "": "broke off",
        }.items():
            page.route("**/v1/chat/completions", streams(body))
            say(page, "hi")
            note(page).get_by_text(words).wait_for()
            page.unroute("**/v1/chat/completions")
        ask(page, "hi")
        canned.models = []
        page.reload()
        note(page).get_by_text("no model").wait_for()


def short_context(context):
    size = served("chatty", chat=True).tokenizer.vocab_size
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": context, "initial_std": 0.3}
    return api.build("llama", seed=0, vocab_size=size, **numbers).eval()


def test_a_failure_in_the_middle_keeps_the_beginning(visit):
    failed = {"error": {"message": "the model failed", "type": "server_error", "code": None}}
    with answering(answer=lambda body: ["A begin", "ning", failed]) as canned:
        with visit(canned.url) as watched:
            page = watched.page
            assert ask(page, "hi") == "A beginning"
            assert note(page).locator("p").inner_text() == "The model failed."
            assert "broken off" in page.locator(".assistant .status").inner_text().replace(
                "\xa0", " "
            )
            canned.answer = lambda body: ["All of it."]
            note(page).get_by_role("button", name="Try again").click()
            assert answered(page) == "All of it."


def test_a_server_that_is_gone(visit):
    with answering() as canned, visit(canned.url) as watched:
        page = watched.page
        page.get_by_role("heading", name="quickstart").wait_for()
        page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
        say(page, "hi")
        note(page).get_by_text("cannot be reached").wait_for()
        watched.said.clear()  # the browser itself tells of the connection
        page.unroute("**/v1/chat/completions")
        note(page).get_by_role("button", name="Try again").click()
        assert answered(page) == "Yes."


def test_reload_keeps_the_conversation(visit):
    long = [f"word{number} " for number in range(2000)]
    with answering(answer=lambda body: long, pause=0.005) as canned, visit(canned.url) as watched:
        page = watched.page
        say(page, "hi")
        page.wait_for_function(
            "() => document.querySelector('.assistant .body').textContent.includes('word9 ')"
        )
        page.reload()
        text = answered(page)
        assert text.startswith("word0 word1") and len(text) < 8000
        assert "broken" in page.locator(".assistant .status").inner_text()
        assert page.locator(".user .body").inner_text() == "hi"
        page.get_by_role("button", name="New conversation").click()
        assert page.locator(".turn").count() == 0
        page.get_by_role("button", name="Back to the earlier conversation").click()
        assert answered(page) == text


def test_latest_message_is_edited_and_sent_again(visit):
    with answering(answer=lambda body: [body["messages"][-1]["content"]]) as canned:
        with visit(canned.url) as watched:
            page = watched.page
            ask(page, "one")
            ask(page, "tow")
            page.get_by_role("button", name="Edit and send again").click()
            assert page.get_by_label("Message", exact=True).input_value() == "tow"
            assert ask(page, "two") == "two"
            sent = [message["content"] for message in canned.requests[-1]["messages"]]
            assert sent == ["one", "one", "two"] and page.locator(".turn").count() == 4


# Hands, eyes and screens


def test_keys_alone(visit):
    with answering(answer=lambda body: [body["messages"][-1]["content"]]) as canned:
        with visit(canned.url) as watched:
            page, keys = watched.page, watched.page.keyboard
            page.get_by_role("heading", name="quickstart").wait_for()
            keys.type("one")  # the field has the focus from the start
            keys.press("Shift+Enter")
            keys.type("two")
            keys.press("Enter")
            answered(page)
            assert canned.requests[0]["messages"][0]["content"] == "one\ntwo"
            tabbed_to(page, "Answer again", "Shift+Tab")
            keys.press("Enter")
            page.get_by_text("2 / 2").wait_for()
            tabbed_to(page, "Earlier version", "Shift+Tab")
            keys.press("Space")
            assert page.locator(".place").inner_text() == "1 / 2"
            assert focused(page) == "Earlier version"
            tabbed_to(page, "Settings", "Shift+Tab")
            keys.press("Enter")
            assert focused(page) == "Close settings"
            keys.press("Escape")
            assert page.get_by_role("complementary").is_hidden() and focused(page) == "Settings"


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def tabbed_to(page, label, key):
    """Press a key until what it is to reach has the focus, and shows that."""
    for _ in range(30):
        page.keyboard.press(key)
        if focused(page) == label:
            assert page.evaluate("document.activeElement.matches(':focus-visible')")
            return
    raise AssertionError(f"{label} cannot be reached")


def test_enter_that_chooses_a_word_sends_nothing(visit):
    with answering() as canned, visit(canned.url) as watched:
        field = watched.page.get_by_label("Message", exact=True)
        field.fill("にほん")
        for composing in ({"isComposing": True}, {"keyCode": 229}):
            field.dispatch_event("keydown", {"key": "Enter", "bubbles": True, **composing})
        assert field.input_value() == "にほん" and canned.requests == []


PLACE = "(node) => [node.scrollTop, node.scrollHeight - node.clientHeight]"


def test_reader_who_goes_up_is_left_alone(visit):
    with answering(answer=lambda body: ["line\n\n"] * 300, pause=0.003) as canned:
        with visit(canned.url) as watched:
            page = watched.page
            say(page, "hi")
            page.wait_for_function("() => document.getElementById('scroll').scrollTop > 400")
            page.mouse.move(500, 300)
            page.mouse.wheel(0, -200)
            page.get_by_role("button", name="To the latest").wait_for()
            before = page.locator("#scroll").evaluate(PLACE)
            page.wait_for_timeout(300)
            after = page.locator("#scroll").evaluate(PLACE)
            assert after[0] == before[0] and after[1] > before[1]
            page.mouse.wheel(0, 40)  # further down, but not to the end
            page.wait_for_function(
                "(top) => document.getElementById('scroll').scrollTop > top", arg=after[0]
            )
            page.wait_for_timeout(100)
            assert page.get_by_role("button", name="To the latest").is_visible()
            page.get_by_role("button", name="To the latest").click()
            answered(page)
            top, end = page.locator("#scroll").evaluate(PLACE)
            assert end - top < 2


def test_narrow_screen(visit):
    wide = f"{'longword' * 40} https://a.example/{'x' * 300} `{'y' * 200}`\n\n"
    wide += f"```\n{'z' * 300}\n```\n\n"
    table = "| a | b | c | d |\n| - | - | - | - |\n| " + " | ".join(["wide" * 12] * 4) + " |\n"
    fits = "document.documentElement.scrollWidth <= innerWidth"
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    with answering(answer=lambda body: [wide, table]) as canned:
        canned.models = [model("a-model-with-a-very-long-name-" * 3), model("other")]
        with visit(canned.url, **phone) as watched:
            page = watched.page
            ask(page, wide)
            assert page.evaluate(fits)
            assert small_targets(page) == []
            assert page.locator("#scroll").evaluate(
                "(node) => node.scrollWidth <= node.clientWidth"
            )
            settings(page)
            assert page.evaluate(fits) and small_targets(page) == []
            page.get_by_role("button", name="Close settings").click()
            canned.models = [model(chat=False)]
            page.reload()
            page.get_by_label("Your text").fill(wide)
            assert page.evaluate(fits) and small_targets(page) == []


def small_targets(page):
    """Buttons and fields that a thumb would miss: lower or narrower than 44 px."""
    small = """(nodes) => nodes
      .filter((node) => node.checkVisibility({ visibilityProperty: true }))
      .filter((node) => Math.min(node.offsetHeight, node.offsetWidth) < 44)
      .map((node) => node.outerHTML.slice(0, 80))"""
    return page.locator("button, select, input").evaluate_all(small)


def test_theme_follows_the_system_or_the_choice(visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    with answering() as canned, visit(canned.url, color_scheme="dark") as watched:
        page = watched.page
        dark = page.evaluate(ground)
        settings(page)
        page.get_by_label("Light").check()
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
        page.emulate_media(color_scheme="light")
        settings(page)
        page.get_by_label("Dark").check()
        assert page.evaluate(ground) == dark
        page.get_by_label("Auto").check()
        assert page.evaluate(ground) == light


def test_answers_are_read_aloud_once(visit):
    """A screen reader hears the answer when it is complete, not each of its letters."""
    with (
        answering(answer=lambda body: ["All ", "of ", "it."]) as canned,
        visit(canned.url) as watched,
    ):
        page = watched.page
        page.evaluate(
            """window.heard = [];
            new MutationObserver(() => heard.push(document.getElementById("spoken").textContent))
              .observe(document.getElementById("spoken"), { childList: true });"""
        )
        ask(page, "hi")
        assert page.evaluate("heard") == ["The answer is being written.", "All of it."]
        live = page.locator("[aria-live], [role=log], [role=status], [role=alert]")
        assert live.evaluate_all("(nodes) => nodes.map((node) => node.id)") == ["notice", "spoken"]


def test_copy_buttons(visit):
    answer = "Say:\n\n```sh\nstemma list\n```\n"
    granted = {"permissions": ["clipboard-read", "clipboard-write"]}
    with answering(answer=lambda body: [answer]) as canned, visit(canned.url, **granted) as watched:
        page = watched.page
        ask(page, "hi")
        for name, text in {"Copy the code": "stemma list", "Copy the answer": answer}.items():
            page.get_by_role("button", name=name).click()
            page.wait_for_function(
                "(text) => navigator.clipboard.readText().then((found) => found === text)", arg=text
            )


# Models without a chat form


def test_text_is_gone_on_with(server, visit):
    with visit(server.url) as watched:
        page = watched.page
        page.get_by_label("Model").select_option("plain")
        limit_tokens(page, 30)
        page.get_by_role("button", name="Close settings").click()
        field = page.get_by_label("Your text")
        field.fill("The cat ")
        page.keyboard.press("Control+Enter")
        page.locator("#text-status").get_by_text("30").wait_for()
        text = field.input_value()
        assert text.startswith("The cat ") and len(text) > 15
        by_model = page.locator("#sheet-mirror mark").all_inner_texts()
        assert "The cat " + "".join(by_model) == page.locator("#sheet-mirror").evaluate(
            "(node) => node.textContent.slice(0, -1)"
        )
        page.get_by_role("button", name="Another way").click()
        page.locator("#text-status").get_by_text("30").wait_for()
        assert field.input_value() != text
        one, other = watched.bodies
        assert one["prompt"] == other["prompt"] == "The cat " and one["seed"] != other["seed"]
        field.press("Control+Home")
        field.press_sequentially("Now ")
        mirror = page.locator("#sheet-mirror").evaluate("(node) => node.firstChild.textContent")
        assert mirror == "Now The cat ", "what is typed is not the model's"
        page.reload()
        assert page.locator("#sheet-mirror mark").count() == 1
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("button", name="Take back").click()
        assert field.input_value().startswith("Now The cat ")


def test_long_text_is_gone_on_with_from_its_last_part(endless, start, visit):
    short = [replace(endless[1], network=short_context(100))]
    with start(short, limits=Limits(leaving=1.0)) as live, visit(live.url) as watched:
        page = watched.page
        limit_tokens(page, 5)
        text = " ".join(str(number) for number in range(100))
        page.get_by_label("Your text").fill(text)
        page.get_by_role("button", name="Continue").click()
        assert "too long" in note(page).locator("p").inner_text()
        note(page).get_by_role("button", name="Go on from its last part").click()
        page.locator("#text-status").get_by_text("tokens").first.wait_for()
        prompt = watched.bodies[-1]["prompt"]
        assert text.endswith(prompt) and 0 < len(prompt) < len(text)
        assert page.get_by_label("Your text").input_value().startswith(text)
