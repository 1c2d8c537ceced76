"""ChatML: the chat template that we give to models that have none.

Each message is `<|im_start|>ROLE`, a line end, what is said, `<|im_end|>` and a line end. Nothing
is added that nobody said: there is no default system message. Tools are described in the system
message, one JSON schema a line between `<tools>` and `</tools>`. A call is `<tool_call>`, a JSON
object of `name` and `arguments`, `</tool_call>`, each call on a line of its own; a tool's result is
a message of the role `tool`.
"""

from copy import deepcopy

import tokenizers

from stemma.data.tokenizer import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"

CHATML = """\
{%- set opening = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + opening }}
    {{- '\\n\\n' if opening }}
    {{- 'These tools can be called:\\n<tools>\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- '</tools>\\nA call is written as\\n' }}
    {{- '<tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>' }}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first }}
            {%- set function = call.function %}
            {{- '<tool_call>' }}
            {%- if function.arguments is string %}
                {{- '{"name": ' + function.name | tojson }}
                {{- ', "arguments": ' + function.arguments + '}' }}
            {%- else %}
                {{- {'name': function.name, 'arguments': function.arguments} | tojson }}
            {%- endif %}
            {{- '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def with_chatml(tokenizer: Tokenizer) -> Tokenizer:
    """A new tokenizer with this template and its two control tokens, the second as `eos_token`.

    Tokens that are there already keep their ids; new ones come after the vocabulary, so that the
    model's embedding may have to grow. `bos_token` stays what it was.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken(w, special=True) for w in (START, END)])
    config = deepcopy(tokenizer.config)
    config |= {"eos_token": END, "chat_template": CHATML}
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), config)
