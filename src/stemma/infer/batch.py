"""Answers to a file of prompts, written as they come, so that a stopped run goes on.

Prompts are answered in batches of `BATCH` on fixed boundaries, and a batch is appended and synced
as a whole. What else is in a batch may change the last bits of a score; with fixed boundaries a
resumed run computes the same batches, hence writes the same bytes, as one that was never stopped.
Every answer carries a key over all that decided it, so answers to anything else are never taken
for ours.
"""

import json
import os
import signal
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch

from stemma.core.errors import DataError, StoppedError, UsageError, nearest
from stemma.core.files import hold, resource_error, sha256_json, sync_folder
from stemma.core.progress import Update
from stemma.core.signals import AGAIN, Request
from stemma.data.flaws import Flaw
from stemma.data.jsonl import LineParser, check_text, kind_of, split_lines
from stemma.data.messages import Message, parse_messages, parse_tools
from stemma.data.renderer import Renderer
from stemma.data.sources import require_regular
from stemma.data.streams import read_blocks
from stemma.infer.chat import to_be_answered
from stemma.infer.generate import Generation, generate, prompt_ids
from stemma.infer.sampling import Sampling
from stemma.infer.text import Tokenizer
from stemma.nn.stack import LanguageModel

BATCH = 8  # prompts answered together
LONGEST = 1 << 26  # bytes of one line
SAMPLED = 256  # values of each tensor that tell one model from another
KEYS = ("prompt", "messages", "tools", "system", "id", "seed")
TEXTS = ("prompt", "system")
MARK = b"\xef\xbb\xbf"  # a byte order mark


@dataclass(frozen=True, slots=True)
class Asked:
    """One line of a prompts file: a text, or messages. `id` and `seed` are the line's own."""

    line: int
    prompt: str | None
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    system: str | None
    id: str | int | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt as the model reads it."""

    line: int
    ids: "array[int]"
    id: str | int | None
    seed: int | None


@dataclass(frozen=True)
class Writer:
    """What answers prompts: the model and all that decides what it writes."""

    model: LanguageModel
    tokenizer: Tokenizer
    sampling: Sampling
    end_ids: Collection[int]

    @cached_property
    def identity(self) -> str:
        """sha256 over settings and model; a tensor is told by values spread evenly over it."""
        told = []
        for name, tensor in sorted(self.model.state_dict().items()):
            flat = tensor.detach().flatten()
            at = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64)
            values = flat[at.long().to(flat.device)].double().tolist()
            told.append([name, list(tensor.shape), [value.hex() for value in values]])
        config = self.model.config
        settings = self.sampling.model_dump(mode="json", exclude={"seed"})
        return sha256_json(
            [config.family, config.model_dump(mode="json"), told, settings, sorted(self.end_ids)]
        )

    def seed_of(self, job: Job) -> int | None:
        """The seed of a line's own, else the common one; None where one is drawn."""
        return self.sampling.seed if job.seed is None else job.seed

    def key(self, job: Job, seed: int) -> str:
        """What tells an answer: prompt, seed, settings and model, in 16 hexadecimal digits."""
        return sha256_json([self.identity, job.ids.tolist(), seed])[:16]

    def answer(self, jobs: Sequence[Job]) -> list[Generation]:
        """Answers to prompts, in order."""
        settings = [self.sampling.model_copy(update={"seed": self.seed_of(job)}) for job in jobs]
        prompts = [job.ids.tolist() for job in jobs]
        return generate(self.model, self.tokenizer, prompts, settings, end_ids=self.end_ids)


def read_prompts(path: Path) -> list[Asked]:
    """Read a prompts file whole. Raises DataError at the first line that is none, or for none."""
    if not path.exists():
        raise UsageError("no such file", place=path, fix="give a file that is there to --input")
    parser, found = LineParser("prompt", LONGEST), []
    try:
        blocks = read_blocks(path, "none", max_expansion=1, name=str(path))
        for number, line in split_lines(blocks, LONGEST):
            line = line.removeprefix(MARK) if line is not None and number == 1 else line
            if line is None or line.strip():
                found.append(_asked(parser, number, line))
    except Flaw as flaw:
        raise _at(path, flaw) from flaw
    if not found:
        raise DataError("no prompts", place=path, fix='write lines such as {"prompt": "…"}')
    return found


def _asked(parser: LineParser, number: int, line: bytes | None) -> Asked:
    try:
        if line is None:
            raise Flaw(f"longer than {LONGEST} bytes", fix="shorten it")
        found = parser.parse(line)
        if not isinstance(found, dict):
            got = kind_of(found)
            raise Flaw(f"expected an object with the key 'prompt' or 'messages', got {got}")
        return _fields(number, found)
    except Flaw as flaw:
        flaw.line = number
        raise


def _fields(number: int, found: dict[str, Any]) -> Asked:
    """The fields of one object. Raises Flaw with the key that is wrong."""
    for key in found:
        if key not in KEYS:
            raise Flaw("unknown key", key=key, fix=nearest(key, KEYS))
    if ("prompt" in found) == ("messages" in found):
        both = "both 'prompt' and 'messages'" if "prompt" in found else "no 'prompt', no 'messages'"
        raise Flaw(both, fix="give one of the two")
    seed, own = found.get("seed"), found.get("id")
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**63):
        raise Flaw("expected a whole number from 0 to 2^63 - 1", key="seed")
    if own is not None and type(own) not in (str, int):
        raise Flaw(f"expected a string or a whole number, got {kind_of(own)}", key="id")
    texts = {key: check_text(found[key], key, LONGEST) for key in TEXTS if key in found}
    messages = to_be_answered(parse_messages(found["messages"])) if "messages" in found else ()
    if messages and "system" in texts and messages[0].role == "system":
        raise Flaw("the messages begin with a system message of their own", key="system")
    return Asked(
        line=number,
        prompt=texts.get("prompt"),
        messages=messages,
        tools=parse_tools(found.get("tools")),
        system=texts.get("system"),
        id=check_text(own, "id", LONGEST) if isinstance(own, str) else own,
        seed=seed,
    )


@dataclass(frozen=True)
class Reader:
    """How a model takes prompts: by its chat template, or as they stand where `renderer` is None.

    `system` is for the lines that say nothing of their own.
    """

    tokenizer: Tokenizer
    renderer: Renderer | None
    system: str | None
    context: int

    def ids(self, asked: Asked) -> list[int]:
        """Ids of one prompt. Raises Flaw for one that the model cannot take."""
        if self.renderer is None:
            key = "messages" if asked.prompt is None else "system"
            if asked.prompt is None or asked.system is not None:
                what = "needs the model's chat template, which is missing or left out by --raw"
                raise Flaw(what, key=key, fix="give a prompt alone")
            ids = prompt_ids(self.tokenizer, asked.prompt)
        else:
            ids = self.renderer.prompt(self._messages(asked), tools=asked.tools)
        if len(ids) >= self.context:
            what = f"{len(ids)} tokens leave no room in the model's context of {self.context}"
            raise Flaw(what, fix=f"shorten it to at most {self.context - 1} tokens")
        return ids

    def _messages(self, asked: Asked) -> tuple[Message, ...]:
        messages = asked.messages or (Message("user", asked.prompt or ""),)
        system = self.system if asked.system is None else asked.system
        if system is None or messages[0].role == "system":
            return messages
        return (Message("system", system), *messages)


def encode_prompts(path: Path, asked: Sequence[Asked], reader: Reader) -> list[Job]:
    """Prompts as token ids. Raises DataError at the first that the model cannot take."""
    jobs = []
    for each in asked:
        try:
            jobs.append(Job(each.line, array("q", reader.ids(each)), each.id, each.seed))
        except Flaw as flaw:
            flaw.line = each.line
            raise _at(path, flaw) from flaw
    return jobs


def _at(path: Path, flaw: Flaw) -> DataError:
    return DataError(flaw.reason, place=flaw.place(str(path)), fix=flaw.fix or "correct the line")


def check_output(prompts: Path, output: Path) -> None:
    """Refuse, before any work, an output that cannot be one. Raises UsageError."""
    if output.exists():
        require_regular(output, str(output))
        if prompts.exists() and output.samefile(prompts):
            what = "--input and --output are one file"
            raise UsageError(what, place=output, fix="choose another --output")


def write_answers(
    writer: Writer,
    jobs: Sequence[Job],
    output: Path,
    *,
    overwrite: bool,
    request: Request,
    update: Update,
) -> int:
    """Answer every prompt into a JSON Lines file; returns how many answers were there already.

    `request` stops the work after a batch with StoppedError. Raises UsageError for a file that
    holds anything but the first of these answers, unless `overwrite`.
    """
    with _held(output) as file:
        content = b"" if overwrite else file.read()
        kept = _kept(content, jobs, writer, output)
        done = start = kept.count(b"\n")
        if len(kept) < len(content) or overwrite:
            file.truncate(len(kept))
        file.seek(len(kept))
        while done < len(jobs):
            update(done)
            part = jobs[done : done + BATCH]
            made = zip(part, writer.answer(part), strict=True)
            file.write(b"".join(_line(j, a, writer.key(j, a.seed)) for j, a in made))
            file.flush()
            os.fsync(file.fileno())
            done += len(part)
            if request.number and done < len(jobs):
                _stop(request, done, len(jobs), overwrite=overwrite)
        update(done)
    return start


def _stop(request: Request, done: int, total: int, *, overwrite: bool) -> None:
    fix = "to go on, run the same command without --overwrite" if overwrite else AGAIN
    what = f"after {done} of {total} answers, all saved"
    raise StoppedError(what, fix=fix, by_keyboard=request.number == signal.SIGINT)


@contextmanager
def _held(output: Path) -> Iterator[IO[bytes]]:
    """Open the output for reading and writing; no other command may do so meanwhile."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(output, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if not hold(file.fileno()):
                fix = "wait for it, or choose another --output"
                raise UsageError("another command writes this file", place=output, fix=fix)
            sync_folder(output.parent)
            yield file
    except OSError as error:
        raise resource_error(error, output) from error


def _kept(content: bytes, jobs: Sequence[Job], writer: Writer, output: Path) -> bytes:
    """The whole batches at the beginning of an output; UsageError where anything is not ours.

    A line that was cut in writing counts as ours if it begins as the next answer would.
    """
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if number > len(jobs) or not _is_answer(line, jobs[number - 1], writer):
            raise _not_ours(f"{output}:{number}")
    if rest:
        begun = _beginning(jobs[len(lines)]) if len(lines) < len(jobs) else b""
        if not begun or rest[: len(begun)] != begun[: len(rest)]:
            raise _not_ours(f"{output}:{len(lines) + 1}")
    whole = len(lines) if len(lines) == len(jobs) else len(lines) // BATCH * BATCH
    return b"".join(line + b"\n" for line in lines[:whole])


def _not_ours(place: str) -> UsageError:
    what = "is no answer to these prompts with these settings and this model"
    return UsageError(what, place=place, fix="choose another --output, or --overwrite")


def _is_answer(line: bytes, job: Job, writer: Writer) -> bool:
    try:
        found = LineParser("text", LONGEST).parse(line)
    except Flaw:
        return False
    if not isinstance(found, dict) or type(found.get("seed")) is not int:
        return False
    wanted = writer.seed_of(job)
    same_seed = wanted is None or wanted == found["seed"]
    named = (found.get("line"), found.get("id")) == (job.line, job.id)
    return named and same_seed and found.get("key") == writer.key(job, found["seed"])


def _beginning(job: Job) -> bytes:
    """How the line of an answer begins."""
    return f'{{"line": {job.line}, '.encode()


def _line(job: Job, answer: Generation, key: str) -> bytes:
    """One answer as it is written, the same for ever: keys in this order, then a line end."""
    found: dict[str, Any] = {"line": job.line}
    if job.id is not None:
        found["id"] = job.id
    for name in ("text", "finish_reason", "prompt_tokens", "completion_tokens", "seed"):
        found[name] = getattr(answer, name)
    return json.dumps({**found, "key": key}, ensure_ascii=False).encode() + b"\n"
