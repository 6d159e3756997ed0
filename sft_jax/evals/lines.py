"""A tokenizer that tokenises each distinct line once.

The prompts of a benchmark consist of the same lines over and over: shots, choices, the mark before
an answer. Where a tokenizer provably gives a text the ids of its parts, texts are cut there, and
parts are looked up. Not for offsets, and not for texts met once.

Why ids do not change. A byte-level tokenizer first splits a text by a regular expression and merges
bytes within its pieces only. So a text may be cut where a piece always ends and no piece before
depends on what follows. Of the expressions below, none matches across

  - what is no white space | a line break, in GPT-2's: line breaks begin a piece of white space,
    and only the end of white space depends on what follows.
  - a line break | what is neither white space nor '/', in those that take `\\s*[\\r\\n]+` together
    before they look at what follows, and let line breaks (and '/') end punctuation.

Splitting off digits first, and composing characters (NFC), change nothing at such a place.

A tokenizer made of a SentencePiece model merges across the whole text, but nothing with a line
break where that is a byte that no token but its own contains: what merges on one side never depends
on the other. It puts a space before each text, whose token is taken off again from lines that are
not the first; and one behind each token of its own, so texts with such tokens are left whole.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_AFTER_TEXT = r'(?<=\S)(?=\n)'
# U+180E was white space before Unicode 6.3.
_BREAK, _SPACE = '<0x0A>', '\u2581'
_BEFORE_BREAK = r'(?<=[^\n])(?=\n)'
_AFTER_BREAK = r'(?<=\n)(?=[^\s/\u180e])'
_TAIL = r'|\s*[\r\n]+|\s+(?!\S)|\s+'
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r'[^\r\n\p{L}\p{N}]?\p{L}+'
_UPPER = r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
_LOWER = r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
# Expressions that tokenizers split by -> where their texts may be cut.
SPLITS = {
  # Llama 3, dolma2
  rf'{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}': _AFTER_BREAK,
  # Qwen2 to Qwen3
  rf'{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}': _AFTER_BREAK,
  # Llama 4, o200k
  rf'{_UPPER}{_CONTRACTIONS}?|{_LOWER}{_CONTRACTIONS}?|\p{{N}}{{1,3}}'
  rf'| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}': _AFTER_BREAK,
  # Mistral's tekken
  rf'{_UPPER}|{_LOWER}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}': _AFTER_BREAK,
}


class Cuts(NamedTuple):
  """Where texts may be cut, as regular expressions.

  Attributes:
    places: Between two lines.
    not_in: Of texts that are left whole; '' for none.
    added: Tokens that begin every line but the first and are not there in the whole text.
  """

  places: str
  not_in: str = ''
  added: int = 0


def cuts(tokenizer: Any) -> Cuts | None:
  """Where a tokenizer's texts may be cut; None if there is no place of which we know it."""
  backend = tokenizer.backend_tokenizer
  if backend.truncation or backend.padding or type(backend.model).__name__ != 'BPE':
    return None
  if backend.model.dropout or getattr(tokenizer, 'split_special_tokens', False):
    return None
  # A token of its own is found before all else, and may take the white space around it along.
  for token in backend.get_added_tokens_decoder().values():
    if token.lstrip or token.rstrip or '\n' in token.content:
      return None
  if backend.pre_tokenizer is None:
    return _cuts_of_pieces(backend)
  if backend.normalizer and _state(backend.normalizer)['type'] != 'NFC':
    return None
  found = {_cuts_of(step) for step in _steps(_state(backend.pre_tokenizer))} - {''}
  places = found.pop() if len(found) == 1 else None
  return Cuts(places) if places else None


def _cuts_of_pieces(backend: Any) -> Cuts | None:
  """The same for a SentencePiece model with its bytes, in the form of Llama 2."""
  prepend = {'type': 'Prepend', 'prepend': _SPACE}
  replace = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': _SPACE}
  steps = [prepend, replace]
  if not backend.normalizer or _state(backend.normalizer).get('normalizers') != steps:
    return None
  if not backend.model.byte_fallback or backend.model.ignore_merges:
    return None
  tokens = backend.get_vocab(with_added_tokens=False)
  if [t for t in tokens if '\n' in t or _BREAK in t] != [_BREAK] or _SPACE not in tokens:
    return None
  own = (re.escape(token.content) for token in backend.get_added_tokens_decoder().values())
  return Cuts(_BEFORE_BREAK, not_in='|'.join(own), added=1)


def _state(part: Any) -> dict[str, Any]:
  """The settings of a part of a backend."""
  return json.loads(part.__getstate__())


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
  return list(state['pretokenizers']) if state['type'] == 'Sequence' else [state]


def _cuts_of(step: dict[str, Any]) -> str | None:
  """Where one step of splitting lets texts be cut; '' if anywhere at the ends of lines."""
  if step['type'] == 'Digits':
    return ''
  if step['type'] == 'ByteLevel' and not step['add_prefix_space']:
    return _AFTER_TEXT if step['use_regex'] else ''
  # Every character is matched, so what is kept are the matches.
  keeps = (('Isolated', False), ('Removed', True))
  if step['type'] == 'Split' and (step['behavior'], step['invert']) in keeps:
    return SPLITS.get(step['pattern'].get('Regex', ''))
  return None


class LineTokenizer:
  """A fast transformers tokenizer with a memory; whatever else is asked of it, it passes on.

  Args:
    tokenizer: The tokenizer. It must not be changed afterwards.
  """

  def __init__(self, tokenizer: Any):
    self._tokenizer = tokenizer
    found = cuts(tokenizer)
    self._cut = re.compile(found.places) if found else None
    # To find the last place from the end, without a scan of the whole text.
    self._last = re.compile(rf'(?s:.*){found.places}') if found else None
    self._not_in = re.compile(found.not_in) if found and found.not_in else None
    self._added = found.added if found else 0
    self._firsts: dict[str, list[int]] = {'': []}
    self._lines = self._firsts if not self._added else {}
    self._framed: dict[str, dict[str, list[int]]] = {}
    self._head: tuple[str, list[int]] = ('', [])

  def __getattr__(self, name: str) -> Any:
    return getattr(self._tokenizer, name)

  def __call__(
    self, text: str | Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, list[Any]]:
    """`input_ids` of a text, or of each text."""
    if add_special_tokens and isinstance(text, str):
      if text not in self._framed:
        self._framed[text] = self._tokenizer(text)
      return self._framed[text]
    if add_special_tokens or self._cut is None:
      return self._tokenizer(text, add_special_tokens=add_special_tokens)
    if isinstance(text, str):
      return {'input_ids': self._ids(text)}
    return {'input_ids': [self._ids(one) for one in text]}

  def _ids(self, text: str) -> list[int]:
    assert self._cut is not None and self._last is not None
    found = self._last.match(text)
    if found is None or (self._not_in and self._not_in.search(text)):
      return self._encode(text)
    head, tail = text[: found.end()], text[found.end() :]
    # The texts of one question differ behind their last line break.
    if head != self._head[0]:
      first, *rest = self._cut.split(head)
      if first not in self._firsts:
        self._firsts[first] = self._encode(first)
      ids = list(self._firsts[first])
      for line in rest:
        ids += self._line(line)
      self._head = (head, ids)
    return self._head[1] + self._line(tail)

  def _line(self, line: str) -> list[int]:
    """Tokens of a line that is not the first."""
    ids = self._lines.get(line)
    if ids is None:
      ids = self._lines[line] = self._encode(line)[self._added :]
    return ids

  def _encode(self, text: str) -> list[int]:
    return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
