"""What a run made, for the last lines on the screen: scores, the report, and what to do next."""

import shlex
from pathlib import Path
from statistics import fmean
from typing import Any

from stemma.core.errors import printable
from stemma.pipeline import report_encoders, report_translations
from stemma.pipeline.records import read_record
from stemma.pipeline.runner import TRAINERS, Run


def outcome(run: Run, report: Path) -> dict[str, Any]:
    """What a run made, for the last lines on the screen."""
    facts: dict[str, Any] = {"run": str(run.out), "report": str(report), "seconds": {}}
    for name, stage in run.recipe.stages.items():
        record = read_record(run.out / name)
        if record is None or record["status"] != "complete":
            continue
        facts["seconds"][name] = round(record["seconds"], 1)
        if isinstance(stage, TRAINERS):
            facts["model"] = str(run.out / name)
            facts["chats"] = stage.kind == "sft"
            facts["reads"] = stage.kind in ("masked", "classify")
            translated = record["summary"].get("translation")
            facts["source"] = report_translations.example(translated) if translated else ""
            facts["parameters"] = record["summary"]["parameters"]
            facts["tokens"] = record["summary"]["tokens"]
            if translated:
                found = report_translations.outcome_words(translated)
                facts.setdefault("heldout", {})[name] = found
        if stage.kind == "evaluate":
            facts |= scores_of(record["summary"])
        if stage.kind == "lineage":
            networks = record["summary"]["networks"]
            facts["networks"] = {each: row["bits_per_byte"] for each, row in networks.items()}
        if stage.kind in ("masked", "classify") and record["summary"]["heldout"]:
            found = report_encoders.outcome_words(record["summary"]["heldout"])
            facts.setdefault("heldout", {})[name] = found
    return facts


def scores_of(summary: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation found, by the names of the models and baselines."""
    facts: dict[str, Any] = {}
    if "scores" in summary:
        facts["scores"] = {row["name"]: round(row["bits_per_byte"], 4) for row in summary["scores"]}
    if "chat" in summary:
        facts["chat"] = {
            row["name"]: {
                "answer_loss": round(row["answer_loss"], 4),
                "stopped": row["stopped"],
                "answers": row["answers"],
            }
            for row in summary["chat"]["scores"]
        }
    return facts


def ranking_lines(networks: dict[str, list[Any]]) -> list[str]:
    """The networks of a lineage, the best first, by what they reach in the mean over seeds."""
    whole = {name: bits for name, bits in networks.items() if None not in bits}
    ranked = sorted(whole, key=lambda name: fmean(whole[name]))
    head = "bits per byte on held-out text, mean and range over seeds, lower is better:"
    lines = [
        f"  {fmean(whole[name]):.3f}  {min(whole[name]):.3f} to {max(whole[name]):.3f}  {name}"
        for name in ranked
    ]
    lines += [f"  diverged  {name}" for name in networks if name not in whole]
    return [head, *lines, "  which differences are significant: see the report"]


def outcome_lines(facts: dict[str, Any]) -> list[str]:
    """The outcome in words: what to do next comes last."""
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in facts["seconds"].items())
    lines = [f"done, in {sum(facts['seconds'].values()) / 60:.1f} min of work in all ({times})"]
    if "scores" in facts:
        lines.append("bits per byte on held-out documents, lower is better:")
        ranked = sorted(facts["scores"].items(), key=lambda pair: pair[1])
        lines += [f"  {score:.3f}  {name}" for name, score in ranked]
    if "networks" in facts:
        lines += ranking_lines(facts["networks"])
    if "chat" in facts:
        lines.append("answers to held-out first turns: loss, lower is better, and how many end:")
        lines += [
            f"  {row['answer_loss']:.3f}  {row['stopped']} of {row['answers']}  {name}"
            for name, row in facts["chat"].items()
        ]
    lines += [f"held out, {name}: {said}" for name, said in facts.get("heldout", {}).items()]
    lines.append(f"report: {printable(shlex.quote(facts['report']))}")
    if "model" in facts:
        place = printable(shlex.quote(facts["model"]))
        if facts["reads"]:
            lines.append(f"the model: {place}, in Python: stemma.load({facts['model']!r})")
        elif facts["chats"]:
            lines.append(f"talk with it: stemma chat {place}")
        elif facts["source"]:
            prompt = shlex.quote(facts["source"])
            lines.append(f"translate with it: stemma generate {place} --prompt {prompt}")
        else:
            lines.append(f'write with it: stemma generate {place} --prompt "Once upon a time"')
    return lines
