"""What the guide on serving shows is run, and what it says of numbers is held to."""

import re

from stemma.infer.generate import CHUNK
from stemma.serve import guard, requests
from stemma.serve.limits import Limits
from tests.docs.conftest import ROOT, blocks

GUIDE = ROOT / "docs" / "guides" / "serve.md"


def test_python_of_the_guide_runs(live, capsys):
    [snippet] = blocks(GUIDE, "python")
    assert "http://127.0.0.1:8000" in snippet
    exec(compile(snippet.replace("http://127.0.0.1:8000", live.url), "serve.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_numbers_of_the_guide_are_those_of_the_code():
    text, limits = GUIDE.read_text("utf-8"), Limits()
    assert f"longer than {limits.body_bytes >> 20} MiB" in text
    assert f"| 429 | {limits.waiting} requests are waiting" in text
    assert f"after every {CHUNK} tokens" in text
    assert f"at least {guard.SHORTEST} characters" in text
    assert f"`n` (at most {requests.MOST_CHOICES}), `stop` (at most {requests.MOST_STOPS})" in text
    assert f"a completion has {requests.COMPLETION_TOKENS} tokens" in text
    assert limits.leaving == 5


def test_every_key_of_a_request_is_in_the_guides_table():
    rows = [line for line in GUIDE.read_text("utf-8").splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)`", "\n".join(rows)))
    assert named >= requests.PASSED_OVER
    honoured = {"top_k", "min_p", "repetition_penalty", "n", "stop", "seed", "temperature"}
    for kind in (requests.ChatRequest, requests.CompletionRequest):
        assert honoured <= kind.model_fields.keys() and honoured <= named
