"""What a model has answered so far, request by request, so that an evaluation can go on.

A file of JSON lines that is only ever added to; a line torn by a crash is left out. Keys are made
of the tokens put to the model and of how it was to answer: the same question of another task, or
after an edit elsewhere, is not asked again. Not for object stores, where nothing can be appended.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from sft_jax.evals.generation import Request
from sft_jax.evals.layout import Text
from sft_jax.utils import io, peers


def text_key(text: Text) -> str:
  """Key of a text to score."""
  return _digest('score', text.start, np.asarray(text.ids, np.int32).tobytes())


def request_key(request: Request) -> str:
  """Key of a prompt to go on from."""
  how = (request.max_new, request.stops, request.temperature, request.seed)
  # What may end it early changes the text, not what comes of it; still not the same answer.
  early = request.settled is not None
  return _digest('write', how, early, np.asarray(request.prompt, np.int32).tobytes())


def _digest(*parts: Any) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part if isinstance(part, bytes) else repr(part).encode())
    digest.update(b'\0')
  return digest.hexdigest()[:32]


class Answers:
  """Answers by key: in a file, or in memory only where there is no path."""

  def __init__(self, path: epath.PathLike | None = None, kept: Callable[[], None] = lambda: None):
    """Reads what is there; in all processes what is there for the first, which alone has a path.

    Args:
      path: The file.
      kept: Called after each answer that is in the file.
    """
    self._kept = kept
    self._path = None if path is None or io.is_remote(path) else epath.Path(path)
    self._held: dict[str, Any] = {}
    self._file: Any = None
    if self._path is not None and self._path.exists():
      for line in self._path.read_bytes().split(b'\n'):
        try:
          key, value = json.loads(line)
        except (ValueError, TypeError):
          continue
        self._held[key] = value
    self._held = peers.from_first(self._held)

  def __contains__(self, key: str) -> bool:
    return key in self._held

  def __getitem__(self, key: str) -> Any:
    return self._held[key]

  def put(self, key: str, value: Any) -> None:
    """Keeps an answer, which is JSON."""
    self._held[key] = value
    if self._path is None:
      return
    with io.explain_os_errors(self._path):
      if self._file is None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, 'ab')  # noqa: SIM115 (kept until `close`)
        self._file.write(b'\n')  # ends a torn line
      self._file.write(json.dumps([key, value], ensure_ascii=False).encode() + b'\n')
      self._file.flush()
    self._kept()

  def close(self) -> None:
    """Gives the file back."""
    if self._file is not None:
      self._file.close()
      self._file = None

  def forget(self) -> None:
    """Removes the file: everything it was kept for is done."""
    self.close()
    if self._path is not None:
      self._path.unlink(missing_ok=True)
