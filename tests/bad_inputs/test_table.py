"""Every case that is promised so far has a test: numbers of the table of bad inputs."""

import re
from pathlib import Path

from tests.bad_inputs import test_documents, test_folders, test_gguf, test_models, test_recipes

PROMISED = {*range(1, 15), 17, 18, *range(20, 24), *range(29, 33), *range(37, 45)}
PROMISED |= {*range(53, 67)}


def test_no_case_is_left_out():
    tables = (
        test_documents.REFUSED,
        test_documents.ACCEPTED,
        test_recipes.CASES,
        test_folders.CASES,
        test_models.CASES,
        test_gguf.CASES,
    )
    tried = {case.number for table in tables for case in table}
    for path in Path(__file__).parent.glob("test_*.py"):
        tried |= {int(number) for number in re.findall(r'ids=.*?"(\d\d)-', path.read_text())}
    assert tried == PROMISED


def test_no_two_variants_have_one_name():
    refused = [*test_documents.REFUSED, *test_recipes.CASES, *test_folders.CASES]
    refused += [*test_models.CASES, *test_gguf.CASES]
    named = [(case.number, case.name) for case in refused]
    assert len(named) == len(set(named))
