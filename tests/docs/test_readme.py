"""What the README tells a reader to type is typed here, on a few small documents."""

import json
import re
import shlex
import sys

import pytest
from transformers import AutoModelForCausalLM

import stemma
from docs import generate
from stemma import cli
from tests.docs.conftest import PAGES, ROOT, blocks, command_lines, name_of
from tests.pipeline.conftest import write_documents

README = ROOT / "README.md"
SMALL = (
    "tokenizer.vocab_size=280 base.model.width=32 base.model.depth=1 base.model.num_heads=2 "
    "base.context=32 base.batch_tokens=64 base.tokens=320 scores.context=32 scores.stride=16"
)
COMMANDS = [(name_of(page), line) for page in PAGES for line in command_lines(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def call(line, capsys=None):
    """Type a line; returns what it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 0, line
    return capsys.readouterr().out if capsys else ""


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A folder in which the README's walk through one's own documents was taken."""
    folder = tmp_path_factory.mktemp("walked")
    write_documents(folder / "my-docs")
    walk = next(block for block in blocks(README, "sh") if "stemma init my-docs\n" in block)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STEMMA_HOME", str(folder / "home"))
        for line in walk.splitlines():
            call(f"{line} {SMALL}" if line.startswith("stemma run") else line)
    return folder


@pytest.fixture
def inside(walked, monkeypatch):
    monkeypatch.chdir(walked)
    monkeypatch.setenv("STEMMA_HOME", str(walked / "home"))
    return walked


def test_the_walk_leaves_what_the_readme_lists(inside):
    listing = next(block for block in blocks(README, "text") if block.startswith("runs/my-docs/"))
    out = inside / "runs" / "my-docs"
    listed = re.findall(r"^  (\S+)(?:  ?(\S+\.\w+))?(?:  +(.*))?", listing, re.MULTILINE)
    for first, second, said in listed:
        for name in filter(None, (first, second)):
            assert (out / name).exists(), name
        if first.endswith("/"):
            for name in re.findall(r"[\w.]+\.jsonl|\bsteps/", said):
                assert (out / first / name).exists(), f"{first}{name}"
    assert {path.name for path in out.iterdir()} == {
        name.split("/")[0] for pair in listed for name in pair[:2] if name
    }


def test_python_of_the_readme_runs(inside, capsys):
    [snippet] = blocks(README, "python")
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip()
    theirs = AutoModelForCausalLM.from_pretrained(inside / "my-model")
    ours = names["model"].state_dict()
    assert sum(p.numel() for p in theirs.parameters()) == sum(t.numel() for t in ours.values())
    assert names["small"].config.width == 64


def test_explanations_and_dry_runs_of_the_readme(inside, capsys):
    block = next(block for block in blocks(README, "sh") if "stemma explain" in block)
    said = [call(line, capsys) for line in block.splitlines()]
    assert said[0].splitlines()[0].startswith("corpus") and "learning_rate" in said[1]
    assert not (inside / "runs" / "longer").exists()  # a dry run leaves nothing


def test_results_of_a_run_are_entered_from_its_files(inside):
    run = inside / "runs" / "my-docs"
    made = generate.results(*generate.read_stages(run))
    text = generate.fill(README.read_text("utf-8"), "quickstart", made)
    scores = json.loads((run / "scores" / "scores.json").read_text())["scores"]
    best = min(scores, key=lambda row: row["bits_per_byte"])
    between = text.split("<!-- quickstart: results -->")[1].split("<!-- quickstart: end -->")[0]
    rows = [line for line in between.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(scores)
    assert rows[0].startswith(f"| {best['name']} | {best['bits_per_byte']:.3f} |")
    assert generate.fill(text, "quickstart", made) == text  # entered twice is entered once


def test_figures_of_a_half_done_run_are_refused(inside, tmp_path):
    about = (inside / "runs" / "my-docs" / "run.json").read_text()
    (tmp_path / "run.json").write_text(about)
    with pytest.raises(SystemExit, match="not complete"):
        generate.read_stages(tmp_path)


@pytest.mark.parametrize(
    ("name", "path"), [(n, p) for n, pages in generate.FILLED.items() for p in pages]
)
def test_pages_with_figures_have_their_markers(name, path):
    generate.fill(path.read_text("utf-8"), name, "")  # leaves by SystemExit where one is missing


def test_exit_codes_of_the_readme_are_those_of_the_code():
    section = README.read_text("utf-8").split("## Exit codes")[1].split("\n## ")[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert codes == list(generate.exit_codes())


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p}: {c}" for p, c in COMMANDS])
def test_every_command_of_the_documents_exists(page, line):
    words = [word for word in shlex.split(line) if "=" not in word or word.startswith("-")]
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS, f"{page}: {line}"
        return
    assert words[0] == "stemma", f"{page}: a shell block has {words[0]}"
    tree = generate.typer.main.get_command(cli.app)
    own = [word for word in words[1:] if word.startswith("--debug")]
    name, *rest = [word for word in words[1:] if word not in own]
    tree.commands[name].make_context(name, rest)  # raises for an option that is not there


def test_an_option_that_does_not_exist_is_caught():
    with pytest.raises(Exception, match="--thinking"):
        test_every_command_of_the_documents_exists(
            "here", "stemma generate m --prompt x --thinking"
        )


def test_version_of_the_documents_is_that_of_the_package():
    assert f"version {stemma.__version__}" in README.read_text("utf-8")
    assert f"## {stemma.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
