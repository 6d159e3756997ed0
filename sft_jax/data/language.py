"""In which languages texts are written, by py3langid (after Lui and Baldwin 2012): offline.

What is sure of few texts is said of none: sums and programs are in no language.
"""

import collections
import functools
from collections.abc import Iterable
from typing import Any

# Of a text as it is read, and below which it is in no language that can be told.
_LETTERS, _SURE = 2000, 0.5


def shares(texts: Iterable[str]) -> dict[str, float]:
  """{ISO 639 code: share of the texts that are in it}, most first.

  Texts whose language is not sure are left out; where these are most, the answer is empty.
  """
  found = [language for text in texts if (language := _language(text[:_LETTERS])) is not None]
  sure = [language for language in found if language]
  if 2 * len(sure) <= len(found):
    return {}
  return {name: n / len(sure) for name, n in collections.Counter(sure).most_common()}


def _language(text: str) -> str | None:
  """A code; '' where it is not sure, None where there is nothing to read."""
  if not text.strip():
    return None
  code, sure = _identifier().classify(text)
  return str(code) if sure >= _SURE and code != 'zxx' else ''


@functools.cache
def _identifier() -> Any:
  from py3langid import langid

  return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
