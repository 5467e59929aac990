"""Text without what looks like a credential, before it is kept or shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

_REDACTED = "[redacted]"
_SECRET_WORD = r"(?:key|apikey|token|secret|password|passwd|pwd|credentials?|auth)"
_SECRET_NAME = rf"(?:[\w.-]*[_.-])?{_SECRET_WORD}(?:[_-]\w+)?"
_SECRET_OPTION = re.compile(rf"--?{_SECRET_NAME}", re.IGNORECASE)
_SECRET_VALUE = re.compile(rf"""(?<![\w.])({_SECRET_NAME}["']?\s*[:=]\s*["']?)[^\s"',}}\]&]+""", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(\w://)[^/@\s]+@")
# What services hand out, recognisable without a name beside it.
_SECRET = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|AKIA|ASIA|ya29\.|eyJ)[\w.-]{8,}|\b[0-9a-fA-F]{40,}\b"
)


def redacted(text: str) -> str:
    """A text with credentials taken out: by the name beside them, or by their form."""
    text = _USER_IN_URL.sub(rf"\1{_REDACTED}@", text)
    return _SECRET.sub(_REDACTED, _SECRET_VALUE.sub(rf"\1{_REDACTED}", text))


def redacted_words(words: Sequence[str]) -> list[str]:
    """A command line with credentials taken out, the word after ``--api-key`` among them."""
    clean, secret_follows = [], False
    for word in words:
        if secret_follows and not word.startswith("--"):
            clean.append(_REDACTED)
            secret_follows = False
            continue
        secret_follows = _SECRET_OPTION.fullmatch(word) is not None
        clean.append(redacted(word))
    return clean
