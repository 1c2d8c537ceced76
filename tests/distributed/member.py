"""One process of a group that stays for many tests: joining costs seconds, a case does not.

A request is one JSON object a line on stdin, `{"case": "module:function", "given": {…}}`; the
answer is one on stdout, `{"found": …}` or `{"error": …}`. Cases are functions of the world and
their keywords, and answer with JSON.
"""

import importlib
import json
import os
import sys
import traceback

import torch

from stemma.core.distributed import World, joined


def answer(request, world):
    """The answer to one request."""
    module, _, function = request["case"].partition(":")
    try:
        case = getattr(importlib.import_module(module), function)
        return {"found": case(world, **request["given"])}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def serve(world):
    """Answer requests until they end."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps({"ready": world.rank}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), world)), file=out, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ["WORLD_SIZE"] == "1":
        serve(World())
    else:
        with joined() as everyone:
            serve(everyone)
