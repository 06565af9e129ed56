"""Where an API is and with which key it is asked. No torch here: keys of answers and the CLI use it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import urlsplit

from stillroom.contracts.errors import TeacherError

OPENAI = "openai"
_DEFAULT_URL = "https://api.openai.com/v1"


def base_url(api: str) -> str:
    """The address that an API's name in a recipe stands for, without a slash at its end.

    Args:
        api: such as http://127.0.0.1:8080/v1, or `openai` for $OPENAI_BASE_URL, else the provider's default.

    Raises:
        TeacherError: it is no address, or it holds a password.
    """
    url = (os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL) if api == OPENAI else api
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise TeacherError(
            "the teacher's API has no usable address",
            got=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
            expected="a base URL without a password, such as http://127.0.0.1:8080/v1, or `openai`",
            do="mend teacher.api",
        )
    return url.rstrip("/")


@dataclass(frozen=True)
class Endpoint:
    """An address and its key, which never shows in a text that `clean` has seen."""

    url: str
    key_env: str
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, api: str, key_env: str) -> Endpoint:
        """The endpoint of an API's name, with the key from the environment.

        Raises:
            TeacherError: the address or the key is none, or the default provider's key is not set.
        """
        url, key = base_url(api), os.environ.get(key_env, "").strip()
        if not key and url == _DEFAULT_URL:
            raise TeacherError(
                f"there is no API key for {url}",
                got=f"${key_env} is not set",
                expected="the key in that environment variable",
                do=f"export {key_env}=... , or name another variable in teacher.api_key_env",
            )
        if not (key.isascii() and key.isprintable()):
            raise TeacherError(
                f"${key_env} is no API key",
                got="characters that no HTTP header can hold",
                expected="one line of ASCII",
                do=f"copy the key into ${key_env} again",
            )
        return cls(url, key_env, key)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def clean(self, text: object) -> str:
        """One line of at most 300 characters without the key."""
        # The key goes before the line is shortened, which might leave a part of it.
        whole = str(text).replace(self.key, "[key]") if self.key else str(text)
        return " ".join(whole[:2000].split())[:300] or type(text).__name__

    def refuse(self, what: str, got: str, do: str) -> NoReturn:
        """Raise TeacherError: the teacher at this address does `what`."""
        raise TeacherError(
            f"the teacher at {self.url} {what}",
            got=got,
            expected="an OpenAI-compatible API that answers",
            do=do,
        )
