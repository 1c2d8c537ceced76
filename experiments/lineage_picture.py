"""Draw a finished lineage run as one picture: bits per byte against tokens and against compute.

The numbers are those of the run's own record, the drawing is the report's, on white.

    python experiments/lineage_picture.py RUN [--stage NAME] [--out docs/pictures/lineage.png]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stemma.core.errors import StemmaError, UsageError
from stemma.pipeline.report_facts import RunRecord, StageRecord, read_run
from stemma.pipeline.report_lineage import readme_panels
from stemma.pipeline.report_lineage_plots import save


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture and say where; 1 where the run has nothing to draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--stage", help="the lineage stage; default: the last one")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/lineage.png"))
    options = parser.parse_args(arguments)
    try:
        panels = readme_panels(chosen(read_run(options.run), options.stage))
        if not panels:
            raise UsageError("the lineage stage has no curves", place=options.run)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save(panels, options.out)
    except StemmaError as error:
        print(error, file=sys.stderr)
        return 1
    print(options.out)
    return 0


def chosen(run: RunRecord, name: str | None) -> StageRecord:
    """A lineage stage that is complete: the one of this name, or the last."""
    found = [stage for stage in run.of_kind("lineage") if stage.status == "complete"]
    named = [stage for stage in found if name in (None, stage.name)]
    if not named:
        what = f"no complete lineage stage{f' {name!r}' if name else ''}"
        fix = f"--stage is one of {', '.join(s.name for s in found)}" if found else "run the recipe"
        raise UsageError(what, place=run.folder, fix=fix)
    return named[-1]


if __name__ == "__main__":
    raise SystemExit(main())
