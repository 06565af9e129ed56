"""What a teacher costs and what its terms allow, from a YAML file that a user can put another before. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.contracts.errors import DataError, TeacherError

BUILT_IN = Path(str(files("stillroom"))) / "embedded" / "teachers.yaml"


class _Entry(BaseModel):
    """What both kinds of entries have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: list[str] = Field(min_length=1)
    hosts: list[str] | None = None
    as_of: date | None = None

    def fits(self, model: str, url: str | None) -> bool:
        """Whether it is about this model at this address; None: a local model."""
        host = urlsplit(url).hostname or "" if url else ""
        return any(fnmatchcase(model.lower(), name.lower()) for name in self.models) and (
            self.hosts is None or any(fnmatchcase(host, name.lower()) for name in self.hosts)
        )


class Price(_Entry):
    """US dollars a million tokens; `batch` multiplies all of them at the batch endpoint."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    batch: float = Field(1.0, ge=0, le=1)

    def cost(
        self, prompt_tokens: float, answer_tokens: float, cached_tokens: float = 0, *, batch: bool = False
    ) -> float:
        """US dollars; `cached_tokens` are among the prompt's."""
        cached = self.input if self.cached is None else self.cached
        dollars = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached
        return (dollars + answer_tokens * self.output) / 1e6 * (self.batch if batch else 1.0)


class Terms(_Entry):
    """What a teacher's licence or contract says about training other models with its answers."""

    licence: str
    training: Literal["allowed", "conditions", "forbidden", "unknown"]
    says: str = ""
    attribution: str | None = None
    naming: str | None = None
    source: str | None = None

    def lines(self) -> Iterator[str]:
        """For a reader."""
        dated = f", as of {self.as_of}" if self.as_of else ""
        yield f"{self.training}: {self.says} ({self.licence}{dated})"
        for name, text in (("attribution", self.attribution), ("naming", self.naming), ("read", self.source)):
            if text:
                yield f"{name}: {text}"


UNKNOWN = Terms(
    models=["*"],
    licence="not in the table",
    training="unknown",
    says="read the licence of this model before you publish a student of it.",
)


class Table(BaseModel):
    """A file of prices and terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prices: list[Price] = []
    terms: list[Terms] = []


@lru_cache(maxsize=8)
def read_table(path: Path) -> Table:
    """A file of the form of `embedded/teachers.yaml`.

    Raises:
        DataError: it is missing, or not of that form.
    """
    try:
        return Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise DataError(
            f"{path} cannot be read", got=error.strerror, do="check teacher.prices or --prices"
        ) from None
    except (ValidationError, yaml.YAMLError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        got = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else " ".join(str(error).split())
        raise DataError(
            f"{path} is no file of prices and terms", got=got, expected=f"the form of {BUILT_IN}"
        ) from None


E = TypeVar("E", bound=_Entry)


def _first(entries: Iterator[E], model: str, url: str | None) -> E | None:
    return next((entry for entry in entries if entry.fits(model, url)), None)


def price_of(model: str, url: str | None, own: Path | None = None) -> Price | None:
    """What a model at an address costs; None where no entry says. `own` is a user's file, which comes first."""
    tables = [read_table(path) for path in (own, BUILT_IN) if path is not None]
    return _first((price for table in tables for price in table.prices), model, url)


def terms_of(model: str, url: str | None, own: Path | None = None) -> Terms:
    """What the terms of a model at an address, or of a local model, say."""
    tables = [read_table(path) for path in (own, BUILT_IN) if path is not None]
    return _first((terms for table in tables for terms in table.terms), model, url) or UNKNOWN


def check_terms(model: str, terms: Terms, *, accepted: bool) -> None:
    """Refuse a teacher whose terms forbid what is about to be done, unless that was accepted.

    Raises:
        TeacherError: they do, and it was not.
    """
    if terms.training == "forbidden" and not accepted:
        raise TeacherError(
            f"the terms of {model} do not allow this without more ado",
            got=f"{terms.licence}: {terms.says}",
            expected="a teacher whose answers may train a student, or your word that this use is allowed",
            do=f"read {terms.source or 'its terms'}; then teacher.accept_terms: true, or --accept-terms",
        )
