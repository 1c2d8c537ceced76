"""Commands that write with a model: `generate` and `chat`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.cli.app import (
    Device,
    Json,
    MaxNewTokens,
    MinP,
    Model,
    RepetitionPenalty,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    app,
    chosen,
    loaded,
    put,
    template_of,
    utf8_text,
    with_tokenizer,
)
from stemma.core import progress, signals
from stemma.core.errors import UsageError, printable


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option(help="What to answer or to go on from; - reads standard input.")
    ] = None,
    system: System = None,
    raw: Annotated[bool, typer.Option(help="Continue the text as it stands.")] = False,
    prompts: Annotated[
        Path | None, typer.Option("--input", help="A file of prompts, one JSON object a line.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where answers to --input go.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what --output holds.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write with a model: answer a prompt, continue a text, or answer a file of prompts."""
    check_purpose(prompt, prompts, output, overwrite)
    if raw and system is not None:
        raise UsageError("--raw and --system exclude each other", fix="choose one")
    given = chosen(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop) if stop else None,
        seed=seed,
    )
    told = None if system is None else utf8_text(system, "--system")
    if prompts is not None and output is not None:
        facts = answer_file(model, device, prompts, output, told, raw, overwrite, given)
        put(facts) if as_json else print(f"{facts['answers']} answers in {printable(output)}")
    elif prompt is not None:
        answer_prompt(model, device, prompt_text(prompt), told, raw, given, as_json)


def check_purpose(
    prompt: str | None, prompts: Path | None, output: Path | None, overwrite: bool
) -> None:
    """One prompt, or a file of them with a file for the answers. Raises UsageError."""
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --input exclude each other", fix="choose one")
    if prompt is None and prompts is None:
        raise UsageError("nothing to write about", fix="give --prompt TEXT, or --input FILE")
    if prompts is not None and output is None:
        raise UsageError("--input has no --output", fix="name a file for the answers")
    if prompts is None and (output is not None or overwrite):
        name = "--overwrite" if output is None else "--output"
        raise UsageError(f"{name} belongs to --input", fix="leave it out, or give --input FILE")


def answer_prompt(
    model: str,
    device: str,
    text: str,
    system: str | None,
    raw: bool,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    """Answer one prompt by the chat template; go on from it where there is none, or with --raw."""
    from stemma import api
    from stemma.infer.generate import generate as write
    from stemma.infer.generate import stream

    network, tokenizer = with_tokenizer(model, device)
    if api.does(network.config.family) == "translate":
        translate_prompt(network, tokenizer, text, given, as_json)
        return
    api.require_writer(network)
    sampling = api.sampling(network, **given)
    renderer, end_ids = template_of(model, network, tokenizer, raw=raw, system=system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "user", "content": text}]
    prompt = text if renderer is None else api.prompt_of(renderer, messages)
    if as_json:
        made = write(network, tokenizer, [prompt], sampling, end_ids=end_ids)[0]
        names = ("text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "seed")
        put({name: getattr(made, name) for name in names})
        return
    # a terminal obeys control characters; a file or another program gets the text as it is
    shown = for_terminal if sys.stdout.isatty() else str
    sys.stdout.write(shown(text) if renderer is None else "")
    for piece in stream(network, tokenizer, [prompt], sampling, end_ids=end_ids):
        sys.stdout.write(shown(piece.text))
        sys.stdout.flush()
    print()


def translate_prompt(
    network: Any, tokenizer: Any, text: str, given: dict[str, Any], as_json: bool
) -> None:
    """Translate one text by beam search; `--temperature 0` asks for one beam.

    What is not asked for is as the model recommends.
    """
    from stemma import api
    from stemma.infer.translate import hypotheses

    greedy = given.pop("temperature", None)
    limit = given.pop("max_new_tokens", None)
    if given or greedy not in (None, 0):
        name = f"--{next(iter(given), 'temperature').replace('_', '-')}"
        what = f"{name} has no meaning for a model that translates by beam search"
        raise UsageError(what, fix="leave it out, or use --temperature 0 for one beam")
    asked = chosen(beams=None if greedy is None else 1, max_new_tokens=limit)
    search = api.search_of(network, **asked)
    made = hypotheses(network, tokenizer, [text], search)[0]
    said = tokenizer.decode(made.token_ids).strip()
    if as_json:
        put(
            {
                "text": said,
                "token_ids": made.token_ids,
                "finish_reason": "stop" if made.ended else "length",
                "prompt_tokens": len(tokenizer.encode(text)) + 1,
                "completion_tokens": len(made.token_ids) + made.ended,
                "seed": None,
            }
        )
        return
    print(for_terminal(said) if sys.stdout.isatty() else said)


def answer_file(
    model: str,
    device: str,
    prompts: Path,
    output: Path,
    system: str | None,
    raw: bool,
    overwrite: bool,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Answer a file of prompts into another; all lines are checked before the first answer."""
    from stemma import api
    from stemma.infer import batch

    batch.check_output(prompts, output)
    asked = batch.read_prompts(prompts)
    network, tokenizer = loaded(model, device)
    sampling = api.sampling(network, **given)
    renderer, end_ids = template_of(model, network, tokenizer, raw=raw, system=system)
    reader = batch.Reader(tokenizer, renderer, system, network.config.context)
    jobs = batch.encode_prompts(prompts, asked, reader)
    writer = batch.Writer(network, tokenizer, sampling, end_ids)
    with progress.progress("generate", len(jobs)) as update, signals.graceful() as request:
        kept = batch.write_answers(
            writer, jobs, output, overwrite=overwrite, request=request, update=update
        )
    if kept:
        whole = "nothing was left to do" if kept == len(jobs) else "went on from there"
        progress.LOG.info("%s: %d answers were there already; %s", output, kept, whole)
    return {"output": str(output), "answers": len(jobs), "kept": kept}


def for_terminal(text: str) -> str:
    """A part of a text for people to read: of control characters only lines and tabs act."""
    return printable(text, keep="\n\t")


def prompt_text(prompt: str) -> str:
    """The prompt; `-` reads standard input. Raises UsageError where it is no text."""
    if prompt != "-":
        return utf8_text(prompt, "--prompt")
    try:
        return utf8_text(sys.stdin.read(), "standard input")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise UsageError(what, place="standard input", fix="give UTF-8") from error


@app.command()
def chat(
    model: Model,
    system: System = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 1024,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
) -> int:
    """Talk with a model; /help says what can be typed."""
    from stemma import api, terminal
    from stemma.infer.chat import Chat

    given = chosen(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop) if stop else None,
        seed=seed,
    )
    told = None if system is None else utf8_text(system, "--system")
    network, tokenizer = loaded(model, device)
    if tokenizer.template is None:
        fix = "use `stemma generate --raw` to continue a text"
        raise UsageError("has no chat template", place=model, fix=fix)
    sampling = api.sampling(network, **given)
    renderer, end_ids = template_of(model, network, tokenizer, raw=False, system=told)
    talk = Chat(network, tokenizer, renderer.prompt, sampling, end_ids=end_ids)
    if told is not None:
        talk.instruct(told)
    return terminal.talk(talk, f"{model}: context {network.config.context:,} tokens; /help, /quit")
