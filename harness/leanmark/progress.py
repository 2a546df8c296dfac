"""How far long work is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Advance = Callable[[float, str], None]  # share of the whole, what is going on


class Meter:
    """Progress over the phases of a run, weighted by the seconds that each should take."""

    def __init__(self, advance: Advance, weights: Mapping[str, float]) -> None:
        self.advance = advance
        self.weights = weights
        self.shares = dict.fromkeys(weights, 0.0)

    def reach(self, phase: str, share: float, text: str) -> None:
        """A phase is done to this share."""
        self.shares[phase] = min(1.0, share)
        self.tell(phase, text)

    def add(self, phase: str, share: float, text: str) -> None:
        """A phase is further by this share."""
        self.reach(phase, self.shares[phase] + share, text)

    def tell(self, phase: str, text: str) -> None:
        """Say what is going on."""
        total = sum(self.weights.values()) or 1.0
        self.advance(sum(self.weights[name] * self.shares[name] for name in self.weights) / total, f"{phase}: {text}")
