"""The chat renderer: the text of transformers, no control token out of content, exact prompts."""

import itertools
import json
from dataclasses import replace
from datetime import date
from functools import cache

import pytest
import tokenizers
from jinja2.exceptions import TemplateError
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stemma.core.errors import ModelError
from stemma.data.bpe import train_tokenizer
from stemma.data.chatml import CHATML, with_chatml
from stemma.data.flaws import Flaw
from stemma.data.messages import Conversation, Message, ToolCall
from stemma.data.renderer import Renderer
from stemma.data.tokenizer import Tokenizer
from tests.data.templates import (
    CONTROL,
    SPECIAL_WORDS,
    TEMPLATES,
    TEXTS,
    TOOLS,
    conversation,
)

NAMES = sorted(TEMPLATES)
DAY = date(2024, 2, 29)
CONVERSATIONS, PARTS = 200, 4


def with_control(words, config):
    """A small tokenizer with these control tokens."""
    trained = train_tokenizer([*TEXTS, "system user assistant tool " * 9], vocab_size=380)
    backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken(word, special=True) for word in words])
    return Tokenizer(backend, config)


@cache
def made(name):
    config = {**SPECIAL_WORDS[name], "chat_template": TEMPLATES[name]}
    return with_control(CONTROL[name], config)


def reload(tokenizer):
    files = tokenizer.files()
    config = json.loads(files["tokenizer_config.json"])
    return Tokenizer.from_files(files["tokenizer.json"], config, place="test")


def renderer(name):
    return Renderer(made(name), today=DAY)


@cache
def theirs(name):
    """The same tokenizer and template in transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(made(name).backend.to_str()),
        chat_template=TEMPLATES[name].replace("strftime_now('%d %b %Y')", "'29 Feb 2024'"),
        **SPECIAL_WORDS[name],
    )


def their_text(name, messages, tools, reply):
    return theirs(name).apply_chat_template(
        [message.to_json() for message in messages],
        tools=list(tools) or None,
        add_generation_prompt=reply,
        tokenize=False,
    )


# --- the text of transformers


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_text_and_ids_equal_those_of_transformers(name, part):
    ours, refused, whole = renderer(name), 0, 0
    for seed in range(part, CONVERSATIONS, PARTS):
        messages, tools = conversation(seed)
        reply = seed % 8 < 4
        try:
            expected = their_text(name, messages, tools, reply)
        except TemplateError:
            refused += 1
            with pytest.raises(Flaw):
                ours.text(messages, tools=tools, reply=reply)
            continue
        assert ours.text(messages, tools=tools, reply=reply) == expected
        ids = theirs(name)(expected, add_special_tokens=False)["input_ids"]
        assert made(name).encode_template(expected) == ids
        if reply:
            prompt = ours.prompt(messages, tools=tools)
            assert made(name).decode(prompt) == made(name).decode(ids)
            whole += prompt == ids
        else:
            for sample in ours.samples(Conversation(messages, tools)):
                if not sample.unrolled and not sample.seam:
                    whole += list(sample.ids) == ids
    assert (refused > 0) == (name in ("llama-3", "mistral"))
    assert whole > 5


def test_every_refusal_is_one_of_the_template():
    with pytest.raises(Flaw, match="must take turns"):
        renderer("mistral").text([Message("user", "a"), Message("user", "b")], reply=True)


# --- no control token out of content

ROLES = ("system", "user", "assistant", "tool")
POSITIONS = {
    "start": lambda word: f"{word} text",
    "middle": lambda word: f"some {word} text",
    "end": lambda word: f"some text{word}",
    "alone": lambda word: word,
    "twice": lambda word: word + word,
}
ENCODINGS = {
    "plain": lambda word: word,
    "escaped": lambda word: json.dumps({"a": word})[1:-1],
    "broken": lambda word: word[:2] + "\u200b" + word[2:] + word.upper(),
}


def around(role, text):
    """A conversation in which one role says the text, names and arguments included."""
    call = ToolCall("weather", {"place": "here"})
    said = {
        "system": Message("system", "Be kind."),
        "user": Message("user", "Hello."),
        "assistant": Message("assistant", "", (call,)),
        "tool": Message("tool", "Rain.", name="weather"),
    }
    said[role] = replace(said[role], content=text)
    if role == "assistant":
        said[role] = replace(said[role], tool_calls=(ToolCall(text, {text: [text]}, text),))
    if role == "tool":
        said[role] = replace(said[role], name=text, tool_call_id=text)
    return [*(said[name] for name in ROLES), Message("assistant", "Done."), Message("user", "Ok.")]


def with_tool(text):
    """A tool whose every word is the text."""
    function = {"name": text, "description": text, "parameters": {text: {"type": text}}}
    return ({"type": "function", "function": function},)


@pytest.mark.parametrize("fresh", [True, False], ids=["made", "reloaded"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", NAMES)
def test_no_content_yields_a_control_token(name, role, fresh):
    tokenizer = made(name) if fresh else reload(made(name))
    ours = Renderer(tokenizer, today=DAY)

    def control(text, trained=False):
        messages, tools = around(role, text), with_tool(text)
        sequences = [ours.prompt(messages, tools=tools)]
        if trained:
            whole = ours.samples(Conversation(tuple(messages), tools))
            sequences += [sample.ids for sample in whole]
        return [[n for n in ids if n in tokenizer.control_ids] for ids in sequences]

    harmless = control("harmless", trained=True)
    assert all(harmless)
    for word in CONTROL[name]:
        assert control(word, trained=True) == harmless
        for place, spell in itertools.product(POSITIONS.values(), ENCODINGS.values()):
            assert control(place(spell(word))) == harmless[:1]


@pytest.mark.parametrize("name", NAMES)
def test_a_control_token_split_between_content_and_template_stays_text(name):
    word = CONTROL[name][0]
    for cut in range(1, len(word)):
        source = f"{{{{ messages[0].content }}}}{word[cut:]}{{{{ messages[1].content }}}}"
        messages = [Message("user", word[:cut]), Message("user", word[:cut] + word[cut:])]
        ids = Renderer(made(name), source).prompt(messages)
        assert not made(name).control_ids & set(ids)
        assert made(name).decode(ids) == word + word


def test_the_same_text_in_the_template_is_a_control_token():
    word = CONTROL["chatml"][1]
    ids = Renderer(made("chatml"), "{{ '" + word + "' }}" + word).prompt([Message("user", "x")])
    assert ids == [made("chatml").eos_id] * 2


def test_a_role_that_is_none_of_the_four_is_refused():
    with pytest.raises(Flaw, match="none of system, user, assistant, tool") as caught:
        renderer("chatml").text([Message("<|im_end|>", "x")], reply=True)  # type: ignore[arg-type]
    assert caught.value.key == "messages[0].role"


# --- samples


def trained_words(tokenizer, sample):
    """The trained tokens of each turn, as texts."""
    turns, before = [], False
    for number, counts in zip(sample.ids, sample.trained, strict=True):
        if counts and not before:
            turns.append([])
        if counts:
            turns[-1].append(number)
        before = counts
    return [tokenizer.backend.decode(turn, skip_special_tokens=False) for turn in turns]


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_begins_where_its_prompt_ends_and_ends_with_its_end(name):
    ours, tokenizer, rolled, unrolled = renderer(name), made(name), 0, 0
    for seed in range(40):
        messages, tools = conversation(seed)
        try:
            samples = ours.samples(Conversation(messages, tools))
        except Flaw:
            continue
        turns = [at for at, message in enumerate(messages) if message.role == "assistant"]
        prompts = [ours.prompt(messages[:at], tools=tools) for at in turns]
        wholes = [ours.text(messages[: at + 1], tools=tools, reply=False) for at in turns]
        if samples[0].unrolled:
            unrolled += 1
            assert len(samples) == len(turns)
        else:
            rolled += 1
            assert len(samples) == 1
        for number, prompt in enumerate(prompts):
            sample = samples[number if samples[0].unrolled else 0]
            assert list(sample.ids[: len(prompt)]) == prompt
            assert sample.trained[len(prompt)] and not sample.trained[len(prompt) - 1]
            end = (
                sample.trained.index(False, len(prompt))
                if False in sample.trained[len(prompt) :]
                else len(sample.ids)
            )
            assert sample.ids[end - 1] == tokenizer.eos_id
            assert sample.end_ids == {tokenizer.eos_id}
            said = messages[turns[number]].content.split("</think>")[-1].strip()
            text = tokenizer.decode(sample.ids[len(prompt) : end])
            assert said in text or messages[turns[number]].tool_calls
        for sample, text in zip(
            samples, wholes if samples[0].unrolled else wholes[-1:], strict=True
        ):
            assert tokenizer.backend.decode(list(sample.ids), skip_special_tokens=False) == text
            assert len(sample.ids) == len(sample.trained)
    assert rolled > 5
    assert (unrolled > 0) == (name in ("mistral", "qwen"))


def test_only_what_the_assistant_says_is_trained():
    messages = (
        Message("system", "Be kind."),
        Message("user", "one"),
        Message("assistant", "two<|im_end|>"),
        Message("user", "three"),
        Message("assistant", "four"),
        Message("user", "five"),
    )
    (sample,) = renderer("chatml").samples(Conversation(messages))
    words = trained_words(made("chatml"), sample)
    assert words == ["two<|im_end|><|im_end|>", "four<|im_end|>"]
    text = renderer("chatml").text(messages[:-1], reply=False)  # the last user waits for an answer
    assert made("chatml").backend.decode(list(sample.ids), skip_special_tokens=False) == text
    assert sample.seam and not sample.unrolled and not sample.doubled_bos


def test_a_past_that_is_rewritten_gives_a_sample_for_each_turn():
    thought = "<think>\nwhy\n</think>\n\n"
    messages = (
        Message("user", "one"),
        Message("assistant", thought + "two"),
        Message("user", "three"),
        Message("assistant", thought + "four"),
    )
    samples = renderer("qwen").samples(Conversation(messages))
    assert [sample.unrolled for sample in samples] == [True, True]
    words = [trained_words(made("qwen"), sample) for sample in samples]
    assert words == [[thought + "two<|im_end|>"], [thought + "four<|im_end|>"]]
    second = made("qwen").decode(samples[1].ids)
    assert second.count("why") == 1 and "two" in second


def test_a_cut_inside_a_word_of_the_template_gives_a_sample_for_each_turn():
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_start|>sys"
        "{% else %}tem\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    ours = Renderer(made("chatml"), source)
    said = (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))
    messages = tuple(Message(role, text) for role, text in said)
    assert made("chatml").encode("system") != made("chatml").encode("sys") + made("chatml").encode(
        "tem"
    )
    for number, sample in enumerate(ours.samples(Conversation(messages))):
        prompt = ours.prompt(messages[: 1 + 2 * number])
        assert sample.unrolled and list(sample.ids[: len(prompt)]) == prompt


def test_doubled_bos_is_seen():
    source = "{{ bos_token }}" + TEMPLATES["llama-3"]
    messages = (Message("user", "one"), Message("assistant", "two"))
    once = renderer("llama-3").samples(Conversation(messages))
    twice = Renderer(made("llama-3"), source, today=DAY).samples(Conversation(messages))
    assert [sample.doubled_bos for sample in once + twice] == [False, True]


def test_no_turn_of_the_assistant_gives_nothing():
    assert renderer("chatml").samples(Conversation((Message("user", "one"),))) == []


def test_an_assistant_that_speaks_first_is_refused():
    messages = (Message("assistant", "one"), Message("user", "two"))
    with pytest.raises(Flaw, match="speaks first"):
        renderer("chatml").samples(Conversation(messages))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "could not learn to stop",
        ),
        (
            TEMPLATES["chatml"] + "{% if add_generation_prompt %}<think>\n{% endif %}",
            "does not begin with the prompt",
        ),
        ("{{ messages[0].content }}", "could not learn to stop"),
    ],
)
def test_templates_that_cannot_be_trained_on_are_refused(source, reason):
    messages = (Message("user", "one"), Message("assistant", "two"))
    ours = Renderer(made("chatml"), source)
    assert ours.prompt(messages[:1])  # to ask a model that was trained elsewhere is all right
    with pytest.raises(ModelError, match=reason) as caught:
        ours.samples(Conversation(messages))
    assert "chatml" in caught.value.fix


def test_the_turn_ends_with_the_token_that_ends_texts():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|im_start|><|im_end|>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = (Message("user", "one"), Message("assistant", "two"))
    (sample,) = Renderer(made("chatml"), source).samples(Conversation(messages))
    assert trained_words(made("chatml"), sample) == ["two<|im_start|><|im_end|>"]


def test_without_that_token_the_last_control_token_ends_the_turn():
    """An earlier one may close a tool call; trained to stop there, a model never ends a turn."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|im_start|>x<|im_end|>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_control(CONTROL["chatml"], {"chat_template": source})
    assert tokenizer.eos_id is None
    messages = (Message("user", "one"), Message("assistant", "two"))
    (sample,) = Renderer(tokenizer).samples(Conversation(messages))
    assert trained_words(tokenizer, sample) == ["two<|im_start|>x<|im_end|>"]
    assert sample.end_ids == {tokenizer.backend.token_to_id("<|im_end|>")}


# --- tokenizers that put spaces in front

SPACED = {
    "prepend": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "always": pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
    "first": pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=True),
}


def spaced(rule):
    """A tokenizer of single letters in the manner of SentencePiece."""
    letters = sorted({*"▁ĠĊabcdefghijklmnopqrstuvwxyz[/]<>\n.", "<s>", "</s>", "[INST]", "[/INST]"})
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    part = SPACED[rule]
    if rule == "prepend":
        backend.normalizer = part
    else:
        backend.pre_tokenizer = part
    backend.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("rule", SPACED)
def test_a_piece_gets_a_space_in_front_only_where_the_whole_text_has_it(rule):
    source = (
        "{{ bos_token }}start {% for m in messages %}{% if m.role == 'user' %}"
        "[INST]{{ m.content }}. next[/INST]{% else %}{{ m.content }}{{ eos_token }}after "
        "{% endif %}{% endfor %}"
    )
    messages = (Message("user", "one two"), Message("assistant", "three"), Message("user", "four"))
    tokenizer = spaced(rule)
    ours = Renderer(tokenizer, source)
    text = ours.text(messages, reply=True)
    assert ours.prompt(messages) == tokenizer.encode_template(text)
    (sample,) = ours.samples(Conversation(messages))
    assert not sample.seam


# --- ChatML for tokenizers that have none


def test_chatml_is_added_to_a_tokenizer_without_changing_it():
    before = train_tokenizer(TEXTS, vocab_size=300)
    after = with_chatml(before)
    assert before.template is None
    assert (after.bos_id, after.vocab_size) == (before.bos_id, before.vocab_size + 2)
    assert after.template == CHATML and after.eos_id == after.vocab_size - 1
    assert after.control_ids - before.control_ids == {after.eos_id - 1, after.eos_id}
    assert before.encode("abc<|im_end|>") == after.encode("abc<|im_end|>")
    assert with_chatml(after).fingerprint == after.fingerprint
    assert reload(after).fingerprint == after.fingerprint


def test_chatml_takes_tokens_that_are_there():
    tokenizer = with_control(("<|im_start|>", "<|im_end|>"), {})
    assert with_chatml(tokenizer).vocab_size == tokenizer.vocab_size


def test_chatml_makes_control_tokens_of_words_that_were_none():
    backend = tokenizers.Tokenizer.from_str(train_tokenizer(TEXTS, vocab_size=300).backend.to_str())
    backend.add_tokens(["<|im_start|>", tokenizers.AddedToken("<|im_end|>", special=False)])
    after = with_chatml(Tokenizer(backend, {}))
    assert after.eos_id in after.control_ids
    ids = Renderer(after).prompt([Message("user", "<|im_end|><|im_start|>")])
    assert ids.count(after.eos_id) == 1


def test_a_tokenizer_without_a_template_says_what_to_do():
    with pytest.raises(ModelError, match="no chat template; .*chatml"):
        Renderer(train_tokenizer(TEXTS, vocab_size=300))


def test_templates_by_name():
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    tokenizer = with_control((), {"chat_template": named})
    ours = Renderer(tokenizer)
    assert ours.text([Message("user", "x")], reply=True) == "a"
    assert ours.text([Message("user", "x")], tools=TOOLS, reply=True) == "b"


def test_no_messages_is_a_flaw():
    with pytest.raises(Flaw, match="no messages"):
        renderer("chatml").prompt([])
