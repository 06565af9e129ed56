"""Every fault that stillroom reports, in one tree.

StillroomError              four parts: what, got, expected, do
├── UserError               the user can mend it; exit code 2
│   ├── RecipeError         a recipe does not say what it must
│   ├── DataError           a file of prompts, answers or examples is not usable
│   ├── ModelError          a model folder, GGUF file or pair of models is not usable
│   ├── TeacherError        an API refuses: wrong key, unknown model, unreachable address
│   ├── BookError           a lesson book does not fit what is asked of it
│   ├── MissingExtra        an optional dependency is not installed
│   └── RunError            a run folder is not what the command needs
└── Fault                   the machine or another program failed; exit code 1
    ├── ParityError         a converted model file disagrees with its source
    ├── StorageFault        the disk is full or a write failed
    └── ServiceFault        a service kept failing after every retry
"""

from __future__ import annotations


class StillroomError(Exception):
    """Base of every error shown to a user.

    Args:
        what: what went wrong, one sentence, no trailing full stop.
        got: what was found.
        expected: what was needed instead.
        do: what the reader can do next.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, got: object = None, expected: object = None, do: str | None = None
    ) -> None:
        self.what, self.got, self.expected, self.do = what, got, expected, do
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        for label, part in (("got", self.got), ("expected", self.expected), ("do", self.do)):
            if part is not None:
                lines.append(f"  {label + ':':<10}{part}")
        return "\n".join(lines)


class UserError(StillroomError):
    """A fault that the user can mend."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe does not say what it must."""


class DataError(UserError):
    """A file of prompts, answers or examples is not usable."""


class ModelError(UserError):
    """A model folder, GGUF file or pair of models is not usable."""


class TeacherError(UserError):
    """An API refuses: wrong key, unknown model, unreachable address."""


class BookError(UserError):
    """A lesson book does not fit what is asked of it."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""


class RunError(UserError):
    """A run folder is not what the command needs."""


class Fault(StillroomError):
    """The machine or another program failed."""


class ParityError(Fault):
    """A converted model file disagrees with its source."""


class StorageFault(Fault):
    """The disk is full or a write failed."""


class ServiceFault(Fault):
    """A service kept failing after every retry."""
