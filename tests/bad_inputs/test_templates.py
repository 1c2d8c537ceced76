# ruff: noqa: E501  (tables are read by rows)
"""Bad chat templates, case 72: refused by line, before a token is made, and in bounded work.

Every case gives a sound model another template. None may reach out of the sandbox, none may run
on, and none may take what a person wrote for its own words.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_inputs.command_line import Refused, call, names, refuse, snapshot
from tests.bad_inputs.layouts import change_json

GENERATE = "generate model --prompt x --max-new-tokens 1 --device cpu"
WAY_OUT = r"; correct the template, or do without: template: chatml in a recipe, --raw at a prompt"
OWNED = "owned"  # a file that a template would make
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"


def template(source: object) -> Callable[[Path], None]:
    """A model with this chat template."""
    return lambda folder: change_json(
        folder / "model" / "tokenizer_config.json", chat_template=source
    )


def case(name: str, source: str, line: str) -> Refused:
    """A template that is refused with `line`, whatever the way out says."""
    return Refused(72, name, template(source), GENERATE, 4, f"chat template{line}{WAY_OUT}")


STEPS = r":1: it does too much: more steps than such a conversation can need"
CASES = (
    case("syntax", PLAIN + "{% if %}", r":2: not a template \(.+\)"),
    case("unclosed", "{% for m in messages %}", r":1: not a template \(.+\)"),
    case("unknown-filter", "{{ messages | pickle }}", r":1: not a template \(No filter named 'pickle'\.\)"),
    case("include", "{% include '/etc/passwd' %}", r":1: not a template \(include has no place in it\)"),
    case("huge", "a" * 300_000, r": 300,000 characters; at most 262,144 are read"),
    case("class", "{{ ''.__class__.__mro__ }}", r":1: it reaches out of the sandbox: it asks for '__class__'"),
    case("globals", f"{{{{ raise_exception.__globals__.os.system('touch {OWNED}') }}}}", r":1: it reaches out of the sandbox: it asks for '__globals__'"),
    case("cycler", f"{{{{ cycler.__init__.__globals__.os.system('touch {OWNED}') }}}}", r":1: it reaches out of the sandbox: it asks for '__init__'"),
    case("format", "{{ '{0.__class__}'.format(messages) }}", r":1: it loses track of what a person wrote \(format\)"),
    case("loop", "{% for i in range(99999) %}{{ i }}{% endfor %}", STEPS),
    case("nested-loops", "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}", STEPS),
    case("recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r":1: it does too much \(RecursionError\)"),
    case("gigabyte", "{{ 'x' * 1000000000 }}", r":1: it does too much: a text of 1,000,000,000 characters"),
    case("doubling", DOUBLING, r":1: it does too much: .+"),
    case("power", "{{ 9 ** (9 ** 9) }}", r":1: it does too much: a number of .+ bits"),
    case("undefined", "\n{{ messages.nothing.more }}", r":2: it fails: .*no attribute 'nothing'"),
    case("bytes", PLAIN + "{{ messages[0].content.encode() }}", r":2: it loses track of what a person wrote \(encode\)"),
    Refused(72, "refusal", template("{{ raise_exception('only on Sundays') }}"), GENERATE, 2, r"chat template: .*only on Sundays; .+"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=names)
def test_bad_template_is_refused(case, sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    refuse(case, tmp_path)
    assert not (tmp_path / OWNED).exists()


def test_raw_is_the_way_out(sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    template("{% if %}")(tmp_path)
    before = snapshot(tmp_path)
    assert call(tmp_path, GENERATE + " --raw").code == 0
    assert snapshot(tmp_path) == before


def test_sound_template_is_taken(sound_model, tmp_path):
    """What the cases harm is otherwise applied: the template's words come before the answer."""
    shutil.copytree(sound_model, tmp_path / "model")
    alone = json.loads(call(tmp_path, GENERATE + " --json").out)
    template(PLAIN)(tmp_path)
    outcome = call(tmp_path, GENERATE + " --json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["prompt_tokens"] > alone["prompt_tokens"]
