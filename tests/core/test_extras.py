"""An optional package is imported, or its absence is one line with the command that helps."""

from pathlib import Path

import pytest
import tomllib

from stemma.core import extras
from stemma.core.errors import ResourceError


def test_a_present_package_is_handed_over(monkeypatch):
    monkeypatch.setitem(extras.MODULES, "report", "json")
    import json

    assert extras.require("report") is json
    assert extras.require("report", "json.decoder") is json.decoder


@pytest.mark.parametrize("module", [None, "surely_not_installed.figure"])
def test_a_missing_package_is_one_line_with_the_command(monkeypatch, module):
    monkeypatch.setitem(extras.MODULES, "report", "surely_not_installed")
    with pytest.raises(ResourceError) as caught:
        extras.require("report", module)
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        "this needs the package surely_not_installed, which is not installed; "
        'pip install "stemma-lm[report]"'
    )


def test_a_package_that_fails_inside_keeps_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "half_broken.py").write_text("import a_dependency_of_its_own\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(extras.MODULES, "report", "half_broken")
    with pytest.raises(ModuleNotFoundError, match="a_dependency_of_its_own"):
        extras.require("report")


def test_an_extra_that_nobody_declared_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="did you mean report"):
        extras.require("reports")


def test_every_extra_is_declared_with_its_package():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    options = declared["project"]["optional-dependencies"]
    for extra, module in extras.MODULES.items():
        assert any(line.startswith(module) for line in options[extra])
