"""The Python face: load, save, build, generate.

A model is named by a path (a Hugging Face folder, a run folder, a stage of a run, a GGUF file) or
by the name of a catalogue asset, and comes with its tokenizer. A family is a file of
`stemma.models`, found by its name, so a new family needs no entry here.
"""

import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints, overload

import torch
from pydantic import ValidationError

import stemma.models
from stemma.core import assets
from stemma.core.config import StrictModel, complaint
from stemma.core.device import pick
from stemma.core.errors import ModelError, UsageError, nearest
from stemma.core.files import sha256_json
from stemma.core.yaml_file import read_yaml
from stemma.data.flaws import Flaw
from stemma.data.messages import Conversation, Message, parse_messages
from stemma.data.renderer import Renderer
from stemma.data.tokenizer import Tokenizer
from stemma.infer.chat import to_be_answered
from stemma.infer.generate import generate as continue_prompts
from stemma.infer.sampling import Sampling
from stemma.infer.translate import RECOMMENDED, BeamSearch, recommendation, recommended
from stemma.infer.translate import translate as translate_texts
from stemma.interop.folder import describe, read_folder, read_tokenizer, write_folder
from stemma.interop.gguf_folder import convert, is_gguf, only_gguf
from stemma.interop.gguf_model import describe_file
from stemma.interop.tensors import refuse_pickle
from stemma.nn.initial import initialise
from stemma.nn.meta import shapes_only
from stemma.nn.stack import LanguageModel

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
FORMATS = ("hf",)
LARGEST = 1 << 48  # of any number of a network
Spoken = Mapping[str, Any]  # a message as JSON has it
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def families() -> list[str]:
    """The names of all families, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(stemma.models.__path__))


def presets() -> dict[str, str]:
    """The names of all presets with the family of each."""
    return {preset: family for family in families() for preset in _family(family).PRESETS}


def config_class(family: str) -> type[Any]:
    """The class of a family's config. Raises UsageError for an unknown family."""
    if family not in families():
        fix = nearest(family, families())
        raise UsageError(f"unknown family {family!r}", place="family", fix=fix)
    kinds = [k for k in vars(_family(family)).values() if isinstance(k, type)]
    return next(kind for kind in kinds if getattr(kind, "family", None) == family)


def network(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Family and numbers of `{family: …, numbers}` or `{preset: …, numbers}`, as recipes say them.

    Numbers given beside a preset replace the preset's. Raises UsageError for an unknown preset.
    """
    numbers = {key: value for key, value in model.items() if key not in ("family", "preset")}
    if "preset" not in model:
        return str(model.get("family", "")), numbers
    known, name = presets(), str(model["preset"])
    if name not in known:
        raise UsageError(f"unknown preset {name!r}", place="preset", fix=nearest(name, known))
    return known[name], {**_family(known[name]).PRESETS[name], **numbers}


def does(family: str) -> str:
    """What networks of a family do: "continue" a text, "translate" one, or "read" it whole.

    Told by what its builder returns: an encoder-decoder encodes a source, and what only reads has
    no state between tokens.
    """
    network = get_type_hints(_family(family).build)["return"]
    if hasattr(network, "encode"):
        return "translate"
    return "continue" if hasattr(network, "new_cache") else "read"


def fingerprint(config: Any) -> str:
    """The identity of a network: sha256 over family, family version and config."""
    return sha256_json([config.family, config.family_version, config.model_dump(mode="json")])


def _family(name: str) -> Any:
    return importlib.import_module(f"stemma.models.{name}")


def build(
    name: str,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    **numbers: Any,
) -> LanguageModel:
    """Build a model with fresh weights, from a family and its numbers or from a preset.

    `build("llama", width=64, depth=2, num_heads=4, vocab_size=256)`; numbers given with a preset
    replace the preset's. Weights are a function of seed and parameter name alone. Raises
    UsageError for an unknown name, an unknown key, or numbers that do not fit together.
    """
    family, chosen = _choose(name, numbers)
    config = _config(family, chosen)
    model, target, kind = _on_meta(family, config), pick(str(device)), _dtype(dtype)
    # the same as `to_empty`, which on the meta device imports a compiler's worth of modules
    empty = {
        n: torch.empty(p.shape, dtype=kind, device=target) for n, p in model.named_parameters()
    }
    model.load_state_dict(empty, assign=True)
    initialise(model, seed=seed, std=config.initial_std, depth=config.depth)
    return model


def _choose(name: str, numbers: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Family and numbers; a family's own name with no numbers means the preset of that name."""
    if name in families() and numbers:
        return name, dict(numbers)
    known = presets()
    if name in families() and name not in known:
        return name, {}
    if name not in known:
        fix = nearest(name, {*families(), *known})
        raise UsageError(f"unknown family or preset {name!r}", place="name", fix=fix)
    return known[name], {**_family(known[name]).PRESETS[name], **numbers}


def _config(family: str, numbers: Mapping[str, Any]) -> Any:
    kind = config_class(family)
    try:
        return kind(**numbers)
    except ValidationError as error:
        raise _complaint(error, family, kind, numbers) from error


def _complaint(
    error: ValidationError,
    name: str,
    kind: type[StrictModel],
    numbers: Mapping[str, Any] | None = None,
) -> UsageError:
    """The first of pydantic's complaints in one line."""
    found = complaint(error, kind, numbers)
    fix = "correct it"
    if found.kind == "extra_forbidden":
        fix = "leave it out" if "." in found.key else nearest(found.key, kind.model_fields)
    elif found.kind == "missing":
        fix = f"give {found.key}=…"
    return UsageError(found.what, place=f"{name}: {found.key}" if found.key else name, fix=fix)


def sketch(family: str, **numbers: Any) -> LanguageModel:
    """A network by its numbers without memory for weights: for names and shapes."""
    return _on_meta(family, _config(family, numbers))


def _on_meta(family: str, config: Any) -> LanguageModel:
    """A model whose parameters have shapes but no memory yet.

    Raises UsageError for numbers that no network can be made of.
    """
    too_large = UsageError("too large for any machine", place=family, fix="use smaller numbers")
    if any(type(value) is int and value > LARGEST for value in config.model_dump().values()):
        raise too_large
    try:
        with shapes_only():
            model: LanguageModel = _family(family).build(config)
    except ValueError as error:
        raise UsageError(str(error), place=family, fix="correct it") from error
    except (RuntimeError, OverflowError) as error:
        raise too_large from error
    return model


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        fix = nearest(str(dtype), DTYPES)
        raise UsageError(f"unknown dtype {dtype!r}", place="dtype", fix=fix)
    return found


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> tuple[LanguageModel, Tokenizer | None]:
    """Load a model in evaluation mode, and its tokenizer; None where the folder has none.

    `model` is a Hugging Face folder, a run folder (its last stage that made a model), a stage of
    one, a GGUF file, or the name of a catalogue asset, which is pulled if needed. Weights are
    converted to `dtype`, float32 unless given; those of a GGUF file are decoded at the first load
    and kept in the cache. Raises UsageError where there is no such model, ModelError where its
    files are not sound.
    """
    target, wanted = pick(str(device)), _dtype(dtype)
    found = find_model(model)
    foreign = read_folder(convert(found) if found.is_file() else found, dtype=wanted)
    network = _on_meta(foreign.family, _config(foreign.family, foreign.numbers))
    network.load_state_dict(foreign.state, assign=True)
    object.__setattr__(network, "generation", foreign.generation)  # no parameter, no submodule
    name_labels(network, foreign.labels)
    return network.to(target).eval(), foreign.tokenizer


def with_vocabulary(model: LanguageModel, size: int) -> LanguageModel:
    """The model with room for `size` token ids: itself where it has it, else one with more rows.

    A new row of the embedding, and of a head of its own, is the mean of the old ones: a token that
    nobody has seen is then as likely as the average, and nothing else changes by more than that.
    """
    old = model.config.vocab_size
    if size <= old:
        return model
    config = model.config.model_copy(update={"vocab_size": size})
    wider, state = _on_meta(config.family, config), dict(model.state_dict())
    for name, shape in ((name, p.shape) for name, p in wider.named_parameters()):
        tensor = state[name]
        if tensor.shape != shape:
            rows = tensor.mean(0, keepdim=True).expand(size - old, *tensor.shape[1:])
            state[name] = torch.cat((tensor, rows))
    wider.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    object.__setattr__(wider, "generation", _generation(model))
    name_labels(wider, getattr(model, "labels", ()))
    return wider.train(model.training)


def name_labels(model: Any, labels: Sequence[str]) -> None:
    """What a classifier's labels are called, here and in the folder that it is saved to."""
    object.__setattr__(model, "labels", tuple(labels))


def end_with(model: LanguageModel, ids: Iterable[int]) -> None:
    """Let these tokens end what the model writes, here and in the folder that it is saved to."""
    own = _generation(model)
    named = own.get("eos_token_id")
    listed = named if isinstance(named, list) else [] if named is None else [named]
    ends = list(dict.fromkeys([*ids, *listed]))
    object.__setattr__(model, "generation", {**own, "eos_token_id": ends})


def translate_with(model: Any, search: BeamSearch) -> None:
    """Let a translator search like this unless told otherwise, here and where it is saved to."""
    own = {**_generation(model), **recommendation(search)}
    object.__setattr__(model, "generation", own)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder. Raises ModelError where it has none."""
    tokenizer = read_tokenizer(Path(folder))
    if tokenizer is None:
        raise ModelError("has no tokenizer.json", place=folder, fix="name a folder that has one")
    return tokenizer


def info(model: str | Path) -> dict[str, Any]:
    """Facts about a model from its files' headers; no weight is read."""
    found = find_model(model)
    facts = describe_file(found) if found.is_file() else describe(found)
    known = assets.catalogue()
    return facts | ({"licence": known[str(model)].licence} if str(model) in known else {})


def find_model(model: str | Path) -> Path:
    """The Hugging Face folder or GGUF file that a name stands for; an asset is pulled if needed."""
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder_of(path)
    if path.exists():
        if is_gguf(path):
            return path
        raise _plain_file(path)
    return _folder_of(_pulled(str(model)))


def _pulled(name: str) -> Path:
    """The folder of a catalogue asset; what cannot be a model is refused before it is fetched."""
    known = assets.catalogue()
    if name not in known:
        fix = f"give a folder, a GGUF file, or the name of an asset: {nearest(name, known)}"
        raise UsageError("no such model", place=name, fix=fix)
    if known[name].kind != "model":
        what = f"an asset of kind {known[name].kind}, not a model"
        raise UsageError(what, place=name, fix="see `stemma list assets`")
    return assets.pull(name)


def _folder_of(path: Path) -> Path:
    """A folder itself, its one GGUF file, a stage's `final/`, or that of a run's last stage."""
    final = path / "final"
    if (final / "config.json").is_file():
        return final
    if (path / "recipe.yaml").is_file():
        for stage in reversed(_stages(path / "recipe.yaml")):
            if (path / stage / "final" / "config.json").is_file():
                return path / stage / "final"
            _refuse_comparison(path / stage)
        raise ModelError("no stage of this run has made a model yet", place=path, fix=_go_on(path))
    _refuse_comparison(path)
    if (path / "steps").is_dir():
        fix = "run the recipe again to go on"
        raise ModelError("this stage is not finished", place=path, fix=fix)
    if (path / "config.json").exists():
        return path
    return only_gguf(path) or path


def _refuse_comparison(stage: Path) -> None:
    """Refuse a stage that compares networks: it keeps what it measured, and none of them."""
    if (stage / "trials").is_dir():
        what = "a lineage compares networks and keeps no model"
        fix = "train the one you want in a pretrain stage, with its numbers from the recipe"
        raise ModelError(what, place=stage, fix=fix)


def _go_on(run: Path) -> str:
    """How to go on with a run: the command that it was started by, where that can be read."""
    try:
        command = json.loads((run / "run.json").read_text("utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return "run the recipe again until a stage has made a model"
    return f"go on where it is: {command}"


def _stages(recipe: Path) -> list[str]:
    """The names of a recipe's stages in order."""
    root = read_yaml(recipe)
    stages = root.value.get("stages") if isinstance(root.value, dict) else None
    if stages is None or not isinstance(stages.value, dict):
        raise UsageError("has no stages", place=recipe, fix="name the folder of a model itself")
    return list(stages.value)


def _plain_file(path: Path) -> ModelError:
    """Why a plain file is no model; pickle files are refused by what they are."""
    refuse_pickle(path)
    what = "a model is a folder with config.json, or a GGUF file"
    return ModelError(what, place=path, fix=f"give its folder ({path.parent})")


def save(
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    path: str | Path,
    *,
    format: str = "hf",
    overwrite: bool = False,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a model and its tokenizer as a folder that transformers loads too.

    The generation settings that the model was loaded with go along. `state` has other weights than
    the model's own, as those that were spread over processes. Raises UsageError for an
    unknown format, for an existing target, and for one that holds other files.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", place="format", fix=nearest(format, FORMATS))
    weights = model.state_dict() if state is None else state
    write_folder(
        Path(path),
        model.config,
        {name: tensor.detach() for name, tensor in weights.items()},
        tokenizer,
        _generation(model),
        getattr(model, "labels", ()),
        overwrite=overwrite,
    )


@overload
def generate(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str | Sequence[Spoken], **settings: Any
) -> str: ...
@overload
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Sequence[str] | Sequence[Sequence[Spoken]],
    **settings: Any,
) -> list[str]: ...
def generate(
    model: LanguageModel, tokenizer: Tokenizer, prompt: Any, **settings: Any
) -> str | list[str]:
    """Continue a text, or answer messages, and return what is new.

    Messages are a list such as `[{"role": "user", "content": "…"}]` and go through the model's
    chat template; a text is continued as it stands. A list of texts, or of lists of messages, gives
    a list. `settings` are the fields of `Sampling`: `max_new_tokens`, `temperature` (0 takes the
    likeliest token), `top_p`, `top_k`, `min_p`, `seed`, `stop`, …; those not given come from the
    model's own recommendation. Raises UsageError for an unknown setting, for messages that are
    none or without a template, or a prompt longer than the model's context; ModelError where there
    is no tokenizer.
    """
    if tokenizer is None:
        raise ModelError("the model has no tokenizer", place="tokenizer", fix="add tokenizer.json")
    if does(model.config.family) == "translate":
        translated: str | list[str] = translate(model, tokenizer, prompt, **settings)
        return translated
    require_writer(model)
    prompts, single = _prompts(prompt)
    turns: frozenset[int] = frozenset()
    if not all(isinstance(each, str) for each in prompts):
        renderer = chat_renderer(tokenizer)
        turns = turn_ends(renderer)
        prompts = [
            prompt_of(renderer, each, place="" if single else f"prompt {number}: ")
            for number, each in enumerate(prompts)
        ]
    chosen, ends = sampling(model, **settings), end_ids(model, tokenizer) | turns
    answers = continue_prompts(model, tokenizer, prompts, chosen, end_ids=ends)
    texts = [answer.text for answer in answers]
    return texts[0] if single else texts


def translate(model: Any, tokenizer: Tokenizer, text: Any, **settings: Any) -> Any:
    """Translate a text, or each of a list, with an encoder-decoder.

    `settings` are the fields of `BeamSearch`: `beams`, `alpha`, `max_new_tokens`; those not given
    come from the model's own recommendation. Raises UsageError for an unknown setting, a model that
    does not translate, and a text longer than its context.
    """
    if does(model.config.family) != "translate":
        what = f"a {model.config.family} does not translate"
        raise UsageError(what, place="model", fix="use generate")
    texts, single = _prompts(text)
    if not all(isinstance(each, str) for each in texts):
        raise UsageError("a translator takes texts, not messages", place="prompt", fix="give texts")
    made = translate_texts(model, tokenizer, texts, search_of(model, **settings))
    return made[0] if single else made


def require_writer(model: Any) -> None:
    """Refuse a network that cannot go on from a text (UsageError)."""
    family = model.config.family
    if does(family) == "translate":
        what, fix = f"a {family} translates and goes on from no text", "use `stemma generate`"
        raise UsageError(what, place="model", fix=fix)
    if does(family) == "read":
        what = f"a {family} reads texts whole and writes none"
        fix = "use fill or label of stemma.infer.encoders, or a model that goes on from a text"
        raise UsageError(what, place="model", fix=fix)


def _prompts(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts, all texts or all messages, and whether it was one alone."""
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence):
        what = f"expected a text or a list of messages, got {type(prompt).__name__}"
        raise UsageError(what, place="prompt", fix="give a text, or messages in a list")
    if any(isinstance(part, Mapping) for part in prompt):
        return [prompt], True
    if len({isinstance(each, str) for each in prompt}) > 1:
        fix = "give a list of one kind"
        raise UsageError("texts and messages are mixed", place="prompt", fix=fix)
    return list(prompt), False


def chat_renderer(tokenizer: Tokenizer, *, place: object = "prompt") -> Renderer:
    """What makes prompts of messages. Raises UsageError where the model has no chat template."""
    if tokenizer.template is None:
        what = "messages need a chat template, and the model has none"
        raise UsageError(what, place=place, fix="give a text to go on from")
    return Renderer(tokenizer)


def prompt_of(renderer: Renderer, messages: Any, *, place: str = "") -> list[int]:
    """Ids of messages, as JSON has them, up to where the assistant has to go on.

    Raises UsageError for what is no list of messages, and for what the template refuses.
    """
    try:
        return renderer.prompt(to_be_answered(parse_messages(messages)))
    except Flaw as flaw:
        where = f"{place}{flaw.key or 'chat template'}"
        raise UsageError(flaw.reason, place=where, fix=flaw.fix or "correct it") from flaw


def turn_ends(renderer: Renderer) -> frozenset[int]:
    """The tokens by which the template ends an answer, whatever the model's files say.

    None where the template does not take the plainest of conversations.
    """
    messages = (Message("user", "Hello"), Message("assistant", "Hello"))
    try:
        samples = renderer.samples(Conversation(messages))
    except (Flaw, ModelError):
        return frozenset()
    return frozenset(end for sample in samples for end in sample.end_ids)


def sampling(model: LanguageModel, **settings: Any) -> Sampling:
    """How to sample from a model: what is given, else what its `generation_config.json` says.

    A file that says anything of sampling is taken to leave the rest neutral, as transformers
    does; with none, the defaults of `Sampling` hold. `do_sample: false` is temperature 0. Raises
    UsageError for a setting of yours, ModelError for one of the file's.
    """
    own = _generation(model)
    found = {key: own[key] for key in SETTINGS if own.get(key) is not None}
    if found or own.get("do_sample") is not None:
        found = {"temperature": 1.0, "top_p": 1.0, **found}
    if own.get("do_sample") is False:
        found["temperature"] = 0.0
    chosen: Sampling = _settled(Sampling, "sampling", found, settings, {})
    return chosen


def search_of(model: Any, **settings: Any) -> BeamSearch:
    """How to search for translations: what is given, else what `generation_config.json` says.

    The file's `num_beams`, `max_new_tokens` and, a key of ours, `length_penalty_alpha` are read.
    Raises UsageError for a setting of yours, ModelError for one of the file's.
    """
    own = recommended(_generation(model))
    chosen: BeamSearch = _settled(BeamSearch, "beam search", own, settings, RECOMMENDED)
    return chosen


def _settled(
    kind: type[StrictModel],
    name: str,
    own: Mapping[str, Any],
    settings: Mapping[str, Any],
    called: Mapping[str, str],
) -> Any:
    """A value of what is given, else of a model's `own`; `called`: what the file calls a key."""
    try:
        given = kind(**settings)  # a mistake of the caller's comes before one of the file's
        return kind(**{**own, **given.model_dump(include=set(settings))})
    except ValidationError as error:
        key, what, _ = complaint(error)
        mistake = _complaint(error, name, kind)
    if key in own and key not in settings:
        place = f"generation_config.json: {called.get(key, key)}"
        raise ModelError(what, place=place, fix=f"give {key}=…")
    raise mistake


def end_ids(model: LanguageModel, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those that the model was loaded with.

    A chat model may end a turn and a text with different tokens. Raises ModelError for ids in the
    file that are none.
    """
    named = _generation(model).get("eos_token_id")
    listed = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(token) is int for token in listed):
        what = f"expected a token id or a list of them, got {named!r:.60}"
        raise ModelError(what, place="generation_config.json: eos_token_id", fix="correct it")
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return frozenset([*own, *listed])


def _generation(model: LanguageModel) -> dict[str, Any]:
    """The generation settings that `load` left on the model; none where it was built."""
    found: dict[str, Any] = getattr(model, "generation", {})
    return found
