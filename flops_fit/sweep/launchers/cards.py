"""Which runs share a GPU: an admission book by memory."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# What a process holds on a card beside its tensors: the CUDA context, kernels, library workspaces [bytes].
CONTEXT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Peak:
    """What a completed run has used.

    Attributes:
        num_params: Size of its model [parameters].
        memory: Its peak of allocated memory on one device [bytes].
    """

    num_params: int
    memory: int


class CardBook:
    """Says on which card a run may go.

    A run always may go on a card that nobody uses. It may join others where all of them, itself included, are known
    to fit: the memory of a run is bounded by the peaks of completed runs of the same sweep, which share its batch.

    Args:
        cards: Groups of ids, as CUDA_VISIBLE_DEVICES names them; a run gets one group.
        capacity: Memory of a card that runs may fill [bytes]; None where it is not known, and nothing is shared.
        runs_per_card: Most runs on one card.
        peaks: Of runs completed before.
    """

    def __init__(
        self, cards: Sequence[str], *, capacity: int | None = None, runs_per_card: int = 1, peaks: Sequence[Peak] = ()
    ) -> None:
        self._capacity = capacity or 0
        self._runs_per_card = runs_per_card if capacity else 1
        self._peaks = list(peaks)
        self._on: dict[str, dict[str, int]] = {card: {} for card in cards}  # card -> run -> its parameters

    @property
    def room(self) -> int:
        """Most runs at a time."""
        return len(self._on) * self._runs_per_card

    def learn(self, peak: Peak) -> None:
        """Note what a completed run has used."""
        self._peaks.append(peak)

    def memory(self, num_params: int) -> int | None:
        """A bound for a run that was not measured [bytes]; None where no run as large has completed.

        Memory grows with size, so the next larger size measured is a bound; smaller ones that needed more, as where
        the micro-batch was halved in between, are believed as well.
        """
        larger = [p.num_params for p in self._peaks if p.num_params >= num_params]
        if not larger:
            return None
        return max(p.memory for p in self._peaks if p.num_params <= min(larger)) + CONTEXT_BYTES

    def enter(self, run_id: str, num_params: int) -> str | None:
        """Take a place for a run, on the card with the fewest others; None where there is none now."""
        for card, runs in sorted(self._on.items(), key=lambda item: len(item[1])):
            if not runs or (len(runs) < self._runs_per_card and self._fits([*runs.values(), num_params])):
                runs[run_id] = num_params
                return card
        return None

    def leave(self, run_id: str) -> None:
        """Give a run's place back."""
        for runs in self._on.values():
            runs.pop(run_id, None)

    def _fits(self, sizes: Sequence[int]) -> bool:
        needed = [self.memory(n) for n in sizes]
        return None not in needed and sum(n for n in needed if n is not None) <= self._capacity


def free_memory(cards: Sequence[str]) -> int | None:
    """Free memory of the fullest of some NVIDIA cards [bytes]; None where the driver's tool cannot tell.

    The tool is asked, not the CUDA library: that would put a context of this process on every card.

    Args:
        cards: Ids as CUDA_VISIBLE_DEVICES names them; slices of a card (MIG) are not known to the tool.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_free_memory(answer, cards)


def parse_free_memory(answer: str, cards: Sequence[str]) -> int | None:
    """Read the tool's lines of index, id and MiB; None where a card is missing."""
    free: dict[str, int] = {}
    for line in answer.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[2].isdigit():
            free[cells[0]] = free[cells[1]] = int(cells[2]) << 20
    return min((free[c] for c in cards), default=None) if all(c in free for c in cards) else None
