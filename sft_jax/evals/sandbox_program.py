"""What the sandboxed interpreter runs: a program, then its checks. Standard library only; never
imported, its text is given to the interpreter (`-c`). What it guarantees stands in `sandbox.py`.

It is told over the link, one frame after another: the program, the modules the checks import, the
word to say when the program has run; and after that the checks, the built-in names the program may
redefine, the name of the comparison guard, and the word to say when all checks have passed.
"""

import builtins
import importlib
import os
import sys
import types

LINK = 3  # as the launcher sets it
COMPARISONS = ('__eq__', '__ne__', '__lt__', '__le__', '__gt__', '__ge__', '__contains__')
SIMPLE = frozenset((int, float, complex, bool, str, bytes, range, type(None)))
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or like it


class Tampered(BaseException):
  """The program reached for what decides on it."""


def main() -> None:
  """Runs one program and its checks, and tells the outcome over the link."""
  # Taken now: the program may put others in their places.
  read, write, leave, modules = os.read, os.write, os._exit, sys.modules
  kinds = _Kinds()

  def receive() -> str:
    data = b''
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], 'big'):
      # No more than asked for: the next frame may be there already.
      wanted = 8 - len(data) if len(data) < 8 else 8 + int.from_bytes(data[:8], 'big') - len(data)
      chunk = read(LINK, wanted)
      if not chunk:
        leave(1)
      data += chunk
    return data[8:].decode('utf-8', 'surrogatepass')

  def failed(kind: str, error: BaseException) -> None:
    text = f'{kind}: {type(error).__name__}: {error}'
    write(LINK, text.encode('utf-8', 'backslashreplace')[:2000])
    try:
      sys.stdout.flush()
    finally:
      leave(0)

  source, imports, ready = receive(), receive().split(), receive()
  watched = [builtins, *map(importlib.import_module, imports)]
  before = [(module.__name__, module, dict(vars(module))) for module in watched]
  # An interpreter's own module would hand the program this one.
  modules['__main__'] = types.ModuleType('__main__')
  space: dict = {}
  try:
    exec(compile(source, '<program>', 'exec', dont_inherit=True, optimize=0), space)
  except BaseException as error:
    failed('error', error)
  sys.settrace(None)
  sys.setprofile(None)

  write(LINK, ready.encode())
  checks, allowed, guard, word = receive(), receive().split(), receive(), receive()
  # The program's names, but not its own `abs` for the checks to use.
  seen = {n: v for n, v in space.items() if n in allowed or n not in before[0][2]}
  seen['__builtins__'] = builtins
  seen[guard] = kinds.plain
  try:
    exec(compile(checks, '<checks>', 'exec', dont_inherit=True, optimize=0), seen)
    for name, module, names in before:
      now = vars(module)
      if modules.get(name) is not module or any(now.get(n) is not v for n, v in names.items()):
        raise Tampered(f'module {name} was changed')
    if sys.gettrace() is not None or sys.getprofile() is not None:
      raise Tampered('the checks were traced')
    sys.stdout.flush()
  except AssertionError as error:
    failed('wrong', error)
  except Tampered as error:
    failed('tampered', error)
  except BaseException as error:
    failed('error', error)
  write(LINK, word.encode())
  leave(0)


class _Kinds:
  """Finds values whose comparison the program wrote itself, and which may equal anything."""

  def __init__(self) -> None:
    # Straight from `type`: a metaclass can overlay the attributes.
    self._order = type.__dict__['__mro__'].__get__
    self._names = type.__dict__['__dict__'].__get__
    self._flags = type.__dict__['__flags__'].__get__
    self._module = type.__dict__['__module__'].__get__
    self._name = type.__dict__['__name__'].__get__
    self._modules = sys.modules

  def plain(self, value):
    """The value, if it and what lies in it compare as Python's own values do.

    Raises:
      Tampered: they do not.
    """
    todo, done = [value], set()
    while todo:
      one = todo.pop()
      kind = type(one)
      if kind in SIMPLE or id(one) in done:
        continue
      done.add(id(one))
      for method in COMPARISONS:
        self._check(kind, method)
      if issubclass(kind, dict):
        todo += dict.keys(one)
        todo += dict.values(one)
      for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
          todo += base.__iter__(one)
    return value

  def _check(self, kind, method):
    for base in self._order(kind):
      if method in self._names(base):
        if self._of_the_program(base):
          raise Tampered(f'the program wrote {self._name(base)}.{method}')
        return

  def _of_the_program(self, kind):
    if not self._flags(kind) & HEAP_TYPE:
      return False
    home = self._modules.get(self._module(kind))
    return home is None or vars(home).get(self._name(kind)) is not kind


if __name__ == '__main__':
  main()
