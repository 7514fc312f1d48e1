"""What a fit came to."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """Example: `FitReport(output="policies/start", steps=350, rows=22400, loss=0.64, ..., seconds=36.1)`."""

    output: str
    steps: int
    rows: int  # rows or pairs trained on
    loss: float  # mean over the last tenth of the steps
    heldout_rows: int
    heldout_loss: float | None  # None without held-out rows
    heldout_accuracy: float | None  # policy: next response token; reward: pairs ranked as labelled
    shortened_rows: int  # rows that had to be cut to max_length
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.output}: {self.steps} steps on {self.rows} rows in {self.seconds:.0f} s, loss {self.loss:.3f}"
        if self.heldout_rows:
            measured = f"loss {self.heldout_loss:.3f}, accuracy {self.heldout_accuracy:.3f}"
            text += f"; {self.heldout_rows} held-out rows: {measured}"
        return text + (f"; {self.shortened_rows} rows shortened" if self.shortened_rows else "")
