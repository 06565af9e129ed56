"""What a machine says that it draws: the processors' own energy counters, where it shows them (Linux, powercap)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_ZONES = Path("/sys/class/powercap")
_MICRO = 1e-6


@dataclass(frozen=True)
class Energy:
    """The counters at one moment.

    Intel's and AMD's running average power limit (RAPL) counts microjoules of each processor package, memory apart; the
    kernel shows them to root alone unless told otherwise. A GPU's share is not in it.
    """

    counters: dict[str, tuple[int, int]]
    """By zone: microjoules, and the value at which its counter starts again."""

    @staticmethod
    def now(zones: Path = _ZONES) -> Energy | None:
        """The counters now; None where the machine does not show them."""
        found = {}
        for zone in sorted(zones.glob("*-rapl:[0-9]*")):
            if zone.name.count(":") > 1:  # a part of a package, which is in the package's count already
                continue
            try:
                count, most = (
                    int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")
                )
            except (OSError, ValueError):
                continue
            found[zone.name] = (count, most)
        return Energy(found) if found else None

    def until(self, later: Energy | None) -> float | None:
        """Joules from this moment to a later one, less than one turn of a counter apart; None where they cannot be told."""
        if later is None or later.counters.keys() != self.counters.keys():
            return None
        return _MICRO * sum(
            (then - count) % (most + 1)
            for (count, most), (then, _) in zip(self.counters.values(), later.counters.values(), strict=True)
        )
