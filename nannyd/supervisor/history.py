"""The memory of the last hour: one sample for each tick of the watchdog, or fewer; never a wake-up more."""

from __future__ import annotations

from array import array

SPACING = 15.0
"""Seconds between two samples; without systemd's watchdog, also between two looks at a warned worker."""
_SAMPLES_MAX = 240


class History:
    """A ring of samples: when (monotonic seconds), and the working set in bytes."""

    def __init__(self) -> None:
        """Start with none."""
        self._instants = array("d")
        self._sizes = array("q")

    def add(self, now: float, working_set: int) -> None:
        """Note a sample, unless the last one is too fresh."""
        if self._instants and now - self._instants[-1] < 0.9 * SPACING:
            return
        self._instants.append(now)
        self._sizes.append(working_set)
        del self._instants[:-_SAMPLES_MAX], self._sizes[:-_SAMPLES_MAX]

    def samples(self) -> list[tuple[float, int]]:
        """Return the samples, oldest first."""
        return list(zip(self._instants, self._sizes, strict=True))
