"""Keys that every stage that trains has: one name, description, default and limit for all of them.

A new key is declared here, added to `Settings` if the loop reads it, and named in each stage that
has it; `UNSEEN` if it changes no result.
"""

from typing import Annotated, Protocol

from pydantic import Field

from stemma.core.config import StrictModel, multiple
from stemma.train.average import Ema
from stemma.train.division import Parallel
from stemma.train.guard import Guard
from stemma.train.optimizer import AdamW, OptimizerNumbers
from stemma.train.precision import Precision
from stemma.train.profile import Profile
from stemma.train.recompute import Recompute
from stemma.train.saver import Saving
from stemma.train.schedule import Cosine, Schedule

UNSEEN = frozenset({"minutes", "checkpoint_every", "keep_checkpoints", "device", "workers"})
UNSEEN |= {"recompute", "statistics", "profile", "saving", "parallel"}
# keys that version 0.1 did not know: its checkpoints fit where they are left as they are
LATER = frozenset({"precision", "compile", "z_loss", "ema", "guard"})
# keys that say what is read, how much and in which batches: `--reset-data` may change them
LENGTHS = frozenset({"context", "tokens", "steps", "batch_tokens", "micro_batch_tokens"})


class Samples(StrictModel):
    """Texts written along training, for the report."""

    every: int = Field(default=0, ge=0, description="steps between samples; 0: none")
    prompts: tuple[str, ...] = Field(
        default=(), description="what to continue; default: how held-out documents begin"
    )
    max_new_tokens: int = Field(default=60, ge=1, description="tokens a sample")
    temperature: float = Field(default=0.8, ge=0, description="0 takes the likeliest token")


class Statistics(StrictModel):
    """Figures of the training itself, beside the loss."""

    every: int = Field(
        default=0, ge=0, description="steps between norms by layer, and use of the machine; 0: none"
    )


Context = Annotated[int, Field(ge=2, description="tokens of a sample")]
Tokens = Annotated[
    int | None, Field(default=None, ge=1, description="tokens to train on, rounded up")
]
Steps = Annotated[int | None, Field(default=None, ge=1, description="optimizer steps")]
BatchTokens = Annotated[int, Field(ge=1, description="tokens a step; a multiple of context")]
MicroBatchTokens = Annotated[
    int | None,
    Field(default=None, ge=1, description="tokens at once in memory; default: the whole batch"),
]
LearningRate = Annotated[float, Field(gt=0, description="peak learning rate")]
RateSchedule = Annotated[
    Schedule, Field(default=Cosine(kind="cosine"), description="how the rate moves")
]
Optimizer = Annotated[
    OptimizerNumbers, Field(default=AdamW(), description="how gradients become steps")
]
Clip = Annotated[float, Field(default=1.0, gt=0, description="largest gradient norm")]
Trainable = Annotated[
    tuple[str, ...],
    Field(default=(), description="patterns of the modules to train, as blocks.*; default: all"),
]
Processes = Annotated[
    Parallel, Field(default=Parallel(), description="how processes share the work, if several run")
]
SampleSetting = Annotated[Samples, Field(default=Samples(), description="texts along training")]
CheckpointEvery = Annotated[int, Field(default=500, ge=1, description="steps between checkpoints")]
KeepCheckpoints = Annotated[
    int, Field(default=2, ge=1, description="newest checkpoints to keep, besides the best")
]
SavingSetting = Annotated[Saving, Field(default=Saving(), description="how checkpoints are saved")]
Workers = Annotated[
    int, Field(default=0, ge=0, le=64, description="threads that build batches ahead of their step")
]
Device = Annotated[str, Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")]
Minutes = Annotated[
    float | None, Field(default=None, ge=0, description="budget, printed beforehand")
]
Precise = Annotated[
    Precision,
    Field(default="fp32", description="precision of products; weights and optimizer stay fp32"),
]
Compile = Annotated[
    bool, Field(default=False, description="compile the blocks: minutes at first, then faster")
]
RecomputeSetting = Annotated[
    Recompute, Field(default=Recompute(), description="less memory for more work")
]
ZLoss = Annotated[
    float, Field(default=0.0, ge=0, description="weight of the squared log of the softmax's sum")
]
Averaging = Annotated[Ema, Field(default=Ema(), description="an average of the weights")]
Guarding = Annotated[Guard, Field(default=Guard(), description="steps that would do harm")]
StatisticsSetting = Annotated[
    Statistics, Field(default=Statistics(), description="figures of the training itself")
]
Profiling = Annotated[Profile, Field(default=Profile(), description="a trace of a few steps")]


class Settings(Protocol):
    """What the loop reads of a stage's configuration."""

    @property
    def context(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def micro_batch_tokens(self) -> int | None: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def optimizer(self) -> OptimizerNumbers: ...
    @property
    def clip(self) -> float: ...
    @property
    def trainable(self) -> tuple[str, ...]: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def compile(self) -> bool: ...
    @property
    def recompute(self) -> Recompute: ...
    @property
    def ema(self) -> Ema: ...
    @property
    def guard(self) -> Guard: ...
    @property
    def statistics(self) -> Statistics: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def parallel(self) -> Parallel: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def saving(self) -> Saving: ...
    @property
    def workers(self) -> int: ...


def check_batches(stage: Settings) -> None:
    """Steps hold whole samples: for use in validators."""
    multiple("batch_tokens", stage.batch_tokens, "context", stage.context)
    if stage.micro_batch_tokens is not None:
        multiple("micro_batch_tokens", stage.micro_batch_tokens, "context", stage.context)
