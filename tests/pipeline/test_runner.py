"""Runs: skip what is complete, resume bit for bit, refuse what would lose something."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import stemma
from stemma.core.errors import DataError, DivergedError, StoppedError, UsageError
from stemma.core.files import sha256_file
from stemma.pipeline import runner, training
from tests.pipeline.conftest import RECIPE, job, run


def states(folder, *overrides, **settings):
    return {p.name: p.state for p in runner.plan(job(folder, *overrides, **settings))}


def weights(folder):
    return sha256_file(folder / "out" / "base" / "final" / "model.safetensors")


def optimizer(folder):
    newest = sorted((folder / "out" / "base" / "steps").iterdir())[-1]
    return sha256_file(newest / "rank-00000.safetensors")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def test_finished_run_leaves_what_the_design_says(finished):
    out = finished / "out"
    for name in ("recipe.yaml", "report.html", "ledger.json", "run.json"):
        assert (out / name).is_file(), name
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (out / "base" / "final" / name).is_file(), name
        assert (out / "export" / "hf" / name).is_file(), name
    assert [f.name for f in sorted((out / "base" / "steps").iterdir())] == ["00000008", "00000012"]
    for path in out.rglob("*.json"):
        if "final" not in path.parts and "hf" not in path.parts and "steps" not in path.parts:
            assert json.loads(path.read_text())["format_version"] == 1, path


def test_token_ledger_balances(finished):
    ledger = json.loads((finished / "out" / "ledger.json").read_text())["stages"]
    corpus, base = ledger["corpus"], ledger["base"]
    assert corpus["balanced"] and corpus["read"]["documents"] == 42
    assert base["trained"] + base["padded"] == base["places"] == 12 * 64
    assert base["documents"] == corpus["train"]["documents"]
    metrics = rows(finished / "out" / "base" / "metrics.jsonl")
    steps = [r for r in metrics if "loss" in r]
    assert steps[-1]["tokens"] == base["trained"] and len(steps) == 12
    assert [r["step"] for r in metrics if "heldout_bits_per_byte" in r] == [6, 12]


def test_heldout_documents_are_in_no_training_file(finished):
    corpus = finished / "out" / "corpus"
    read = lambda name: [json.loads(x) for x in (corpus / name).read_text().splitlines()]  # noqa: E731
    train, heldout = read("train.jsonl"), read("heldout.jsonl")
    assert not {d["text"] for d in train} & {d["text"] for d in heldout}
    share = sum(d["bytes"] for d in heldout) / sum(d["bytes"] for d in train + heldout)
    assert 0.1 < share < 0.3


def test_model_of_a_run_opens_in_transformers_and_here(finished):
    final = finished / "out" / "base" / "final"
    ours, tokenizer = stemma.load(finished / "out")
    theirs = AutoModelForCausalLM.from_pretrained(final)
    ids = AutoTokenizer.from_pretrained(final)("the cat sat", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [tokenizer.bos_id, *tokenizer.encode("the cat sat")]
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_second_run_skips_everything_and_changes_nothing(copied):
    before = {p: sha256_file(p) for p in copied.rglob("*.safetensors")}
    said = run(copied)
    assert all("skipped" in line for line in said) and len(said) == 5
    assert {p: sha256_file(p) for p in before} == before


def test_changed_setting_is_refused_with_old_and_new(copied):
    before = weights(copied)
    with pytest.raises(UsageError, match=r"learning_rate was 0\.01, now 0\.02") as caught:
        run(copied, "base.learning_rate=2e-2")
    assert "--overwrite" in str(caught.value) and weights(copied) == before


def test_overwrite_replaces_from_the_change_on_and_keeps_the_old(copied):
    before = weights(copied)
    said = run(copied, "base.learning_rate=2e-2", overwrite=True)
    assert ["skipped" in line for line in said] == [True, True, False, False, False]
    assert weights(copied) != before
    old = copied / "out" / "base.previous" / "final" / "model.safetensors"
    assert sha256_file(old) == before


def test_settings_that_change_no_result_do_not_count(finished):
    changed = states(finished, "base.checkpoint_every=5", "base.minutes=3", "base.device=cpu")
    assert set(changed.values()) == {"complete"}


def test_moved_document_counts_as_a_change(copied):
    # the name decides reading order, held-out choice and group
    (copied / "docs" / "sub").mkdir()
    (copied / "docs" / "note-3.md").rename(copied / "docs" / "sub" / "note-3.md")
    assert set(states(copied).values()) == {"changed"}


def test_changed_document_reaches_every_stage_below(copied):
    (copied / "docs" / "note-3.md").write_text("another text\n")
    assert set(states(copied).values()) == {"changed"}


def test_fresh_runs_everything_again_to_the_same_bits(copied):
    before = weights(copied)
    said = run(copied, fresh=True)
    assert not any("skipped" in line for line in said)
    assert weights(copied) == before


def test_until_stops_early(project):
    assert len(run(project, until="words")) == 2
    assert not (project / "out" / "base").exists()


def test_lost_output_is_made_again(copied):
    before = weights(copied)
    (copied / "out" / "base" / "final" / "model.safetensors").unlink()
    assert states(copied)["base"] == "half done"
    run(copied)
    assert weights(copied) == before


class Killed(BaseException):
    """Stands for the end of the process at any line."""


def stop_after(monkeypatch, step, how):
    """Make the run end, in the way `how` says, right after `step` was taken."""
    real = training.RowFile.add

    def add(self, **row):
        real(self, **row)
        if "loss" in row and row["step"] == step:
            how()

    monkeypatch.setattr(training.RowFile, "add", add)


def killed():
    raise Killed


@pytest.mark.parametrize("step", [2, 5, 8, 11])
def test_killed_run_resumes_to_the_same_bits(finished, project, monkeypatch, step):
    stop_after(monkeypatch, step, killed)
    with pytest.raises(Killed):
        run(project)
    monkeypatch.undo()
    record = json.loads((project / "out" / "base" / "stage.json").read_text())
    assert record["status"] == "running"
    run(project)
    assert weights(project) == weights(finished)
    assert optimizer(project) == optimizer(finished)
    theirs = rows(finished / "out" / "base" / "metrics.jsonl")
    ours = rows(project / "out" / "base" / "metrics.jsonl")
    assert [r.get("loss") for r in ours] == [r.get("loss") for r in theirs]
    assert (project / "out" / "base" / "samples.jsonl").read_text() == (
        finished / "out" / "base" / "samples.jsonl"
    ).read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_saves_at_the_step_and_the_run_goes_on(finished, project, monkeypatch, number, code):
    stop_after(monkeypatch, 6, lambda: signal.raise_signal(number))
    with pytest.raises(StoppedError, match="after step 6, state saved") as stopped:
        run(project)
    assert stopped.value.exit_code == code
    monkeypatch.undo()
    assert (project / "out" / "base" / "steps" / "00000006").is_dir()
    run(project)
    assert weights(project) == weights(finished)


def test_damaged_checkpoint_is_passed_over(finished, project, monkeypatch, caplog):
    stop_after(monkeypatch, 9, killed)
    with pytest.raises(Killed):
        run(project)
    monkeypatch.undo()
    shard = project / "out" / "base" / "steps" / "00000008" / "rank-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 4
    shard.write_bytes(bytes(raw))
    with caplog.at_level("WARNING", logger="stemma"):
        run(project)
    assert "sha256" in caplog.text and weights(project) == weights(finished)
    assert (project / "out" / "base" / "steps" / "00000008.damaged").is_dir()


def test_save_after_damage_is_not_purged_for_the_damaged(project, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 10, killed)
        with pytest.raises(Killed):
            run(project)
    steps = project / "out" / "base" / "steps"
    for folder in steps.iterdir():
        (folder / "state.json").write_text("{}")
    stop_after(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(StoppedError, match="after step 2"):
        run(project, "base.keep_checkpoints=1")
    assert (steps / "00000002" / "manifest.json").is_file()


def test_interrupted_fresh_run_keeps_the_complete_model_and_goes_on(copied, monkeypatch):
    before = weights(copied)
    for step in (5, 9):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(StoppedError, match=f"after step {step}"):
                run(copied, fresh=True)
        old = copied / "out" / "base.previous" / "final" / "model.safetensors"
        assert sha256_file(old) == before
    run(copied, fresh=True)
    assert weights(copied) == before


def test_failed_overwrite_keeps_the_complete_model(copied):
    before = weights(copied)
    with pytest.raises(DivergedError):
        run(copied, "base.learning_rate=1e30", "base.clip=1e30", overwrite=True)
    run(copied, "base.learning_rate=2e-2", overwrite=True)
    old = copied / "out" / "base.previous" / "final" / "model.safetensors"
    assert sha256_file(old) == before


@pytest.mark.parametrize("name", ["tokens.bin", "index.safetensors", "plan.safetensors"])
def test_damaged_training_data_is_never_trained_on(finished, project, monkeypatch, name):
    stop_after(monkeypatch, 5, killed)
    with pytest.raises(Killed):
        run(project)
    monkeypatch.undo()
    path = project / "out" / "base" / "data" / name
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(bytes(raw))
    run(project)  # made again from the documents, to the same bits
    assert weights(project) == weights(finished)


def test_damaged_history_is_left_out_and_the_run_goes_on(finished, project, monkeypatch):
    stop_after(monkeypatch, 6, killed)
    with pytest.raises(Killed):
        run(project)
    monkeypatch.undo()
    metrics = project / "out" / "base" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 7, "lo\n{]\n')
    run(project)
    assert weights(project) == weights(finished)
    assert [r["step"] for r in rows(metrics) if "loss" in r] == list(range(1, 13))


def test_lost_history_of_a_complete_stage_is_no_crash(copied):
    (copied / "out" / "base" / "metrics.jsonl").unlink()
    run(copied)
    record = json.loads((copied / "out" / "base" / "stage.json").read_text())
    assert record["status"] == "complete" and record["summary"]["final_loss"] > 0


def test_leftovers_of_a_kill_are_cleared_and_never_recorded(project, monkeypatch):
    stop_after(monkeypatch, 5, killed)
    with pytest.raises(Killed):
        run(project)
    monkeypatch.undo()
    base = project / "out" / "base"
    (base / ".tokens.bin.77.partial").write_text("x")
    (base / "data" / ".x.77.partial").write_text("x")
    (base / ".final.77.old").mkdir()
    run(project)
    assert not list(base.rglob(".*"))
    assert not any("/." in f"/{name}" for name in runner.read_record(base)["outputs"])


def test_repaired_document_needs_no_overwrite(project):
    log = project / "docs" / "log.jsonl"
    good = log.read_text()
    log.write_text(good + "{broken\n")
    with pytest.raises(DataError, match=r"log\.jsonl:31"):
        run(project)
    log.write_text(good)
    assert len(run(project, until="words")) == 2


def test_half_trained_stage_is_not_replaced_without_a_word(project, monkeypatch):
    stop_after(monkeypatch, 5, killed)
    with pytest.raises(Killed):
        run(project)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="learning_rate"):
        run(project, "base.learning_rate=2e-2")


def test_divergence_keeps_the_last_good_checkpoint(project):
    with pytest.raises(DivergedError, match="not taken"):
        run(project, "base.learning_rate=1e30", "base.checkpoint_every=1", "base.clip=1e30")
    saved = sorted((project / "out" / "base" / "steps").iterdir())
    for tensor in load_file(saved[-1] / "rank-00000.safetensors").values():
        assert tensor.isfinite().all()


def test_folder_that_no_run_made_is_left_alone(project):
    mine = project / "out" / "base"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    for settings in ({}, {"fresh": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="no run made it"):
            run(project, **settings)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert not (project / "out" / "corpus").exists()


def test_record_of_a_newer_format_is_refused(copied):
    path = copied / "out" / "base" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(UsageError, match="format_version 2 is newer than the 1"):
        run(copied)


def test_continued_pretraining_takes_model_and_tokenizer_along(copied):
    text = (copied / "tiny.yaml").read_text()
    more = (
        "  more:\n    kind: pretrain\n    corpus: corpus\n    init: base\n    context: 16\n"
        "    steps: 3\n    batch_tokens: 64\n    learning_rate: 1e-3\n"
    )
    (copied / "tiny.yaml").write_text(text + more)
    said = run(copied)
    assert ["skipped" in line for line in said] == [True] * 5 + [False]
    first = load_file(copied / "out" / "base" / "final" / "model.safetensors")
    later = load_file(copied / "out" / "more" / "final" / "model.safetensors")
    moved = max((first[n] - later[n]).abs().max() for n in first)
    assert 0 < moved < 0.02  # three small steps from where the first stage ended
    shutil.rmtree(copied / "out" / "more")


def test_what_runs_made_is_never_read_as_documents(project):
    run(project, f"out={project / 'docs' / 'first'}")
    run(project, f"out={project / 'docs' / 'second'}")
    for name in ("first", "second"):
        ledger = json.loads((project / "docs" / name / "ledger.json").read_text())
        assert ledger["stages"]["corpus"]["read"]["documents"] == 42


def test_ledger_remembers_stages_beyond_until(copied):
    (copied / "out" / "corpus" / "train.jsonl").unlink()
    run(copied, until="corpus")
    ledger = json.loads((copied / "out" / "ledger.json").read_text())
    assert ledger["stages"].keys() == {"corpus", "base"}


def test_text_without_spaces_trains_and_samples(project):
    for path in (project / "docs").iterdir():
        path.unlink()
    for number in range(6):
        text = "天地玄黃宇宙洪荒日月盈昃辰宿列張" * (20 + number)
        (project / "docs" / f"{number}.txt").write_text(text)
    run(project)
    samples = rows(project / "out" / "base" / "samples.jsonl")
    assert samples and all(len(r["prompt"]) < 20 for r in samples)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scores.stride=64"], "stride (64) must be at most context (16)"),
        (["scores.context=32"], "context (32) is longer than base's (16)"),
        (["seed=99999999999999999999"], "less than"),
        (["base.tokens=5"], "one of tokens and steps"),
        (["base.batch_tokens=65"], "batch_tokens (65) must be a multiple of context (16)"),
        (["base.model.width=63"], "width (63) must be a multiple of num_heads (2)"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(project, overrides, words):
    with pytest.raises(UsageError) as caught:
        run(project, *overrides)
    assert words in str(caught.value) and not (project / "out").exists()


def test_prompt_longer_than_the_context_is_refused_before_training(project):
    prompts = f"base.samples.prompts=[{'the cat sat on a mat ' * 9}]"
    with pytest.raises(UsageError, match=r"samples\.prompts: a prompt of \d+ tokens"):
        run(project, prompts)
    assert not (project / "out" / "base" / "steps").exists()


def test_second_run_in_one_folder_is_refused(project, monkeypatch):
    refused = []

    def again():
        with pytest.raises(UsageError, match=f"locked by pid {os.getpid()}; wait") as caught:
            run(project)
        refused.append(caught.value)

    stop_after(monkeypatch, 3, again)
    run(project)
    assert len(refused) == 1
    monkeypatch.undo()
    assert len(run(project)) == 5  # the lock is gone with the run


def test_stage_named_like_the_runs_own_files_is_refused(project):
    for name in ("run.json", "Report.html", "base.previous"):
        text = RECIPE.replace("words", name)
        (project / "tiny.yaml").write_text(text)
        with pytest.raises(UsageError, match="uses itself"):
            run(project)


def test_scores_without_held_out_text_are_refused_at_once(project):
    with pytest.raises(UsageError, match="holds nothing out"):
        run(project, "corpus.holdout.fraction=0")
    assert not (project / "out").exists()


def test_unknown_device_is_refused_before_the_first_stage(project):
    with pytest.raises(UsageError, match="no such device"):
        run(project, "base.device=abacus")
    assert not (project / "out" / "corpus").exists()


def test_empty_folder_of_a_run_that_died_early_is_no_obstacle(project):
    (project / "out" / "corpus").mkdir(parents=True)
    assert len(run(project, until="words")) == 2


def test_foreign_file_called_run_json_hides_no_document(project):
    (project / "docs" / "run.json").write_text("{}")
    run(project, until="corpus")
    ledger = json.loads((project / "out" / "ledger.json").read_text())
    assert ledger["stages"]["corpus"]["read"]["documents"] == 42
