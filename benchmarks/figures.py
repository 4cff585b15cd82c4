"""What a benchmark measured, and whether that is enough."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and the bound it must keep.

    Parameters
    ----------
    what
        What was measured, with its unit.
    value
        The measured number.
    at_least, at_most
        The bound; None where there is none on that side.
    """

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the number keeps its bound."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        bounds = [
            f"{sign} {bound:g}" for sign, bound in ((">=", self.at_least), ("<=", self.at_most)) if bound is not None
        ]
        verdict = "" if not bounds else f"  ({', '.join(bounds)}: {'reached' if self.reached else 'MISSED'})"
        return f"{self.what:<62} {self.value:>10.4g}{verdict}"
