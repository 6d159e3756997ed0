"""Raw records of public datasets to conversations."""

import dataclasses
import functools
import hashlib
import unicodedata


@dataclasses.dataclass(frozen=True)
class Record:
  """A conversation or a plain text.

  Attributes:
    messages: {'role': system|user|assistant|tool, 'content': str}; empty for plain text.
    source: Where it was read: 'file.jsonl:12'.
    text: The text, when there are no messages.
    split: 'train' or 'heldout' where the data say so, else ''.
    problem: Why it cannot be trained on (such as an empty response), else ''.
  """

  messages: tuple[dict[str, str], ...]
  source: str
  text: str = ''
  split: str = ''
  problem: str = ''

  @functools.cached_property
  def key(self) -> str:
    """Hash of the content with case, spacing and Unicode form evened out."""
    parts = [f'{m["role"]}\x1f{_even(m["content"])}' for m in self.messages] or [_even(self.text)]
    return hashlib.sha256('\x1e'.join(parts).encode('utf-8')).hexdigest()[:32]


def _even(text: str) -> str:
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())
