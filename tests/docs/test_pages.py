"""Documents that cannot lie: links resolve, public names are described, generated pages current."""

import importlib.util
import re
import subprocess
import sys

import pytest

import stemma
from docs import generate, measure_parity
from stemma import api
from stemma.core.errors import StemmaError
from stemma.interop.tables import tables
from stemma.pipeline import reference
from tests.docs.conftest import FENCE, PAGES, ROOT, name_of
from tests.models import parity_random

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TEXT = [*PAGES, *sorted((ROOT / "docs").rglob("*.py"))]
# places of somebody's machine, and work left for later
FORBIDDEN = re.compile(
    r"(?<![\w.])/(work|tmp|home|root|mnt|usr|Users)/|\b[A-Z]:\\|TODO|FIXME|XXX|lorem", re.IGNORECASE
)
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


def headings(text):
    """The anchors of a page, as hosting sites make them from headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page):
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor:
            assert anchor in headings(found.read_text("utf-8")), target


@pytest.mark.parametrize("page", TEXT, ids=name_of)
def test_page_names_no_machine_and_leaves_nothing_for_later(page):
    found = FORBIDDEN.search(page.read_text("utf-8"))
    assert found is None, found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_has_one_title_and_closes_its_blocks(page):
    text = page.read_text("utf-8")
    assert text.count("\n```") % 2 == 0
    outside = FENCE.sub("", text)
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1
    assert text.endswith("\n") and not text.endswith("\n\n")


@pytest.mark.parametrize("page", [p for p in PAGES if "docs" in p.parts[-3:-1]], ids=name_of)
def test_page_is_reached_from_the_index(page):
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / t.partition("#")[0]).resolve() for t in LINK.findall(index.read_text())
    }
    assert page == index or page in linked


@pytest.mark.parametrize("name", stemma.__all__)
def test_public_name_is_described(name):
    assert f"`stemma.{name}" in (ROOT / "docs" / "index.md").read_text("utf-8")


def test_generated_pages_are_current():
    assert generate.stale() == [], "run `make docs`"


def test_a_stale_page_is_noticed(tmp_path, monkeypatch, capsys):
    for name in generate.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"docs/reference/recipe.md": lambda: "another page\n"})
    monkeypatch.setattr(generate, "parity_faults", lambda text: [])
    (tmp_path / "docs" / "parity.md").write_text("")
    assert generate.main(["--check"]) == 1
    assert "docs/reference/recipe.md is out of date" in capsys.readouterr().err
    assert generate.main([]) == 0 and generate.main(["--check"]) == 0


PARITY = (ROOT / "docs" / "parity.md").read_text("utf-8")


def test_the_page_of_parity_has_figures_of_every_family_and_case():
    assert generate.parity_faults(PARITY) == [], "run `make parity`"
    families = {case.split()[0] for case in generate.defined_cases()}
    assert families == set(api.families())


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "| gpt2 untied |",
            "| gpt2 unbound |",
            ["no figures of gpt2 untied", "gpt2 unbound, which"],
        ),
        (
            "### lstm\n",
            "### lstms\n",
            ["no figures of lstm deep, tied", "figures of lstm one layer, w"],
        ),
        ("| equal |", "| **beyond the limit** |", ["an error beyond the limit"]),
    ],
)
def test_a_page_of_parity_that_lacks_something_is_noticed(old, new, fault):
    assert old in PARITY
    found = generate.parity_faults(PARITY.replace(old, new))
    assert all(any(word in line for line in found) for word in fault), found


def test_a_new_family_needs_figures(monkeypatch):
    monkeypatch.setattr(api, "families", lambda: ["new"])
    assert "no case of new" in generate.parity_faults(PARITY)


def test_the_page_of_parity_has_all_deviations_of_its_script():
    for where, what, why in measure_parity.DEVIATIONS:
        assert f"| {where} | {what} | {why} |" in PARITY, what
        name = where.strip("`")
        if where.startswith("`"):
            assert importlib.util.find_spec(f"stemma.{name}"), f"{name} is gone"


def test_every_family_that_another_library_has_can_be_drawn_at_random():
    foreign = {table.CONFIG.family for table in tables().values()}
    assert parity_random.DRAWS.keys() == foreign


def test_every_key_and_every_option_is_on_its_page():
    recipe = (ROOT / "docs" / "reference" / "recipe.md").read_text("utf-8")
    for entry in reference.entries():
        name = re.sub(r"^(model\.)?\w+\.", "", entry.key) if "." in entry.key else entry.key
        assert f"| `{name}` |" in recipe, entry.key
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    tree = generate.typer.main.get_command(generate.cli.app)
    for name, command in tree.commands.items():
        section = page.split(f"## stemma {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if generate.is_option(parameter) and parameter.name != "help":
                assert parameter.opts[0] in section, (name, parameter.opts)


def test_a_number_is_never_explained_as_true_or_false():
    for entry in reference.entries():
        if "number" in entry.type:
            assert entry.default not in ("true", "false"), entry


def test_every_kind_of_error_has_its_code():
    codes = generate.exit_codes()
    assert codes.keys() >= {kind.exit_code for kind in StemmaError.__subclasses__()}
    assert all(codes.values())


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_decision_is_numbered_and_short(page):
    text = page.read_text("utf-8")
    assert text.startswith(f"# {int(page.name[:4])}. ")
    assert "**Decision.**" in text and "**Price.**" in text
    assert len(text.split()) < 400


def test_decisions_are_numbered_without_a_gap():
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_the_generator_is_a_command():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
