"""Every case that is promised so far has a test: numbers of the table of bad inputs."""

import re
from pathlib import Path

from tests.bad_inputs import (
    test_checkpoints,
    test_conversations,
    test_documents,
    test_folders,
    test_gguf,
    test_models,
    test_recipes,
    test_requests,
    test_templates,
    test_tokenizers,
    test_training,
)

PROMISED = {*range(1, 15), 17, 18, *range(20, 24), *range(29, 75), 76, 77}
PROMISED |= set(range(80, 84))  # of the server


TABLES = (
    test_documents.REFUSED,
    test_recipes.CASES,
    test_folders.CASES,
    test_models.CASES,
    test_gguf.CASES,
    test_tokenizers.CASES,
    test_templates.CASES,
    test_conversations.CASES,
    test_training.CASES,
    test_checkpoints.OTHER_DATA,
    test_requests.CASES,
)


def test_no_case_is_left_out():
    tried = {case.number for table in (*TABLES, test_documents.ACCEPTED) for case in table}
    for path in Path(__file__).parent.glob("test_*.py"):
        tried |= {int(number) for number in re.findall(r'ids=.*?"(\d\d)-', path.read_text())}
    assert tried == PROMISED


def test_no_two_variants_have_one_name():
    named = [(case.number, case.name) for table in TABLES for case in table]
    assert len(named) == len(set(named))
