"""Chat templates of the grammars in use, in our own words, and conversations to put through them.

Each writes what the family's own template writes in the parts that matter: which control tokens
stand where, what is trimmed, what is refused, what of the past is rewritten. `CONTROL` lists the
control tokens of each.
"""

import random

from stemma.data.chatml import CHATML
from stemma.data.messages import Message, ToolCall

SMOLLM = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a small and helpful model<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- set ns = namespace(rest=messages, system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set ns.rest = messages[1:] %}
{%- endif %}
{%- if ns.system or tools is not none %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
    {%- if tools is not none %}
        {{- 'Environment: ipython\\nToday: ' ~ strftime_now('%d %b %Y') ~ '\\n\\n' }}
        {%- for tool in tools %}
            {{- tool | tojson(indent=4) }}
            {{- '\\n\\n' }}
        {%- endfor %}
    {%- endif %}
    {{- ns.system + '<|eot_id|>' }}
{%- endif %}
{%- for message in ns.rest %}
    {%- if message.tool_calls is defined %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('one call at a time, found ' ~ message.tool_calls | length) }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' ~ call.arguments | tojson ~ '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set ns = namespace(turns=0) %}
{%- for message in rest if message.role in ('user', 'assistant') and not message.tool_calls %}
    {%- if (message.role == 'user') != (ns.turns % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
{%- endfor %}
{%- set asked = rest | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role == 'user' %}
        {%- if tools and message == asked[-1] %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.function.items() %}
                    {{- '"' + key + '": ' + value | tojson }}
                    {{- ', ' if not loop.last }}
                {%- endfor %}
                {{- '}}' }}
                {{- ', ' if not loop.last }}
            {%- endfor %}
            {{- '][/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if system is defined and loop.first %}
            {{- '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message.content + '[/INST]' }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- (call.function | tojson)[:-1] }}
            {{- ', "id": "' + (call.id or 'none') + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- else %}
        {{- '[TOOL_RESULTS] {"content": ' ~ message.content ~ '}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Functions\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(asked=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages | length - 1 - loop.index0 %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.searching = false %}
        {%- set ns.asked = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set said = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.asked and thought %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- said }}
        {%- for call in message.tool_calls %}
            {%- if (loop.first and said) or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {%- if call.function %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' }}
            {{- call.name }}
            {{- '", "arguments": ' }}
            {%- if call.arguments is string %}
                {{- call.arguments }}
            {%- else %}
                {{- call.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TEMPLATES = {
    "smollm": SMOLLM,
    "chatml": CHATML,
    "llama-3": LLAMA_3,
    "mistral": MISTRAL,
    "qwen": QWEN,
}
_CHATML = ("<|im_start|>", "<|im_end|>")
_INST = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
CONTROL = {
    "smollm": (*_CHATML, "<|endoftext|>"),
    "chatml": _CHATML,
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "mistral": ("<s>", "</s>", *_INST, "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    "qwen": (*_CHATML, "<|endoftext|>"),
}
SPECIAL_WORDS = {
    "smollm": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "chatml": {"eos_token": "<|im_end|>"},
    "llama-3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
TEXTS = (
    *(
        "What is it?",
        "  spaces around  ",
        "\n\nlines\n",
        "",
        "one two three 4567",
        "ünïcode: 漢字 🌍",
    ),
    *(
        "{{ 7 * 7 }} {% raw %}",
        'quotes " and \\ and \t',
        "<b>not</b> & html",
        "a<think>b</think>\n\nc",
    ),
    *("e\u0301 zero\u200bwidth", "System: no", "{}", "<think>\nwhy\n</think>\n\nbecause"),
)
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a 'place' & more <b>",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
)


def conversation(seed: int) -> tuple[tuple[Message, ...], tuple[dict, ...]]:
    """Messages and tools: sometimes a system message, calls, two users in a row, one word."""
    draw = random.Random(seed)
    messages = [Message("system", draw.choice(TEXTS))] if draw.random() < 0.4 else []
    for _ in range(draw.randint(1, 4)):
        messages.append(Message("user", draw.choice(TEXTS)))
        if draw.random() < 0.1:
            messages.append(Message("user", draw.choice(TEXTS)))
        if draw.random() < 0.3:
            calls = tuple(
                ToolCall("weather", draw.choice(ARGUMENTS), draw.choice((None, "call00001")))
                for _ in range(draw.choice((1, 1, 1, 2)))
            )
            messages.append(Message("assistant", draw.choice(("", "Let me see.")), calls))
            messages += [Message("tool", draw.choice(TEXTS), name="weather") for _ in calls]
        messages.append(Message("assistant", draw.choice(TEXTS)))
    return tuple(messages), TOOLS if draw.random() < 0.3 else ()


ARGUMENTS = (
    {"place": "Zürich", "days": 3, "exact": True, "none": None, "share": 0.1},
    {"place": 'a "b" \\ \n', "deep": [{"x": []}, -1e300]},
    {},
)
