"""Everything flops-fit raises on purpose."""


class FlopsFitError(Exception):
    """Base of every error flops-fit raises on purpose.

    Args:
        problem: What is wrong and where: the object, the value, the valid choices.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem if hint is None else f"{problem}\n\nhint: {hint}")
        self.problem = problem
        self.hint = hint


class PlanError(FlopsFitError, ValueError):
    """The sweep cannot be trained as asked."""


class DataError(FlopsFitError, ValueError):
    """A data set, a table or a file does not hold what is needed."""


class RunError(FlopsFitError, RuntimeError):
    """A run could not be trained or its directory cannot be used."""


class FitError(FlopsFitError, ValueError):
    """The runs cannot determine what was asked of them."""
