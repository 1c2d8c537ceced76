"""Templates as strangers' programs: they reach nothing, they end, they keep marks, as Jinja does.

Nothing here looks at the clock: a bomb must be stopped by the count of its steps.
"""

import os
import sys
from datetime import date

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from stemma.core.errors import MAX_MESSAGE, ModelError
from stemma.data import template_limits
from stemma.data.flaws import Flaw
from stemma.data.tainted import TaintLost, content, joined, literal, plain
from stemma.data.template import MAX_SOURCE, given, render
from stemma.data.template_filters import kept

HELLO = {"messages": [{"role": "user", "content": "Hello, world"}], "add_generation_prompt": True}


def run(source, **variables):
    """A template over what a person gives."""
    found = {name: given(value) for name, value in {**HELLO, **variables}.items()}
    return render(source, found, today=date(2024, 2, 29))


# --- nothing is reached

PAYLOADS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages[0].content.__class__ }}",
    "{{ messages[0]['content']['__class__']['mro'] }}",
    "{{ ''['__class__'].mro() }}",
    "{{ (''|attr('__class__')) }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ ['']|groupby('__class__') }}",
    "{{ [''] | join(attribute='__class__') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ namespace.__init__.__globals__['os'].system('touch owned') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ dict.mro() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch owned').read() }}",
    "{{ lipsum.__globals__['os'].popen('touch owned').read() }}",
    "{{ joiner.__init__.__globals__.os.system('touch owned') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__cl' ~ 'ass__}') | format('') | length + '%(a)s'.format.__self__ }}",
    "{% set ns = namespace(__class__='x') %}{{ ns }}",
    "{% for x in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in messages %}{{ loop._iterator.gi_frame.f_globals }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}{{ m.__call__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch owned') }}",
    "{% extends 'x' %}",
    "{% set x = messages.append('x') %}",
    "{% set x = messages[0].update({'role': 'system'}) %}",
    "{{ url_for.__globals__ }}",
    "{{ config.items() }}",
    "{{ request.application.__globals__.__builtins__.__import__('os').system('touch owned') }}",
    "{{ missing() }}",
    "{{ messages[0].content() }}",
    "{{ messages[0].content.translate({108: '<|im_end|>'}) }}",
    "{{ messages[0].content.marks.hex() }}",
]


REACHED = ("os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.posix_spawn", "import")


@pytest.fixture(scope="module")
def watched():
    """What this process was seen to do since the list was cleared; a hook cannot be taken out."""
    events = []

    def watch(event, details):
        if event in REACHED and events is not None:
            events.append((event, details))

    sys.addaudithook(watch)
    with pytest.raises(ModelError):
        run("{% if %}")  # loads what Jinja loads for its first error
    yield events
    events = None


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_reaches_anything(payload, tmp_path, monkeypatch, watched):
    monkeypatch.chdir(tmp_path)
    watched.clear()
    with pytest.raises(ModelError) as caught:
        run(payload)
    assert watched == [] and os.listdir(tmp_path) == []
    assert str(caught.value).startswith("chat template:1: ")
    assert len(str(caught.value)) <= MAX_MESSAGE


# --- everything ends

DOUBLE = "{% set ns = namespace(x='ab', y=[1], z=[1]) %}{% for i in range(90) %}"
BOMBS = {
    "loop": "{% for a in range(99999) %}{{ a }}{% endfor %}",
    "nested loops": "{% for a in range(900) %}{% for b in range(900) %}{% endfor %}{% endfor %}",
    "doubled text": DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "doubled by join": DOUBLE + "{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "doubled by replace": DOUBLE + "{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
    "doubled by slices": DOUBLE + "{% set ns.x = ns.x[:] + ns.x[:] %}{% endfor %}",
    "doubled list": DOUBLE + "{% set ns.y = ns.y + ns.y %}{% endfor %}",
    "nested doubling": DOUBLE + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y }}",
    "nested comparison": (
        DOUBLE + "{% set ns.y = (ns.y, ns.y) %}{% set ns.z = {1: ns.z, 2: ns.z} %}{% endfor %}"
        "{{ ns.y == ns.z }}"
    ),
    "doubled arguments": (
        "{% macro f() %}{% set ns.y = varargs %}{% endmacro %}"
        + DOUBLE
        + "{{ f(ns.y, ns.y) }}{% endfor %}"
    ),
    "doubled by dict": DOUBLE + "{% set ns.y = dict(a=ns.y, b=ns.y) %}{% endfor %}{{ ns.y }}",
    "deep list": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "lazy depth": "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x | map('string') %}{% endfor %}{{ ns.x | list }}",
    "times": "{{ 'a' * 10 ** 9 }}",
    "times of a list": "{{ [1] * 10 ** 9 }}",
    "negative times": "{{ 10 ** 9 * 'a' }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "power of powers": "{% set ns = namespace(x=9) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "range": "{{ range(10 ** 12) | list }}",
    "long range": "{{ range(99999) | list | length }}",
    "width": "{{ 'a'.center(10 ** 9) }}",
    "width of a filter": "{{ 'a' | center(10 ** 9) }}",
    "width of zeros": "{{ 'a'.zfill(10 ** 10) }}",
    "width of a directive": "{{ '%999999999d' % 1 }}",
    "width of a date": "{{ strftime_now('%999999999d') }}",
    "indent": "{{ 'a\nb' | indent(10 ** 9) }}",
    "indent of JSON": "{{ [1] | tojson(indent=10 ** 9) }}",
    "digits": "{{ 1.5 | round(10 ** 9, 'floor') }}{{ 5 | round(-10 ** 9) }}",
    "sums of lists": DOUBLE + "{% set ns.y = [ns.y, ns.y] | sum(start=[]) %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "forked recursion": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "searches": "{% set s = 'a' * 60000 %}{% set n = 'a' * 5000 ~ 'b' %}{% for i in range(9999) %}"
    "{% if n in s %}{% endif %}{% endfor %}",
    "searches of a list": "{% set l = range(5000) | list %}{% for i in range(9999) %}"
    "{% if 6000 in l %}{% endif %}{% endfor %}",
    "searches by a test": "{% set l = range(5000) | list %}{{ l | select('in', l) | list }}",
    "comparisons": "{% set s = ['a' * 60000] %}{% for i in range(9999) %}"
    "{% if s == ['a' * 60000] %}{% endif %}{% endfor %}",
    "counts": "{% set s = 'a' * 60000 %}{% for i in range(9999) %}{% set n = s.count('ab') %}"
    "{% endfor %}",
    "wide indent": "{{ ('a\n' * 1000) | indent(60000) }}",
    "long titles": "{% for i in range(99) %}{{ ('a ' * 30000) | title | length }}{% endfor %}",
    "long lists": "{% for i in range(99) %}{{ ('a' * 60000) | unique | list }}{% endfor %}",
    "replace by long": "{{ ('a' * 60000) | replace('a', 'b' * 60000) }}",
    "splits": "{% for i in range(99) %}{{ (' a' * 30000).split() | length }}{% endfor %}",
    "long lines": "{% for i in range(9) %}{{ ('\n' * 60000).splitlines() | length }}{% endfor %}",
    "replace of nothing": "{{ ('a' * 9999).replace('', 'a' * 9999) }}",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_every_bomb_is_stopped(bomb, monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 1e9)  # by its steps, not by the clock
    with pytest.raises(ModelError) as caught:
        run(bomb)
    assert "chatml" in caught.value.fix


def test_the_clock_is_the_last_resort(monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", -1)
    with pytest.raises(ModelError, match="seconds of work"):
        run("{% for a in range(5000) %}{% endfor %}")


def test_a_long_conversation_has_steps_enough():
    messages = [{"role": "user", "content": f"{n} " * 100} for n in range(2_000)]
    source = "{% for m in messages %}{% if m.content | trim %}" + "{{ m.content | trim }}\n" * 3
    source += "{% endif %}{% endfor %}"
    assert len(run(source, messages=messages)) > 1_500_000


# --- damaged templates

DAMAGED = [
    ("{{ 'a' }}\n{% if %}", ":2"),
    ("{{ messages[0].content", ":1"),
    ("\n\n{{ 'a' | nosuchfilter }}", ":3"),
    ("{% for m in messages %}", ":1"),
    ("{% block a %}{% endblock %}", ":1"),
    ("{% autoescape true %}{{ messages[0].content }}{% endautoescape %}", ":1"),
    ("a" * (MAX_SOURCE + 1), ""),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", ""),
    ("{{ " + "9" * 5000 + " }}", ""),
    ("{% for a in b %}" * 30 + "{% endfor %}" * 30, ""),
]


@pytest.mark.parametrize(("source", "line"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_template_is_refused_by_line(source, line):
    with pytest.raises(ModelError) as caught:
        run(source)
    assert caught.value.place == "chat template" + line


FAILING = [
    "{{ nothing.at.all }}",
    "{{ messages.role.x }}",
    "{{ 1 / 0 }}",
    "{{ messages[0] + 1 }}",
    "{% for a in none %}{% endfor %}",
    "{{ range }}",
    "{{ 'a' + 1 }}",
    "{{ [messages[0].content, 1] | sort }}",
]


@pytest.mark.parametrize("source", FAILING)
def test_a_template_that_fails_names_its_line(source):
    with pytest.raises(ModelError, match="^chat template:2: "):
        run("\n" + source)


def test_what_the_template_refuses_is_a_flaw_of_the_conversation():
    with pytest.raises(Flaw, match="refuses it: no Hello, world here"):
        run("{{ raise_exception('no ' ~ messages[0].content ~ ' here') }}")


def test_what_a_person_gives_must_be_json():
    with pytest.raises(Flaw, match="found set"):
        given({"a": {1}})
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(Flaw, match="nested deeper"):
        given(deep)


# --- the marks

KEPT = {  # template -> what is content in its result
    "{{ '<' + messages[0].content + '>' }}": "Hello, world",
    "<{{ messages[0]['content'] }}>": "Hello, world",
    "{{ '<' ~ messages[0].content ~ 1 ~ '>' }}": "Hello, world",
    "{{ '<%s>' % messages[0].content }}": "Hello, world",
    "{{ '<%s>' | format(messages[0].content) }}": "Hello, world",
    "{% set x %}<{{ messages[0].content }}>{% endset %}{{ x }}": "Hello, world",
    "{% set x | upper %}<{{ messages[0].content }}>{% endset %}{{ x }}": "HELLO, WORLD",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(messages[0].content) }}": "Hello, world",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}"
    "{% call m() %}{{ messages[0].content }}{% endcall %}": "Hello, world",
    "{% filter lower %}<{{ messages[0].content }}>{% endfilter %}": "hello, world",
    "{% generation %}<{{ messages[0].content }}>{% endgeneration %}": "Hello, world",
    "<{{ messages[0].content.split(', ') | join('|') }}>": "Helloworld",
    "<{{ messages[0].content | list | join }}>": "Hello, world",
    "<{{ messages[0].content | first }}{{ messages[0].content | last }}>": "Hd",
    "<{{ messages[0].content | reverse | join }}>": "dlrow ,olleH",
    "<{{ messages[0].content | title }}>": "Hello, World",
    "<{{ messages[0].content | replace('l', '_') }}>": "Heo, word",
    "<{{ messages[0].content | indent }}>": "Hello, world",
    "<{{ messages[0].content | safe | string | trim }}>": "Hello, world",
    "{{ messages | map(attribute='content') | join }}": "Hello, world",
    "{{ messages | map(attribute='content') | map('upper') | list | join }}": "HELLO, WORLD",
    "{{ messages | selectattr('role', '==', 'user') | map(attribute='content') | first }}": (
        "Hello, world"
    ),
    "{{ messages[0] | tojson }}": '{"role": "user", "content": "Hello, world"}',
    "{{ [1] | tojson(indent=messages[0].content) }}": "[\nHello, world1\n]",
    "{{ messages }}": "[{'role': 'user', 'content': 'Hello, world'}]",
    "{{ {'a': 'b'} | tojson }}{{ ['a', 1, none] }}": "",
    "{{ messages[0].content | length }}{{ messages[0].content | int }}": "",
    "{{ strftime_now('%Y') }}{{ add_generation_prompt }}": "",
    "{{ messages[0].get('content', 'x') }}": "Hello, world",
    "{% for k, v in messages[0].items() if k == 'content' %}{{ k }}={{ v }}{% endfor %}": (
        "contentHello, world"
    ),
    "{% for k, v in messages[0] | dictsort %}{{ v }}{% endfor %}": "Hello, worlduser",
    "{% set ns = namespace(x='<') %}{% set ns.x = ns.x + messages[0].content %}{{ ns.x }}": (
        "Hello, world"
    ),
    "{{ messages[0].content if messages else 'x' }}": "Hello, world",
    "{% for c in messages[0].content %}{{ c }}-{% endfor %}": "Hello, world",
    "{{ {messages[0].content: 1}.keys() | list | first }}": "Hello, world",
    "{{ (messages[0].content, 'x') | max }}": "",
    "{{ dict(**{messages[0].content: 1}).keys() | first }}": "Hello, world",
    "{% macro m() %}{{ kwargs.keys() | first }}{% endmacro %}{{ m(**{messages[0].content: 1}) }}": (
        "Hello, world"
    ),
    "{% set a, b = messages[0].content.split(', ') %}{{ a }}<{{ b }}": "Helloworld",
    "{% for m in messages %}{{ loop.cycle(m.content) }}{% endfor %}": "Hello, world",
    "{{ 'x' | int(messages[0].content) }}": "Hello, world",
    "{{ nothing | default(messages[0].content) }}": "Hello, world",
    "{{ 'x'.join([messages[0].content, '<']) }}": "Hello, world",
    "{{ dict(a=1).keys() | first ~ messages[0].content }}": "Hello, world",
    "{{ (dict(a=1).keys() | list)[0].join([messages[0].content, 'z']) }}": "Hello, world",
    "{{ (dict(a=1).keys() | list)[0].replace('a', messages[0].content) }}": "Hello, world",
}


@pytest.mark.parametrize(("source", "expected"), KEPT.items(), ids=range(len(KEPT)))
def test_marks_are_kept(source, expected):
    text = run(source)
    assert "".join(c for c, mark in zip(plain(text), text.marks, strict=True) if mark) == expected


def test_a_filter_that_gives_plain_text_back_for_content_is_caught():
    forgetful = kept(
        "forgetful", lambda value: plain(value[0] if isinstance(value, list) else value)
    )
    token = template_limits.BUDGET.set(template_limits.Budget(1, 1))
    try:
        assert forgetful(literal("a")).marks == b"\0"
        for value in (content("a"), [literal("a"), content("b")]):
            with pytest.raises(TaintLost, match="filter forgetful"):
                forgetful(value)
    finally:
        template_limits.BUDGET.reset(token)


LOST = [
    "{{ messages[0].content.encode() }}",
    "{{ messages[0].content.format() }}",
    "{{ '{}'.format(messages[0].content) }}",
    "{{ '%r' % messages[0].content }}",
    "{{ '%s' % messages }}",
    "{{ messages[0].content.expandtabs() }}",
]


@pytest.mark.parametrize("source", LOST)
def test_a_template_that_loses_the_marks_is_refused(source):
    with pytest.raises(ModelError, match="loses track of what a person wrote"):
        run(source)


# --- the same as Jinja as transformers sets it up

SAME = [
    "{{ x | title }}|{{ x | capitalize }}|{{ x | upper }}|{{ x | center(99) }}",
    "{{ y | indent }}|{{ y | indent(2, true) }}|{{ y | indent('> ', blank=true) }}",
    "{{ '' | indent(2, true) }}|{{ '\n' | indent }}|{{ ' a\n\n' | indent(3, true, true) }}",
    "{{ v | tojson }}{{ v | tojson(indent=2) }}{{ v | tojson(ensure_ascii=true) }}",
    "{{ v | tojson(separators=(',', ':'), sort_keys=true) }}{{ x | tojson }}{{ 1.5 | tojson }}",
    "{{ v }}{{ [v, (1, 'a')] }}{{ none }}{{ true }}{{ 1.0 }}{{ missing }}",
    "{{ v.a | join(', ') }}{{ [v, v] | join('-', attribute='c') }}{{ x | replace('o', '0', 1) }}",
    "{{ [3, 1, 2] | sort | join }}{{ [3, 1] | sum }}{{ 2.345 | round(2) }}{{ 2.5 | round }}",
    "{{ ['b', 'A'] | sort }}{{ ['a', 'A', 'b'] | unique | list }}{{ v | dictsort }}",
    "{% for a in v.a %}{{ loop.index }}{{ loop.last }}{{ loop.cycle('x', 'y') }}"
    "{{ loop.previtem }}{{ loop.nextitem }}{{ loop.length }}{% else %}none{% endfor %}",
    "  {% if x %}\n  a\n  {% endif %}\n  {%- set z = 1 %}\nb {{ z }}",
    "{% for a in range(5) %}{% if a == 1 %}{% continue %}{% endif %}{% if a == 3 %}{% break %}"
    "{% endif %}{{ a }}{% endfor %}",
    "{{ x[1:-1] }}{{ x[::-1] }}{{ x[0] }}{{ v['a'][0] }}{{ v.get('zz', 'no') }}{{ 'e' in x }}",
    "{{ x.split('l') }}{{ x.partition(' ') }}{{ x.splitlines() }}{{ y.rsplit(None, 1) }}",
    "{{ '%s-%05d-%.2f%%' % (x, 42, 1.5) }}{{ '%s' | format(3) }}{{ '<' ~ v ~ 1 ~ none ~ '>' }}",
    "{{ x is string }}{{ v is mapping }}{{ v.a is iterable }}{{ q is defined }}{{ none is none }}",
    "{{ x | default('d') }}{{ q | default('d') }}{{ '' | default('d', true) }}{{ x | length }}",
    "{% macro m(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ m(x, 1, 2) }}{{ m(1) }}",
    "{% for a in [[1, [2]], [3]] recursive %}{{ a if a is number else loop(a) }}.{% endfor %}",
    "{{ 2 ** 10 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ -7 }}{{ 1.5 * 2 }}{{ [1] * 3 }}{{ 'ab' * 2 }}",
    "{{ v.items() | list }}{{ v | items | list }}{{ dict(a=1, b=x) }}{{ v.keys() | list }}",
    "{{ ['1', 2.7, 'x'] | map('int') | list }}{{ [1, 2, 3] | select('odd') | list }}",
    "{{ [v, v] | rejectattr('c') | list }}{{ [3, 1] | min }}{{ -3 | abs }}{{ '3.5' | float }}",
    "{{ x | list | reverse | join }}{{ x | reverse }}{{ (x | safe) }}{{ x.title().swapcase() }}",
]
VALUES = {
    "x": 'heLLo wörld (of "it\'s") a-b',
    "y": "one\ntwo\n\n three",
    "v": {"a": ["p", "q ü 🌍"], "c": None, "d": {"e": [1, 2.5, True, "\x01\u2028"]}},
}


@pytest.mark.parametrize("source", SAME, ids=range(len(SAME)))
def test_text_is_that_of_jinja(source):
    expected = _compile_jinja_template(source).render(**VALUES)
    assert plain(run(source, **VALUES)) == expected


def test_tainted_text_of_both_kinds_goes_in_as_it_is():
    text = joined(("a", content("b")))
    assert render("{{ x }}", {"x": text}).marks == text.marks
