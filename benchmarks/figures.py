"""What a benchmark measured, and whether that is enough."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and the bound it must keep.

    Parameters
    ----------
    what
        What was measured, with its unit.
    value
        The measured number; of several rounds the median.
    at_least, at_most
        The bound; None where there is none on that side.
    low, high
        The least and the greatest of the rounds; None where there was one alone.
    """

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(
        cls, what: str, values: list[float], *, at_least: float | None = None, at_most: float | None = None
    ) -> "Figure":
        """The figure of several rounds."""
        return cls(what, median(values), at_least, at_most, min(values), max(values))

    @property
    def reached(self) -> bool:
        """Whether the number keeps its bound."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def bound(self) -> str:
        """The bound in words; empty where there is none."""
        signs = ((">=", self.at_least), ("<=", self.at_most))
        return ", ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)

    def __str__(self) -> str:
        spread = "" if self.low is None or self.high is None else f"  {self.low:>9.4g} {self.high:>9.4g}"
        verdict = f"  {self.bound}: {'reached' if self.reached else 'MISSED'}" if self.bound else ""
        return f"{self.what:<66} {self.value:>9.4g}{spread or ' ' * 21}{verdict}"
