"""How the processes of a run divide the work: numbers alone, cheap to import.

What makes them true is `stemma.train.parallel`.
"""

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import UsageError


class Parallel(StrictModel):
    """How the processes of a run share the work; what is left over are replicas."""

    shards: int = Field(default=1, ge=1, description="processes that a copy is spread over (FSDP)")
    tensor: int = Field(
        default=1, ge=1, description="processes that share each layer's heads and hidden units"
    )
    offload: bool = Field(default=False, description="keep what is sharded in the CPU's memory")

    def replicas(self, size: int) -> int:
        """Copies of the model among so many processes; UsageError where they do not divide."""
        copy = self.shards * self.tensor
        if size % copy:
            low = size // copy * copy
            near = f"{low} or {low + copy}" if low else str(copy)
            said = f"{size} processes are no multiple of shards ({self.shards}) x tensor"
            fix = f"start {near} processes, or change shards or tensor"
            raise UsageError(f"{said} ({self.tensor}) = {copy}", place="parallel", fix=fix)
        return size // copy
