"""Stage `evaluate`: the notes of thinned baselines tell the true size of the training text."""

import json
import re

from stemma.eval import baselines
from tests.pipeline.conftest import run


def test_thinned_baselines_say_of_how_much(copied, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_TRAIN_BYTES", 2000)
    run(copied, "scores.stride=4", overwrite=True)
    lines = (copied / "out" / "corpus" / "train.jsonl").read_text().splitlines()
    total = sum(len(json.loads(line)["text"].encode()) for line in lines)
    scores = json.loads((copied / "out" / "scores" / "scores.json").read_text())["scores"]
    notes = [row["note"] for row in scores if "gram" in row["name"]]
    found = [re.search(r"on (\d+) of the (\d+) training bytes", note) for note in notes]
    assert len(found) == 4
    assert all(int(one[2]) == total > 2000 >= int(one[1]) > 0 for one in found)
