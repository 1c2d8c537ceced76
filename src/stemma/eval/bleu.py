"""BLEU and chrF by sacrebleu, with the signatures that make them comparable (arXiv:1804.08771)."""

from collections.abc import Sequence
from typing import Any

from stemma.core.extras import require


def bleu(made: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Corpus scores of translations against one reference each: 13a, cased, detokenised.

    Raises ResourceError where sacrebleu is not installed.
    """
    sacrebleu = require("eval", "sacrebleu")
    found: dict[str, Any] = {}
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        found[name] = metric.corpus_score(list(made), [list(wanted)]).score
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
