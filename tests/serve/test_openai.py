"""The `openai` client takes every answer, with its strictest validation switched on."""

import openai
import pytest

from stemma import api

SAY = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True, max_retries=0
    ) as found:
        yield found


def test_models(client):
    assert [m.id for m in client.models.list()] == ["chatty", "plain"]
    assert client.models.retrieve("plain").owned_by == "stemma"


def test_chat(client):
    made = client.chat.completions.create(
        model="chatty", messages=SAY, max_completion_tokens=7, n=3, seed=5, top_p=0.9, temperature=1
    )
    assert [c.index for c in made.choices] == [0, 1, 2]
    assert {c.message.role for c in made.choices} == {"assistant"}
    assert len({c.message.content for c in made.choices}) == 3
    assert {c.finish_reason for c in made.choices} <= {"length", "stop"}
    assert made.usage.completion_tokens <= 21
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    alone = client.chat.completions.create(
        model="chatty", messages=SAY, max_tokens=7, seed=6, top_p=0.9, temperature=1
    )
    assert alone.choices[0].message.content == made.choices[1].message.content
    assert alone.usage.prompt_tokens == made.usage.prompt_tokens


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "be brief"}, *SAY],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [*SAY, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "more"}],
    ],
    ids=["developer", "parts", "turns"],
)
def test_chat_takes_messages_as_openai_does(client, messages):
    made = client.chat.completions.create(model="chatty", messages=messages, max_tokens=3)
    assert made.choices[0].finish_reason in ("length", "stop")


def test_developer_is_system(client):
    def said(role):
        messages = [{"role": role, "content": "be brief"}, *SAY]
        made = client.chat.completions.create(
            model="chatty", messages=messages, max_tokens=9, seed=1
        )
        return made.choices[0].message.content

    assert said("developer") == said("system")


def test_chat_stream(client):
    settings = {"model": "chatty", "messages": SAY, "max_tokens": 30, "seed": 3}
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    whole = client.chat.completions.create(**settings)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_chat_stream_by_the_clients_own_helper(client):
    with client.chat.completions.stream(
        model="chatty", messages=SAY, stop=[*"aeiou �tnsr"], seed=3
    ) as stream:  # the helper takes no answer that ran into its limit
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content is not None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_chat_logprobs(client, stream):
    made = client.chat.completions.create(
        model="chatty",
        messages=SAY,
        max_tokens=6,
        seed=1,
        logprobs=True,
        top_logprobs=4,
        stream=stream,
    )
    choices = [c.choices[0] for c in made] if stream else made.choices
    told = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    assert 5 <= len(told) <= 6
    for entry in told:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 4
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
        ranked = [one.logprob for one in entry.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)


def test_logprobs_without_the_best_are_told_too(client):
    made = client.chat.completions.create(
        model="chatty", messages=SAY, max_tokens=3, seed=1, logprobs=True
    )
    assert all(entry.top_logprobs == [] for entry in made.choices[0].logprobs.content)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("the cat", 2), (["the cat", "the dog"], 4), ([72, 73], 2), ([[72, 73], [74]], 4), ("", 2)],
    ids=["text", "texts", "ids", "lists of ids", "nothing"],
)
def test_completions(client, prompt, count):
    made = client.completions.create(
        model="plain", prompt=prompt, n=2, max_tokens=5, seed=9, logprobs=2
    )
    assert [c.index for c in made.choices] == list(range(count))
    for choice in made.choices:
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset)
        assert told.text_offset[:1] == [0]


def test_completion_says_sixteen_tokens_by_default(client):
    made = client.completions.create(model="plain", prompt="a", seed=1, temperature=0)
    assert made.usage.completion_tokens <= 16


def test_completion_stream(live, client):
    """As OpenAI's own server does, a stream says null until a text ends. The client's type has no
    null there, so its strict mode refuses every streamed completion, OpenAI's too: here each chunk
    is validated with a reason put in its place.
    """
    settings = {"model": "plain", "prompt": ["the", "a"], "n": 2, "max_tokens": 20, "seed": 3}
    whole = client.completions.create(**settings, logprobs=1)
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as plain:
        chunks = list(
            plain.completions.create(
                **settings, logprobs=1, stream=True, stream_options={"include_usage": True}
            )
        )
    for chunk in chunks:
        found = chunk.to_dict()
        for part in found["choices"]:
            part["finish_reason"] = part["finish_reason"] or "stop"
        openai.types.Completion.model_validate(found, strict=True)
    for choice in whole.choices:
        parts = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(p.text for p in parts) == choice.text
        offsets = [at for p in parts for at in p.logprobs.text_offset]
        assert offsets == choice.logprobs.text_offset
    assert chunks[-1].usage == whole.usage


def test_stop_strings_end_the_text_before_them(client):
    whole = client.completions.create(model="plain", prompt="a", max_tokens=40, seed=2)
    text = whole.choices[0].text
    stop = text[8:10]
    cut = client.completions.create(model="plain", prompt="a", max_tokens=40, seed=2, stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("settings", "error", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model"),
        ({"model": "plain"}, openai.BadRequestError, "model"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"tempature": 1}}, openai.BadRequestError, "tempature"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, openai.BadRequestError, None),
    ],
    ids=["model", "no template", "messages", "range", "unknown", "too long"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_errors_are_the_clients_own(client, settings, error, param, stream):
    asked = {"model": "chatty", "messages": SAY, **settings}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**asked, stream=stream)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    assert caught.value.body["param"] == (param or "messages")


def test_wrong_key_is_an_authentication_error(models, start):
    with start(models, keys=["k" * 16]) as live:
        settings = {"base_url": f"{live.url}/v1", "max_retries": 0}
        with openai.OpenAI(api_key="wrong", **settings) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        with openai.OpenAI(api_key="k" * 16, **settings) as client:
            assert len(client.models.list().data) == 2


def test_server_says_what_generate_says(client, models):
    """The same bytes: one renderer, one decoder, whoever asks."""
    chatty = models[0]
    made = client.chat.completions.create(
        model="chatty", messages=SAY, max_tokens=40, seed=11, temperature=1.2
    )
    text = api.generate(
        chatty.network, chatty.tokenizer, SAY, max_new_tokens=40, seed=11, temperature=1.2
    )
    assert made.choices[0].message.content == text
