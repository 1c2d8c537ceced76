"""Makes the tiny run of a release, once, with the code of that release."""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from stemma import api
from tests.pipeline.conftest import RECIPE, run, write_documents


def main(version: str) -> None:
    folder = Path(__file__).parent / version
    write_documents(folder / "docs")
    tied = "model: {family: llama, width: 8, depth: 1, num_heads: 2, tied: true}"
    untied = "model: {family: llama, width: 16, depth: 1, num_heads: 2, dropout: 0.1}"
    recipe = RECIPE.replace(untied, tied).replace("checkpoint_every: 4", "checkpoint_every: 12")
    (folder / "tiny.yaml").write_text(recipe)
    os.chdir(folder)
    run(Path())
    (folder / "out" / "report.html").unlink()  # written again by the test
    shutil.rmtree(folder / "out" / "export")  # the same files as base/final
    model, tokenizer = api.load(folder / "out")
    with torch.inference_mode():
        logits = model(torch.tensor([[tokenizer.bos_id, *tokenizer.encode("the cat")]]))
    expected = {"text": "the cat", "logits": [round(x, 6) for x in logits[0, -1].tolist()]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
