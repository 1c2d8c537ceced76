"""Stage `lineage`: many architectures under one trainer, on the same tokens in the same order.

Every network is first trained on a share of the tokens at each learning rate of the grid; the best
on the watched text is kept. Then every network is trained from several seeds: a seed decides the
first weights and the order of the tokens, and both are the same for all. Each trial is a training
run with checkpoints of its own in `trials/NETWORK/TRIAL`, so that hours of work go on where they
were stopped; a trial that is done leaves `result.json` and no weights.
"""

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma import api
from stemma.core.config import StrictModel, multiple
from stemma.core.errors import DataError, DivergedError, ModelError
from stemma.core.files import write_json
from stemma.core.progress import LOG, progress
from stemma.data.batches import IGNORED, Order, build_batch
from stemma.data.curate import read_texts
from stemma.data.packing import plan_packing, write_plan
from stemma.data.store import TokenStore, open_store, write_store
from stemma.data.tokenizer import Tokenizer
from stemma.eval.bits_per_byte import Score, bits_per_byte, start_id
from stemma.eval.comparison import Trial, compare
from stemma.eval.compute import kind_of, training_flops_per_token
from stemma.eval.decoding import decode_costs
from stemma.eval.ngram import NgramModel
from stemma.interop.json_file import read_object
from stemma.nn.initial import EMBEDDINGS
from stemma.pipeline import keys
from stemma.pipeline import training as shared
from stemma.pipeline.pretrain import PretrainStage, prepare_model
from stemma.pipeline.training import Training
from stemma.pipeline.work import Work
from stemma.train.pretrain import next_token_loss

VERSION = 1
RESULT = "result.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a network: its trials lie in a folder of it
NGRAM_ORDERS = (2, 3, 4)
HOPELESS = 16.0  # bits of a byte: twice what is needed by who knows nothing
PASSED_ON = (  # settings of the stage that every trial has
    "initial",
    "context",
    "batch_tokens",
    "schedule",
    "optimizer",
    "clip",
    "checkpoint_every",
    "device",
)


class Decode(StrictModel):
    """Measuring what a token costs as the text grows."""

    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(64, 256, 1024), min_length=1, description="tokens before those that are timed"
    )


class LineageStage(StrictModel):
    """Train and compare networks."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "corpus": ("curate",),
        "tokenizer": ("tokenizer",),
    }
    UNSEEN: ClassVar[frozenset[str]] = keys.UNSEEN

    kind: Literal["lineage"] = Field(description="the kind of stage")
    corpus: str = Field(description="the curate stage to train on")
    tokenizer: str = Field(description="the tokenizer stage")
    networks: dict[str, dict[str, Any]] = Field(
        min_length=2, description="networks by name: a family or preset, and numbers"
    )
    context: keys.Context
    tokens: int = Field(ge=1, description="tokens of a whole trial, rounded up to steps")
    batch_tokens: keys.BatchTokens
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="peak learning rates to choose from"
    )
    sweep_share: float = Field(
        default=0.25, gt=0, le=1, description="share of the tokens on which rates are tried"
    )
    seeds: int = Field(default=3, ge=1, description="trials of each network at its best rate")
    initial: Literal["gpt-2", "fan-in"] = Field(
        default="fan-in", description="rule of the first weights, one for all networks"
    )
    schedule: keys.RateSchedule
    optimizer: keys.Optimizer
    clip: keys.Clip
    watch_bytes: int = Field(default=32 << 10, ge=1, description="held-out text along training")
    watch_points: int = Field(default=8, ge=1, description="scores along a trial")
    score_bytes: int = Field(default=128 << 10, ge=1, description="held-out text of final scores")
    decode: Decode = Field(default=Decode(), description="cost of decoding")
    checkpoint_every: keys.CheckpointEvery
    device: keys.Device
    minutes: keys.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "LineageStage":
        multiple("batch_tokens", self.batch_tokens, "context", self.context)
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError("learning_rates names a rate twice")
        for name, numbers in self.networks.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"networks: {name!r} cannot name a folder")
            if not {"family", "preset"} & numbers.keys():
                raise ValueError(f"networks.{name} names no family and no preset")
        return self

    def steps(self, share: float = 1.0) -> int:
        """Optimizer steps of a trial on a share of the tokens."""
        return math.ceil(share * self.tokens / self.batch_tokens)


@dataclass(frozen=True)
class Material:
    """What all trials share: the stored tokens, the plan's file, and the text to score on."""

    tokenizer: Tokenizer
    store: TokenStore
    plan: Any
    plan_file: Path
    watched: list[str]
    scored: list[str]


def prepare(stage: LineageStage, work: Work) -> Material:
    """Encode the corpus once, and cut the held-out text into what is watched and what is scored."""
    train, heldout = work.corpus(stage.corpus)
    tokenizer = api.load_tokenizer(work.inputs[stage.tokenizer].path / "final")
    start_id(tokenizer)  # what cannot be scored is refused now, and not after the first trial
    folder = work.folder / "data"
    try:
        store = open_store(folder)
    except DataError:
        store = write_store(folder, read_texts(train), tokenizer)
    plan = plan_packing(store.offsets, stage.context)
    write_plan(folder / shared.PLAN, plan)
    texts = list(read_texts(heldout))
    # the rate is chosen on one half of every text, and what is reported is scored on the other
    watched = pieces(texts, stage.watch_bytes, begin=0.1, end=0.5)
    scored = pieces(texts, stage.score_bytes, begin=0.5, end=1.0)
    if not scored:
        raise DataError("no held-out documents", place=heldout, fix="set holdout.fraction above 0")
    return Material(tokenizer, store, plan, folder / shared.PLAN, watched, scored)


def pieces(texts: list[str], total: int, *, begin: float, end: float) -> list[str]:
    """One piece of each text, `total` bytes in all, from within two shares of its length."""
    share = max(1, total // max(1, len(texts)))
    found = []
    for text in texts:
        content = text.encode()
        first, last = int(begin * len(content)), int(end * len(content))
        # a cut may split a character, which is then left out
        found.append(content[first : min(last, first + share)].decode(errors="ignore"))
    return [piece for piece in found if piece]


@dataclass(frozen=True)
class Job:
    """One trial to run."""

    network: str
    name: str
    seed: int
    learning_rate: float
    steps: int


def run(stage: LineageStage, work: Work) -> dict[str, Any]:
    """Run what has not been run yet, and compare."""
    tell_of_sizes(stage)
    material = prepare(stage, work)
    best = {}
    for network in stage.networks:
        jobs = [
            Job(network, rate_name(rate), work.seed, rate, stage.steps(stage.sweep_share))
            for rate in stage.learning_rates
        ]
        if len(jobs) == 1:  # nothing to choose from
            best[network] = jobs[0].learning_rate
            continue
        results = [(run_trial(job, stage, work, material), job) for job in jobs]
        best[network] = min(results, key=lambda pair: final_watched(pair[0]))[1].learning_rate
    trials: dict[str, list[dict[str, Any]]] = {network: [] for network in stage.networks}
    for seed in range(stage.seeds):
        for network in stage.networks:
            job = Job(network, f"seed-{seed}", work.seed + seed, best[network], stage.steps())
            trials[network].append(run_trial(job, stage, work, material))
    return summary(stage, work, material, trials)


def rate_name(rate: float) -> str:
    """The name of the trial at a rate: every digit of it, so that no two share a folder."""
    return f"rate-{rate!r}"


def final_watched(result: dict[str, Any]) -> float:
    """Bits per byte on the watched text at the end; a trial that diverged comes last."""
    return math.inf if result["diverged"] else float(result["curve"][-1]["bits_per_byte"])


def run_trial(job: Job, stage: LineageStage, work: Work, material: Material) -> dict[str, Any]:
    """The result of a trial: read where it is there, else computed, from its checkpoint if any."""
    folder = work.folder / "trials" / job.network / job.name
    done = folder / RESULT
    if (found := kept_result(done, job)) is not None:
        shutil.rmtree(folder / "steps", ignore_errors=True)  # killed right behind the result
        return found
    own = trial_stage(stage, job)
    trial_work = Work(
        name=f"{work.name} {job.network} {job.name}",
        folder=folder,
        seed=job.seed,
        inputs=work.inputs,
        resumed=work.resumed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = prepare_model(own, trial_work)
    training = shared.begin(
        own,
        trial_work,
        model,
        tokenizer,
        material.store,
        material.plan,
        num_steps=job.steps,
        plan_file=material.plan_file,
    )
    every, watch = max(1, job.steps // stage.watch_points), watcher(stage, training, material)
    diverged = False
    try:
        if training.step < job.steps:
            shared.train(training, next_token_loss, (every, watch))
        if not any("heldout_bits_per_byte" in row for row in training.metrics.rows()):
            watch()  # the metrics were lost, the weights were not
    except (DivergedError, ModelError) as error:  # at too high a rate: that is a result too
        LOG.warning("%s: %s", trial_work.name, error.what)
        diverged = True
    result = trial_result(job, stage, training, material, diverged=diverged)
    write_json(done, {"format_version": 1, **result})
    shutil.rmtree(training.steps_folder, ignore_errors=True)  # weights are not kept
    return result


def kept_result(path: Path, job: Job) -> dict[str, Any] | None:
    """The result of a trial if it is there and is of this job; None where it must be run."""
    if not path.exists():
        return None
    try:
        found = read_object(path)
    except ModelError as error:
        LOG.warning("the trial is run again: %s: %s", error.place, error.what)
        return None
    same = all(found.get(key) == value for key, value in asdict(job).items())
    if not same:
        LOG.warning("the trial is run again: %s is of another seed, rate or length", path)
    return found if same else None


def numbers_of(stage: LineageStage, network: str) -> dict[str, Any]:
    """A network as its stage trains it: family or preset, and numbers.

    Under the fan-in rule embeddings begin with the deviation width^-0.5 in all networks alike,
    unless the recipe says another: families have defaults of their own, and would differ by them.
    """
    numbers = stage.networks[network]
    width = api.network(numbers)[1].get("width")
    if stage.initial == "fan-in" and isinstance(width, int):
        return {"initial_std": round(width**-0.5, 4), **numbers}
    return numbers


def trial_stage(stage: LineageStage, job: Job) -> PretrainStage:
    """A trial as the stage that trains it."""
    return PretrainStage.model_validate(
        {
            "kind": "pretrain",
            "corpus": stage.corpus,
            "tokenizer": stage.tokenizer,
            "model": numbers_of(stage, job.network),
            "steps": job.steps,
            "learning_rate": job.learning_rate,
            **{name: getattr(stage, name) for name in PASSED_ON},
        }
    )


def watcher(stage: LineageStage, training: Training, material: Material) -> Callable[[], None]:
    """A function that scores the watched text and notes it."""

    def watch() -> None:
        found = scored(training.model, material.tokenizer, material.watched, stage.context)
        training.watched(
            found.bits_per_byte,
            heldout_bits_per_byte=found.bits_per_byte,
            seconds=training.seconds,
        )

    return watch


def scored(model: Any, tokenizer: Tokenizer, texts: list[str], context: int) -> Score:
    """Bits per byte of texts, each token with at least half a context before it."""
    return bits_per_byte(model, tokenizer, texts, context=context, stride=context // 2)


def trial_result(
    job: Job, stage: LineageStage, training: Training, material: Material, *, diverged: bool
) -> dict[str, Any]:
    """What a trial leaves: its curve, its final score, its size, and its speed.

    A network that is far worse than knowing nothing counts as diverged too.
    """
    model = training.model
    final = None
    if not diverged:
        final = scored(model, material.tokenizer, material.scored, stage.context)
        diverged = final.bits_per_byte > HOPELESS
    flops = training_flops_per_token(model, stage.context)
    curve = [
        {
            "tokens": row["tokens"],
            "flops": row["tokens"] * flops,
            "seconds": row["seconds"],
            "bits_per_byte": row["heldout_bits_per_byte"],
        }
        for row in training.metrics.rows()
        if "heldout_bits_per_byte" in row
    ]
    return {
        **asdict(job),
        "parameters": sum(p.numel() for p in model.parameters()),
        "without_embedding": without_embedding(model),
        "flops_per_token": flops,
        "tokens": training.tokens,
        "training_seconds": training.seconds,
        "tokens_per_second": training.tokens / max(1e-9, training.seconds),
        "curve": curve,
        "diverged": diverged,
        "bits_per_byte": None if final is None or diverged else final.bits_per_byte,
        "pieces": [] if final is None or diverged else [list(pair) for pair in final.per_chunk],
    }


def without_embedding(model: Any) -> int:
    """Parameters of the blocks and norms: what sizes are compared by."""
    outside = (*EMBEDDINGS, "head.weight", "head.bias")
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(outside))


def summary(
    stage: LineageStage,
    work: Work,
    material: Material,
    trials: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Everything the report shows."""
    # a network that diverged from any seed has no place in the comparison
    found = {
        name: [Trial(r["seed"], r["bits_per_byte"], [tuple(p) for p in r["pieces"]]) for r in rows]
        for name, rows in trials.items()
        if not any(row["diverged"] for row in rows)
    }
    return {
        "networks": {
            name: {
                "family": api.network(stage.networks[name])[0],
                "kind": kind_of(sketch_of(stage, name)),
                "learning_rate": rows[0]["learning_rate"],
                **{
                    key: rows[0][key]
                    for key in ("parameters", "without_embedding", "flops_per_token")
                },
                "tokens_per_second": [row["tokens_per_second"] for row in rows],
                "bits_per_byte": [row["bits_per_byte"] for row in rows],
                "curves": [row["curve"] for row in rows],
                "decode": decode_rows(stage, name, work, material),
            }
            for name, rows in trials.items()
        },
        "sweep": sweep_rows(stage, work),
        "comparison": compare(found, seed=work.seed) if found else None,
        "ngrams": ngram_rows(stage, work, material),
        "heldout_bytes": sum(len(text.encode()) for text in material.scored),
    }


def sweep_rows(stage: LineageStage, work: Work) -> list[dict[str, Any]]:
    """What every learning rate reached on its share of the tokens; none where there is one rate."""
    rows: list[dict[str, Any]] = []
    if len(stage.learning_rates) == 1:
        return rows
    for network in stage.networks:
        for rate in stage.learning_rates:
            path = work.folder / "trials" / network / rate_name(rate) / RESULT
            found = final_watched(read_object(path))
            bits = found if math.isfinite(found) else None
            rows.append({"network": network, "learning_rate": rate, "bits_per_byte": bits})
    return rows


def decode_rows(
    stage: LineageStage, network: str, work: Work, material: Material
) -> list[dict[str, Any]]:
    """The cost of a token after each length; the weights do not matter, so they are fresh."""
    family, numbers = api.network(stage.networks[network])
    lengths = stage.decode.lengths
    numbers |= {"vocab_size": material.tokenizer.vocab_size, "context": 2 * max(lengths)}
    model = api.build(family, **numbers)
    return [asdict(cost) for cost in decode_costs(model, lengths)]


def ngram_rows(stage: LineageStage, work: Work, material: Material) -> list[dict[str, Any]]:
    """Interpolated n-grams, counted over the very tokens that a trial of the first seed sees."""
    order = Order(material.plan, work.seed, stage.batch_tokens // stage.context)
    seen = []
    for step in range(stage.steps()):
        batch = build_batch(material.store, material.plan, order.samples(step))
        seen += [targets_T[targets_T != IGNORED] for targets_T in batch.targets_BT]
    size = material.tokenizer.vocab_size
    texts = [material.tokenizer.encode(text) for text in material.scored]
    num_bytes = sum(len(text.encode()) for text in material.scored)
    rows = []
    with progress("n-grams", len(NGRAM_ORDERS)) as update:
        for done, length in enumerate(NGRAM_ORDERS, start=1):
            model = NgramModel.fit(seen, length, size)
            bits = -math.fsum(model.log2_probabilities(ids).sum() for ids in texts)
            rows.append({"order": length, "bits_per_byte": bits / num_bytes})
            update(done)
    return rows


def sketch_of(stage: LineageStage, network: str) -> Any:
    """A network by its numbers, without memory for weights."""
    family, numbers = api.network(stage.networks[network])
    return api.sketch(family, **(numbers | {"vocab_size": 1, "context": stage.context}))


def tell_of_sizes(stage: LineageStage) -> None:
    """Warn where networks are of different size: then their curves compare size as well."""
    sizes = {}
    for name in stage.networks:
        sizes[name] = without_embedding(sketch_of(stage, name))
    if max(sizes.values()) > 1.5 * min(sizes.values()):
        large, small = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        LOG.warning(
            "%s has %d parameters and %s %d: the comparison is also one of size",
            large,
            sizes[large],
            small,
            sizes[small],
        )
