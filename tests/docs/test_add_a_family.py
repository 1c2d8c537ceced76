"""The guide's new family: its two files are put beside the package, and nothing else is edited."""

import importlib
import json
import subprocess
import sys

import pytest

import stemma
import stemma.interop
import stemma.models
import tests.models.oracles
from stemma import api
from stemma.core.errors import ModelError, UsageError
from stemma.interop.tables import tables
from tests.docs.conftest import ROOT, blocks
from tests.models import parity
from tests.models.test_names import FORM
from tests.pipeline.conftest import RECIPE, run, write_documents

GUIDE = ROOT / "docs" / "guides" / "add-a-family.md"
NAME = "stablelm"
FILES = (  # that the guide writes, in its order
    "src/stemma/models/stablelm.py",
    "src/stemma/interop/stablelm.py",
    "tests/models/oracles/stablelm.py",
)
PACKAGES = (stemma.models, stemma.interop, tests.models.oracles)  # where they are
CASES = ("stablelm", "stablelm biases, half", "stablelm tied, one group")


def forget():
    """Let what is found by looking be looked for again."""
    tables.cache_clear()
    parity.cases.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """The family, as long as these tests last."""
    with pytest.MonkeyPatch.context() as patch:
        for package, text in zip(PACKAGES, blocks(GUIDE, "python"), strict=True):
            folder = tmp_path_factory.mktemp("added")
            (folder / f"{NAME}.py").write_text(text)
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        forget()
        yield NAME
    for package in PACKAGES:
        sys.modules.pop(f"{package.__name__}.{NAME}", None)
        vars(package).pop(NAME, None)
    forget()


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(added, request):
    return parity.pair_of(request.param)


@pytest.mark.parametrize("index", range(len(FILES)), ids=FILES)
def test_files_of_the_guide_keep_the_house_rules(index):
    text = blocks(GUIDE, "python")[index]
    assert len(text.splitlines()) <= 120, "the limit of a family's file"
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--stdin-filename"]
        done = subprocess.run(
            [*command, FILES[index], "-"], input=text, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_family_is_found_by_looking(added):
    assert added in api.families() and added in tables()
    assert api.presets()["stablelm-2-1.6b"] == added
    assert api.does(added) == "continue"
    assert [case for case in parity.cases() if case.split()[0] == added] == list(CASES)


@pytest.mark.parametrize(("preset", "billions"), [("stablelm-3b", 2.80), ("stablelm-2-1.6b", 1.64)])
def test_presets_have_the_published_sizes(added, preset, billions):
    module = importlib.import_module(f"stemma.models.{added}")
    count = sum(p.numel() for p in api.sketch(added, **module.PRESETS[preset]).parameters())
    assert round(count / 1e9, 2) == billions


def test_logits_and_gradients_equal_transformers(pair):
    assert parity.logits_error(pair) <= parity.LIMIT
    for name, error in parity.gradient_errors(pair).items():
        assert error <= parity.LIMIT, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_and_ragged_rows_are_as_alone(pair, side):
    assert parity.padded_error(pair, side) <= parity.LIMIT
    assert parity.ragged_error(pair, side) <= parity.LIMIT


def test_cached_pass_equals_full_pass(pair):
    for chunks in parity.CHUNKS:
        assert parity.cached_error(pair, chunks) <= parity.LIMIT, chunks


def test_folders_go_both_ways(pair, tmp_path):
    assert parity.round_trip_error(pair, tmp_path / "ours") == 0
    assert stemma.load(tmp_path / "ours")[0].config == pair.ours.config


@pytest.mark.parametrize("key", ["qk_layernorm", "use_parallel_residual"])
def test_what_would_change_the_equation_is_refused_by_name(added, key, tmp_path):
    parity.pair_of("stablelm").theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: True}))
    with pytest.raises(ModelError, match=key):
        stemma.load(tmp_path)


def test_a_sound_folder_is_read_without_a_word(added, tmp_path, caplog):
    parity.pair_of("stablelm").theirs.save_pretrained(tmp_path)
    stemma.load(tmp_path)
    assert not caplog.records


def test_numbers_that_do_not_fit_are_refused_with_both(added):
    with pytest.raises(UsageError, match=r"num_heads \(6\) must be a multiple of num_kv_heads \(4"):
        api.sketch(added, width=48, depth=1, num_heads=6, num_kv_heads=4, hidden=8, vocab_size=9)
    with pytest.raises(UsageError, match=r"rotary_fraction \(0.25\) of a head's 12 features is 3"):
        api.sketch(added, width=48, depth=1, num_heads=4, hidden=8, vocab_size=9)


def test_golden_names_of_the_guide_are_those_of_the_network(added):
    numbers, *names = blocks(GUIDE, "text")[0].splitlines()
    model = api.sketch(added, **json.loads(numbers))
    assert [name for name, _ in model.named_parameters()] == names
    assert all(FORM.fullmatch(name) for name in names)


def test_a_recipe_trains_it(added, tmp_path):
    write_documents(tmp_path / "docs")
    head, tail = RECIPE.split("family: llama, width: 16")
    recipe = f"{head}family: {added}, width: 16, hidden: 24{tail}"
    (tmp_path / "tiny.yaml").write_text(recipe)
    run(tmp_path, "base.steps=2", "base.watch.every=0", "base.samples.every=0", until="base")
    record = json.loads((tmp_path / "out" / "base" / "stage.json").read_text())
    assert record["status"] == "complete"
    assert stemma.load(tmp_path / "out" / "base")[0].config.family == added
