"""The command line: finds the subcommand, imports only that, prints results to stdout.

Messages and progress go to stderr. Every failure is one line, `error: place: what; way out`, with
the exit code of its kind; `--debug` adds the traceback.
"""

# commands register as they are imported: in the order in which `stemma --help` lists them
from stemma.cli import runs

# isort: split
from stemma.cli import writing

# isort: split
from stemma.cli import serving

# isort: split
from stemma.cli import catalogue
from stemma.cli.app import app, options
from stemma.cli.entry import ENVIRONMENT, main

__all__ = ["ENVIRONMENT", "app", "catalogue", "main", "options", "runs", "serving", "writing"]
