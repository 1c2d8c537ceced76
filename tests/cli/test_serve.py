"""The command `serve`: what it refuses before it starts, that it answers, and how it ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from stemma import api, cli
from stemma.core import extras
from stemma.core.errors import ResourceError, UsageError
from stemma.data.bpe import train_tokenizer
from stemma.data.chatml import with_chatml
from stemma.serve import server
from tests.bad_inputs.command_line import call, check_line


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "chatty"
    tokenizer = with_chatml(
        train_tokenizer(["the cat sat on the mat"], vocab_size=270, splitting="gpt-2")
    )
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": 2048}
    model = api.build("llama", vocab_size=tokenizer.vocab_size, **numbers)
    api.save(model, tokenizer, folder)
    return folder


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def test_port_in_use_is_told_before_a_model_is_looked_for(tmp_path, taken):
    outcome = call(tmp_path, f"serve nowhere --port {taken}")
    check_line(outcome, 5, rf"127\.0\.0\.1:{taken}: the port is in use; choose another with --port")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("serve nowhere --port 0", r"nowhere: no such model; .*"),
        ("serve a/model b/model --port 0", r"MODEL: a/model and b/model would both .* model; .*"),
        ("serve m --host 0.0.0.0", r"--host 0\.0\.0\.0: other machines could .*; .*--insecure.*"),
        ("serve m --host not.a.host.invalid --insecure", r"--host not\..*: no such host; .*"),
        ("serve m --api-key-file nowhere", r"nowhere: no such file; .*"),
        ("serve m --api-key-file empty", r"empty: holds no key; write one key a line"),
        ("serve m --port 70000", r".*65535; .*"),
        ("serve", r".*; .*"),
    ],
)
def test_bad_command_is_one_line(tmp_path, command, line):
    (tmp_path / "empty").write_text("")
    check_line(call(tmp_path, command), 2, line)


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    check_line(call(tmp_path, "serve m"), 5, r"this needs the package uvicorn.*; .*")


def test_names_of_models(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "quickstart"
    (run / "chat").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (tmp_path / "tiny.Q4.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    given = ["runs/quickstart", "runs/quickstart/chat", "tiny.Q4.gguf", "smollm2-135m"]
    names = cli.serving.model_names(given)
    assert list(names) == ["quickstart", "quickstart-chat", "tiny.Q4", "smollm2-135m"]
    assert list(names.values()) == given
    monkeypatch.chdir(run / "chat")
    assert list(cli.serving.model_names(["."])) == ["quickstart-chat"]


def test_a_host_that_is_not_here_is_refused():
    with pytest.raises(ResourceError, match="choose another --host"):
        server.bind("203.0.113.7", 0)
    with pytest.raises(UsageError, match="no such host"):
        server.bind("x" * 300, 0)


def started(chatty, *options):
    """A server of its own process; returns it and its address once it listens."""
    command = [sys.executable, "-m", "stemma", "serve", str(chatty), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def post(address, body):
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection, connection.getresponse()


SAY = {"model": "chatty", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_server_answers_and_leaves_in_peace(chatty, number):
    process, address = started(chatty)
    try:
        connection, response = post(address, {**SAY, "max_tokens": 5})
        found = json.loads(response.read())
        assert found["usage"]["completion_tokens"] <= 5
        connection.close()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    said = [json.loads(line)["message"] for line in err.splitlines()]
    assert said[0] == "serving chatty (chat and text, context 2048)"
    assert said[-1] == "stopped" and out == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))


def test_answers_in_flight_come_to_their_end_when_the_server_leaves(chatty):
    process, address = started(chatty)
    try:
        connection, response = post(address, {**SAY, "max_tokens": 300, "stream": True, "seed": 4})
        first = response.read(300)
        process.send_signal(signal.SIGTERM)
        rest = response.read()
        connection.close()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert (first + rest).endswith(b"data: [DONE]\n\n")
    assert process.returncode == 0


def test_second_signal_leaves_at_once_with_the_model_at_work(chatty):
    process, address = started(chatty)
    try:
        connection, response = post(address, {**SAY, "stream": True, "n": 16, "temperature": 2})
        response.read(3000)
        process.send_signal(signal.SIGTERM)
        response.read(1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        connection.close()
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert all("message" in json.loads(line) for line in err.splitlines()), err


def test_nobody_needs_to_read_the_address(chatty):
    command = [sys.executable, "-m", "stemma", "serve", str(chatty), "--port", "0"]
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        lines = [json.loads(process.stderr.readline())["message"] for _ in range(2)]
        address = lines[1].split()[2]
        connection, response = post(address, {**SAY, "max_tokens": 1})
        assert response.status == 200
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_every_address_of_this_machine_answers_to_its_own_name(chatty):
    process, address = started(chatty, "--host", "127.0.0.2")
    try:
        assert address.startswith("http://127.0.0.2:")
        connection, response = post(address, {**SAY, "max_tokens": 1})
        assert response.status == 200
        connection.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()


def test_module_is_the_command():
    found = subprocess.run(
        [sys.executable, "-m", "stemma", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=True,
    )
    assert found.stdout.strip()
