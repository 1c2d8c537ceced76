"""Recipes: one YAML file of named stages, checked whole before any work starts.

A stage names its inputs by an earlier stage's name, by `asset:NAME`, or by a path relative to the
recipe. Which kind of stage it is decides its keys; each kind is a module of this room.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from stemma import api
from stemma.core import yaml_file
from stemma.core.config import StrictModel
from stemma.core.errors import UsageError, nearest
from stemma.core.yaml_file import Node
from stemma.nn.select import choose
from stemma.pipeline.classify import ClassifyStage
from stemma.pipeline.curate import CurateStage
from stemma.pipeline.encoders import MASKED, labelling
from stemma.pipeline.evaluate import EvaluateStage
from stemma.pipeline.export import ExportStage
from stemma.pipeline.lineage import LineageStage
from stemma.pipeline.masked import MaskedStage
from stemma.pipeline.pretrain import PretrainStage
from stemma.pipeline.sft import SftStage
from stemma.pipeline.tokenizer import TokenizerStage
from stemma.pipeline.translate import TranslateStage

FORMAT_VERSION = 1
PAPERS = ("recipe.yaml", "run.json", "ledger.json", "report.html")  # beside the stages
GIVEN = ("vocab_size", "source_vocab_size", "context")  # numbers that others say
DOES = {  # what the networks of a kind of stage do
    "pretrain": "continue",
    "lineage": "continue",
    "translate": "translate",
    "masked": "read",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Stage = (
    CurateStage
    | TokenizerStage
    | PretrainStage
    | SftStage
    | TranslateStage
    | MaskedStage
    | ClassifyStage
    | LineageStage
    | EvaluateStage
    | ExportStage
)
Trained = PretrainStage | SftStage | MaskedStage | ClassifyStage  # may go on from a model
KINDS = {str(get_args(s.model_fields["kind"].annotation)[0]): s for s in get_args(Stage)}


class Recipe(StrictModel):
    """A recipe as it is written."""

    format_version: int = Field(default=1, description="version of the recipe format")
    name: str = Field(description="names the run folder runs/NAME")
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="seed of everything that draws")
    out: str | None = Field(default=None, description="the run folder; default runs/NAME")
    stages: dict[str, Stage] = Field(description="the stages by name, in the order they run")


def shipped() -> dict[str, str]:
    """Names of the recipes that come with the package, with the first line of each."""
    folder = resources.files("stemma.pipeline") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {
        f.name.removesuffix(".yaml"): f.read_text("utf-8").splitlines()[0].lstrip("# ")
        for f in files
    }


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_dir():
            raise UsageError("a folder is not a recipe", place=name, fix=f"try stemma init {name}")
        if not path.is_file():
            near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            fix = nearest(path.name, near) if near else "write one with `stemma init FOLDER`"
            raise UsageError("no such recipe", place=name, fix=fix)
        return path
    if name not in shipped():
        raise UsageError("no such recipe", place=name, fix=nearest(name, shipped()))
    return Path(str(resources.files("stemma.pipeline") / "recipes" / f"{name}.yaml"))


def load(path: Path, overrides: list[str]) -> Recipe:
    """Read a recipe, apply `key.path=value` overrides, and check all of it (UsageError)."""
    root = yaml_file.read_yaml(path)
    if not isinstance(root.value, dict):
        raise UsageError("a recipe holds keys and values", place=path, fix="see `stemma init`")
    check_version(root, path)
    seen: set[str] = set()
    for assignment in overrides:
        key = assignment.partition("=")[0]
        if key in seen:
            fix = "give it once"
            raise UsageError(f"{key} is set twice", place=f"override {assignment}", fix=fix)
        seen.add(key)
        yaml_file.override(root, full_path(root, assignment))
    root.value.setdefault("name", Node(path.stem, str(path)))
    recipe = yaml_file.build(Recipe, root)
    check_names(recipe, root)
    check_inputs(recipe, root)
    check_models(recipe, root)
    check_trainable(recipe, root)
    check_contexts(recipe, root)
    return recipe


def check_version(root: Node, path: Path) -> None:
    """Refuse a recipe of a later format before its unknown keys confuse."""
    entries = root.value if isinstance(root.value, dict) else {}
    version = (
        yaml_file.parse_number(str(entries["format_version"].value))
        if ("format_version" in entries)
        else FORMAT_VERSION
    )
    if isinstance(version, int | float) and version > FORMAT_VERSION:
        raise UsageError(
            f"format_version {version} is newer than the {FORMAT_VERSION} this version knows",
            place=yaml_file.at(root, "format_version"),
            fix="update stemma-lm",
        )


def full_path(root: Node, assignment: str) -> str:
    """`base.tokens=1` means `stages.base.tokens=1`: overrides name a stage directly."""
    first = re.split(r"[.=]", assignment, maxsplit=1)[0]
    stages = root.value.get("stages") if isinstance(root.value, dict) else None
    names = stages.value if stages and isinstance(stages.value, dict) else {}
    if first in names:
        return f"stages.{assignment}"
    known = [*Recipe.model_fields, *names]
    if first not in Recipe.model_fields:
        fix = nearest(first, known)
        raise UsageError("unknown key", place=f"override {assignment}", fix=fix)
    return assignment


def check_names(recipe: Recipe, root: Node) -> None:
    """Names become folders, so they must be plain words."""
    places = {"name": recipe.name}
    for key, name in [*places.items(), *((f"stages.{s}", s) for s in recipe.stages)]:
        if not NAME.fullmatch(name):
            what = f"{name!r} cannot name a folder"
            raise UsageError(what, place=f"{root.place}: {key}", fix="use letters, digits, . _ -")
    for name in recipe.stages:
        if name.casefold() in PAPERS or name.casefold().endswith(".previous"):
            what = f"{name!r} is a name that the run folder uses itself"
            place = f"{root.place}: stages.{name}"
            raise UsageError(what, place=place, fix="choose another name")
    if not recipe.stages:
        raise UsageError("no stages", place=yaml_file.at(root, "stages"), fix="see `stemma init`")


def stage_node(root: Node, name: str) -> Node:
    """The node of a stage, for messages about it."""
    assert isinstance(root.value, dict)
    stages = root.value["stages"]
    assert isinstance(stages.value, dict)
    return stages.value[name]


def check_inputs(recipe: Recipe, root: Node) -> None:
    """Every reference to a stage must name an earlier one of the right kind."""
    earlier: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        for key, target in references(stage):
            kinds = type(stage).REFERENCES[key]
            if earlier.get(target) not in kinds and not is_outside(target, kinds):
                fitting = [n for n, kind in earlier.items() if kind in kinds]
                raise UsageError(
                    f"no earlier stage {target!r} of kind {' or '.join(kinds)}",
                    place=yaml_file.at(stage_node(root, name), key),
                    fix=nearest(target, fitting) if fitting else "add one before it",
                )
        earlier[name] = stage.kind


def references(stage: Stage) -> list[tuple[str, str]]:
    """The keys of a stage that name another or a model, with what each names; lists one by one."""
    found: list[tuple[str, str]] = []
    for key in type(stage).REFERENCES:
        named = getattr(stage, key)
        targets = named if isinstance(named, tuple) else () if named is None else (named,)
        found += [(key, target) for target in targets]
    return found


def is_outside(target: str, kinds: tuple[str, ...]) -> bool:
    """Models may also come from a path or an asset; corpora and tokenizers only from stages."""
    models = {"pretrain", "masked"} & set(kinds)
    return bool(models) and (target.startswith("asset:") or "/" in target or target == ".")


def check_models(recipe: Recipe, root: Node) -> None:
    """Check the numbers of networks before any stage runs, at their lines."""
    for name, stage in recipe.stages.items():
        node = stage_node(root, name)
        assert isinstance(node.value, dict)
        if isinstance(stage, LineageStage):
            networks = node.value["networks"]
            assert isinstance(networks.value, dict)
            for numbers in networks.value.values():
                check_network(numbers, stage.kind, stage.context)
        elif getattr(stage, "model", None) is not None and stage.kind in DOES:
            check_network(node.value["model"], stage.kind, getattr(stage, "context", 1))


def check_network(numbers: Node, kind: str, context: int) -> None:
    """Check family or preset and numbers of one network that a stage of a kind is to train."""
    assert isinstance(numbers.value, dict)
    family, rest = family_of(numbers), {}
    if api.does(family) != DOES[kind]:
        fitting = [name for name in api.families() if api.does(name) == DOES[kind]]
        what = f"{family} cannot be trained by kind: {kind}"
        fix = f"use {', '.join(fitting)}"
        raise UsageError(what, place=yaml_file.at(numbers, "family"), fix=fix)
    for given in (*GIVEN, *(MASKED if kind == "masked" else ())):
        if given in numbers.value:
            says = "the tokenizer" if given.endswith("vocab_size") else "the stage"
            fix = f"remove it: {says} says"
            raise UsageError("is not set here", place=yaml_file.at(numbers, given), fix=fix)
    if "preset" in numbers.value:
        chosen = api.network({"preset": str(numbers.value["preset"].value)})[1]
        rest = {key: as_node(value, numbers.place) for key, value in chosen.items()}
    rest |= {k: child for k, child in numbers.value.items() if k not in ("family", "preset")}
    for given in GIVEN:
        if given in api.config_class(family).model_fields:
            value = context if given == "context" else 1
            rest[given] = Node(str(value), numbers.place)
    checked = Node(rest, numbers.place, key_places=numbers.key_places)
    yaml_file.build(api.config_class(family), checked)


def family_of(numbers: Node) -> str:
    """The family that a network names itself or by a preset (UsageError)."""
    assert isinstance(numbers.value, dict)
    named = {key: str(child.value) for key, child in numbers.value.items()}
    if "preset" in named:
        if "family" in named:
            place = yaml_file.at(numbers, "preset")
            raise UsageError("family and preset exclude each other", place=place, fix="give one")
        known = api.presets()
        if named["preset"] not in known:
            fix = nearest(named["preset"], known)
            place = yaml_file.at(numbers, "preset")
            raise UsageError(f"unknown preset {named['preset']!r}", place=place, fix=fix)
        return known[named["preset"]]
    family = named.get("family", "")
    if family not in api.families():
        fix = nearest(family, api.families())
        if family in api.presets():
            fix = f"it is a preset: preset: {family}"
        raise UsageError("unknown family", place=yaml_file.at(numbers, "family"), fix=fix)
    return family


def as_node(value: Any, place: str) -> Node:
    """A number of a preset as if the recipe said it."""
    if isinstance(value, Mapping):
        return Node({key: as_node(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([as_node(child, place) for child in value], place)
    if isinstance(value, str):
        return Node(value, place, quoted=True)
    return Node(json.dumps(value), place)


def check_trainable(recipe: Recipe, root: Node) -> None:
    """Patterns of modules are tried on the network before any stage runs, where it is made here."""
    networks: dict[str, dict[str, Any]] = {}
    for name, stage in recipe.stages.items():
        if not isinstance(stage, Trained):
            continue
        own = stage.model if isinstance(stage, PretrainStage | MaskedStage) else None
        found = own or networks.get(stage.init or "")
        if found is None:
            continue  # a model from outside: the stage itself will look
        networks[name] = found
        if stage.trainable:
            family, rest = api.network(found)
            rest |= MASKED if isinstance(stage, MaskedStage) else {}
            rest |= labelling(2) if isinstance(stage, ClassifyStage) else {}
            given = {"vocab_size": 1, "context": stage.context}
            sketch = api.sketch(family, **(rest | given))
            place = yaml_file.at(stage_node(root, name), "trainable")
            choose(sketch, stage.trainable, place=place)


def check_contexts(recipe: Recipe, root: Node) -> None:
    """A model made here is trained on and scored within the context that it is made with."""
    widest: dict[str, int] = {}
    for name, stage in recipe.stages.items():
        if not isinstance(stage, EvaluateStage | Trained):
            continue
        sources = [
            target for key, target in references(stage) if key in ("model", "before", "init")
        ]
        limits = {source: widest[source] for source in sources if source in widest}
        for source, limit in limits.items():
            if stage.context > limit:
                raise UsageError(
                    f"context ({stage.context}) is longer than {source}'s ({limit})",
                    place=yaml_file.at(stage_node(root, name), "context"),
                    fix=f"use at most {limit}",
                )
        if isinstance(stage, PretrainStage | MaskedStage) and stage.model is not None:
            widest[name] = stage.context
        elif limits and not isinstance(stage, EvaluateStage):
            widest[name] = min(limits.values())
        if isinstance(stage, EvaluateStage):
            check_heldout(recipe, name, stage, root)


def check_heldout(recipe: Recipe, name: str, stage: EvaluateStage, root: Node) -> None:
    """What is scored on must have been held out."""
    corpus = recipe.stages.get(stage.corpus or "")
    talk = recipe.stages.get(stage.conversations or "")
    empty = {
        "corpus": isinstance(corpus, CurateStage) and corpus.holdout.fraction == 0,
        "conversations": isinstance(talk, SftStage) and not (talk.holdout or talk.heldout),
    }
    wanted = {"corpus": "holdout.fraction", "conversations": "holdout"}
    for key, nothing in empty.items():
        if nothing:
            raise UsageError(
                f"{getattr(stage, key)} holds nothing out",
                place=yaml_file.at(stage_node(root, name), key),
                fix=f"set its {wanted[key]} above 0, or remove this stage",
            )
