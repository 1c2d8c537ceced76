"""The best checkpoint stays: every trainer tells what held-out data say at the step it saves."""

import json

from stemma.train.checkpoint import checkpoints, open_checkpoint


def test_newest_and_best_stay(trial):
    stage = trial.trainer.stage
    trial.finish(f"{stage}.watch.every=5", f"{stage}.keep_checkpoints=1")
    scores = {}
    for line in (trial.stage / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found = [value for key, value in row.items() if key.startswith("heldout_")]
        if found and row["step"]:  # some score what they begin with
            scores[row["step"]] = found[0]  # a loss; a share of hits stands behind it
    last = max(scores)
    assert set(scores) == {5, 10, 15, 20, last}
    kept = [open_checkpoint(folder) for folder in checkpoints(trial.steps)]
    best = min(scores, key=lambda step: (scores[step], step))
    assert {one.step for one in kept} == {best, last}
    assert all(one.state["heldout"] == scores[one.step] for one in kept)
