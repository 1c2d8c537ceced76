"""`stemma init`: a commented recipe for a folder of someone's own documents, sized to them.

Without a model to go on from, a small network is trained from nothing. With one, the recipe is the
shipped `my-docs` with the person's own names in it: continued pretraining, then fine-tuning where
there are examples of conversations.
"""

import json
import math
import re
import shlex
import unicodedata
from pathlib import Path

from stemma import api
from stemma.core import assets
from stemma.core.errors import UsageError, printable
from stemma.core.files import atomic_file
from stemma.data.conversation_files import KINDS
from stemma.data.sources import find_files
from stemma.data.text_key import likely_text_key
from stemma.pipeline.recipe import find

BATCH_TOKENS = 512
CONTEXT = 256
PACKED = 4  # times its size a compressed text is taken to hold
SPARSE = 16  # bytes of a file that surely make a token to train on: a batch must be filled

TEMPLATE = """\
# {name}: a small language model of the documents in {shown}
# Run it:      stemma run {file}
# Try a value: stemma run {file} base.tokens=200k --dry-run
# Found when this file was written: {count} files, {megabytes:.2f} MB.

name: {name}            # the run folder is runs/{name}
seed: 0                 # everything that draws draws from this

stages:
  corpus:               # documents in, split into training and held-out
    kind: curate
    inputs: [{quoted}]  # folders, files, globs; seen from this file's folder
    text_key: {text_key}  # the key of JSONL lines and the column of Parquet that hold the text
    bad_lines: skip     # list bad lines in rejects.jsonl and go on; `error` stops at the first
    holdout: {{fraction: 0.1}}   # whole documents kept from training, to score on

  tokenizer:            # a byte-level BPE vocabulary, learned from the training documents
    kind: tokenizer
    corpus: corpus
    vocab_size: {vocab_size}

  base:                 # the network, trained on next tokens
    kind: pretrain
    corpus: corpus
    tokenizer: tokenizer
    model: {{family: llama, width: {width}, depth: {depth}, num_heads: {heads}, tied: true}}
    initial: fan-in     # blocks begin as the identity: they learn faster
    context: {context}        # tokens the network sees at once
    tokens: {tokens}    # about {epochs:.1f} passes over the documents
    batch_tokens: {batch_tokens}   # a small run learns more from many small steps
    learning_rate: 1e-3
    schedule: {{kind: cosine, warmup: 50, floor: 0}}
    optimizer: {{embedding_rate: 20, beta2: 0.98}}
    checkpoint_every: 200
    watch: {{every: {watch_every}, bytes: 20k}}
    samples: {{every: {sample_every}}}

  scores:               # bits per byte on the held-out documents, beside baselines
    kind: evaluate
    model: base
    corpus: corpus
    context: 256

  export:               # a Hugging Face folder: runs/{name}/export/hf
    kind: export
    model: base
"""


GOING_ON = """\
# {name}: {model} reads the documents in {shown}
# Run it:      stemma run {file}
# Try a value: stemma run {file} base.tokens=20k --dry-run
# Found when this file was written: {count} files, {megabytes:.2f} MB.

name: {name}            # the run folder is runs/{name}
seed: 0                 # everything that draws draws from this

stages:
"""


def write_recipe(
    folder: Path, output: Path | None, *, model: str | None = None, examples: Path | None = None
) -> Path:
    """Write a recipe for the documents below `folder`; an existing file is kept (UsageError)."""
    if not folder.is_dir():
        if not folder.exists():
            find_files([str(folder)], Path())  # raises the error that knows the nearest name
        raise UsageError("not a folder", place=folder, fix="name the folder of your documents")
    if examples is not None and not examples.exists():
        raise UsageError("no such file or folder", place=examples, fix="name your examples")
    files = find_files([str(folder.absolute())], folder.absolute())
    name = recipe_name(folder.resolve().name)
    path = output or Path(f"{name}.yaml")
    if path.exists():
        raise UsageError("the file exists", place=path, fix="remove it, or use --output FILE")
    found = numbers(name, path, folder, files)
    sizes = {"base": size_of(files)}
    if examples is not None:
        inside = examples if examples.is_dir() else examples.parent
        sizes["chat"] = size_of(find_files([str(examples.absolute())], inside.absolute(), KINDS))
    if model is None:
        text = TEMPLATE.format(**found)
        if examples is not None:
            text = with_chat(text, relative(examples, path.parent))
    else:
        spoken = model_reference(model, path.parent)
        seen = None if examples is None else relative(examples, path.parent)
        text = going_on(found, spoken, seen, room=context_of(model))
    text = with_filled_batches(text, sizes)
    with atomic_file(path, "w") as file:
        file.write(text)
    return path


def model_reference(model: str, start: Path) -> str:
    """A model as a recipe names it: an asset, or a path seen from the recipe."""
    if Path(model).expanduser().exists():
        shown = relative(Path(model).expanduser(), start)
        return shown if "/" in shown else f"./{shown}"
    assets.find(model)  # raises the error that knows the nearest name
    return f"asset:{model}"


def context_of(model: str) -> int:
    """The longest power of two that a model's context holds; that of an asset is long enough."""
    place = Path(model).expanduser()
    return 1 << int(api.info(place)["context"]).bit_length() - 1 if place.exists() else 1 << 20


def quoted(text: str) -> str:
    """A name as YAML writes it: YAML reads JSON's escapes, but not its pairs of surrogates."""
    return printable(json.dumps(text, ensure_ascii=False))


def blocks(recipe: str) -> dict[str, str]:
    """The stages of a recipe's text by name; "" is what stands before them."""
    parts = re.split(r"(?m)^(?=  \w+:)", recipe)
    return {"": parts[0]} | {part.split(":")[0].strip(): part for part in parts[1:]}


def going_on(found: dict[str, object], model: str, examples: str | None, *, room: int) -> str:
    """The recipe `my-docs` with someone's own names, in a context of at most `room`.

    Without examples it has no chat stage.
    """
    parts = blocks(shipped_text("my-docs").replace("runs/my-docs", f"runs/{found['name']}"))
    corpus = parts["corpus"].replace("[docs]", f"[{found['quoted']}]")
    parts["corpus"] = corpus.replace(
        "    bad_lines", f"    text_key: {found['text_key']}\n    bad_lines"
    )
    for key in ("base", "scores"):
        parts[key] = re.sub('"?asset:smollm2-135m"?', lambda _: quoted(model), parts[key])
    for key in ("base", "chat", "scores"):
        parts[key] = re.sub(
            r"(?m)^(    (?:context|stride): )(\d+)",
            lambda found: f"{found[1]}{min(int(found[2]), room)}",
            parts[key],
        )
    parts["base"] = parts["base"].replace("tokens: 200k", f"tokens: {found['passes']}")
    if examples is None:
        del parts["chat"]
        dropped = ("conversations:", "answers:")
        lines = parts["scores"].splitlines(keepends=True)
        parts["scores"] = "".join(line for line in lines if not line.strip().startswith(dropped))
        for key in ("scores", "export"):
            parts[key] = parts[key].replace("model: chat", "model: base").replace(", base]", "]")
    else:
        parts["chat"] = parts["chat"].replace("[examples.jsonl]", f"[{quoted(examples)}]")
    parts[""] = GOING_ON.format(**found, model=printable(model))
    return "".join(parts.values())


def with_chat(text: str, examples: str) -> str:
    """The recipe for a network from nothing, with a stage that teaches it to answer."""
    parts, chat = blocks(text), blocks(shipped_text("quickstart"))["chat"]
    chat = chat.replace('["asset:chatterbot"]', f"[{quoted(examples)}]")
    chat = re.sub(r"(?m)^    minutes: .*\n|  +#.*$", "", chat)
    parts["base"] += chat
    parts["scores"] = parts["scores"].replace(
        "    model: base\n    corpus: corpus\n",
        "    model: chat\n    before: [base]\n    corpus: corpus\n    conversations: chat\n",
    )
    parts["export"] = parts["export"].replace("model: base", "model: chat")
    return "".join(parts.values())


def with_filled_batches(text: str, sizes: dict[str, int]) -> str:
    """The recipe with batches that so many bytes of data fill, stage by stage."""
    parts = blocks(text)
    for name, size in sizes.items():
        (context,) = re.findall(r"(?m)^    context: (\d+)", parts[name])
        most = filling(size, int(context))
        for key, value in re.findall(r"(?m)^    ((?:micro_)?batch_tokens): (\d+)", parts[name]):
            fitting = f"{key}: {min(int(value), most)}"
            parts[name] = parts[name].replace(f"    {key}: {value}", f"    {fitting}")
    return "".join(parts.values())


def filling(size: int, context: int) -> int:
    """The most tokens of a batch that so many bytes surely fill: a power of two of samples."""
    samples = max(1, size // SPARSE // context)
    return context * (1 << samples.bit_length() - 1)


def size_of(files: list[Path]) -> int:
    """Bytes of text in files, about."""
    return sum(f.stat().st_size * (PACKED if f.suffix in (".gz", ".zst") else 1) for f in files)


def shipped_text(name: str) -> str:
    """The text of a shipped recipe."""
    return find(name).read_text("utf-8")


def recipe_name(folder: str) -> str:
    """A folder's name in the letters that a recipe's may have: "Übungen 2" -> "Ubungen-2".

    Accents are dropped; where nothing is left, as of names in other scripts, it is "my-docs".
    """
    latin = unicodedata.normalize("NFKD", folder).encode("ascii", errors="ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]", "-", latin).lstrip("._-") or "my-docs"


def numbers(name: str, path: Path, folder: Path, files: list[Path]) -> dict[str, object]:
    """Sizes that suit the corpus: small text gets a small network."""
    size = size_of(files)
    batch_tokens = min(BATCH_TOKENS, filling(size, CONTEXT))
    vocab_size = 512 if size < 200_000 else 1024 if size < 1_000_000 else 2048
    width, depth = (128, 3) if size < 200_000 else (192, 4) if size < 1_000_000 else (256, 5)
    corpus_tokens = max(1, size / 3)
    tokens = int(min(1_000_000, max(60_000, 4 * corpus_tokens)) // 1000 * 1000)
    steps = math.ceil(tokens / batch_tokens)
    source = relative(folder, path.parent)
    return {
        "name": name,
        "file": printable(shlex.quote(str(path))),
        "shown": printable(folder.name or folder),
        "count": len(files),
        "text_key": json.dumps(likely_text_key(files)),
        "megabytes": size / 1e6,
        "quoted": quoted(source),
        "passes": f"{max(20, min(500, round(corpus_tokens / 1000)))}k",
        "vocab_size": vocab_size,
        "width": width,
        "depth": depth,
        "heads": width // 32,
        "context": CONTEXT,
        "batch_tokens": batch_tokens,
        "tokens": f"{tokens // 1000}k",
        "epochs": tokens / corpus_tokens,
        "watch_every": max(1, steps // 5),
        "sample_every": max(1, steps // 4),
    }


def relative(folder: Path, start: Path) -> str:
    """The folder as seen from the recipe where it lies below it, else in full."""
    folder, start = folder.resolve(), start.resolve()
    return str(folder.relative_to(start)) if folder.is_relative_to(start) else str(folder)
