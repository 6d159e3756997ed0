"""Runs programs that a model wrote, each in a world of its own, and says which pass their checks.

Every program is a new interpreter (standard library only, fixed hashes) below a launcher that is a
new process too; nothing is forked from this one, and nothing of a model runs in it. Where the
platform has it (Linux with namespaces, as root or not): no network; a root that holds nothing but
the interpreter, its libraries and an empty /tmp in memory; own processes, which all end with the
first; an unprivileged user; an environment that says nothing; limits on time, memory, files and
processes. What is missing is named (`capabilities`) and refused unless `allow_weaker`.

What a verdict means. Passed is only a program that ran to its end, whose checks then ran to
theirs, and after that said a word drawn for this one run; no exit status, output or file counts.
The checks' text and that word reach the interpreter after the program's own statements have run.
The checks do not pass by values that claim to equal everything, by changed or shadowed built-ins or
modules, or by tracing. But they call the program's functions in one interpreter, as the published
measures do: one written against this very file could find the word in memory while it is called. It
would still be shut in; only its score would be false. Not for what a program is: benchmarks say.
"""

import ast
import concurrent.futures
import contextlib
import functools
import importlib.resources
import json
import math
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sft_jax.evals import parse
from sft_jax.evals.benchmark import Grade
from sft_jax.utils.errors import UserError

# So many times its processor time a program may sleep, and take by the clock: where others are at
# work, one that waits for a processor has done nothing wrong.
_PATIENCE, _LONGEST = 5, 60
_SPARE_S = 60.0  # for the launcher, beyond the program's time


class Program(NamedTuple):
  """A program and what decides on it.

  Attributes:
    source: What the model wrote, with what its benchmark puts before it.
    checks: Statements run afterwards that see the names of `source`; an exception fails it.
    names: Built-in names that `source` may define for the checks (MBPP asks for a `sum`).
  """

  source: str
  checks: str
  names: tuple[str, ...] = ()


class Limits(NamedTuple):
  """What one program may use. Memory is that of each process; `/tmp` comes on top."""

  memory_mib: int = 1024
  disk_mib: int = 32
  processes: int = 16
  open_files: int = 64
  output_kib: int = 16


class Verdict(NamedTuple):
  """How a program came out.

  Attributes:
    passed: Whether all checks ran and held.
    reason: 'passed', 'wrong' (a check does not hold), 'error' (an exception), 'timeout', 'killed'
      (by a signal, its own or a limit's), 'tampered', or 'silent' (it ended without a word). All
      but the first and 'timeout' are the program's own account.
    detail: The exception.
    output: The beginning of what it printed.
    seconds: How long it ran, by the clock.
  """

  passed: bool
  reason: str
  detail: str
  output: str
  seconds: float


def run_all(
  programs: Sequence[Program],
  timeout_s: float,
  workers: int = 0,
  *,
  limits: Limits = Limits(),  # noqa: B008  (a tuple: it cannot change)
  allow_weaker: bool = False,
) -> list[Verdict]:
  """Runs programs, several at a time, and gives their verdicts in order.

  Args:
    programs: What to run.
    timeout_s: Seconds of processor time each may take, rounded up; it may sleep five times as long,
      and take sixty times as long where the machine leaves it little.
    workers: How many at a time; 0 for one a core.
    limits: Of each.
    allow_weaker: As in `require`.

  Raises:
    UserError: as `require`; or the sandbox does not start after all.
  """
  require(allow_weaker)
  run = functools.partial(_run, timeout_s=timeout_s, limits=limits, strict=not allow_weaker)
  pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1)
  try:
    return list(pool.map(run, programs))
  finally:
    pool.shutdown(cancel_futures=True)


def require(allow_weaker: bool = False) -> None:
  """What `run_all` asks for, to be asked before any work is done for it.

  Raises:
    UserError: some protection is missing and that is not allowed, or nothing can be run.
  """
  missing = capabilities()
  if 'start' in missing or (missing and not allow_weaker):
    what = '; '.join(f'{name}: {why}' for name, why in missing.items())
    raise UserError(
      f'generated programs cannot be shut in on this machine ({what})',
      'config.eval.run_code',
      'allow namespaces (root with CAP_SYS_ADMIN, or user namespaces), leave these tasks out, or '
      'do without: --config.eval.run_code=weak',
    )


def grades(
  programs: Sequence[Program],
  codes: Sequence[str],
  run: Callable[[Sequence[Program], float], Sequence[Verdict]] | None,
  timeout_s: float,
) -> list[Grade | None]:
  """Grades of programs: right if passed.

  Args:
    programs: One an item.
    codes: What was extracted from the outputs.
    run: `run_all` or its like; None if nothing may be run, and then nothing is graded.
    timeout_s: As in `run_all`.
  """
  if run is None:
    return [None] * len(programs)
  made: list[Grade | None] = []
  for code, verdict in zip(codes, run(programs, timeout_s), strict=True):
    notes = {'reason': verdict.reason, 'detail': verdict.detail, 'printed': verdict.output[:500]}
    made.append(parse.graded_answer(code or None, verdict.passed, **notes))
  return made


@functools.cache
def capabilities() -> dict[str, str]:
  """What protection is missing here, and why: {} is all there is. Tried once, with a program.

  Keys: 'network', 'files' (a root and a disk of its own), 'processes' (none outlives or sees
  another), 'user', 'memory', 'number of processes'; 'start' if nothing can be run.
  """
  if os.name != 'posix':
    return {'start': f'{sys.platform} has none of it'}
  words, program = (b'ran', b'passed'), Program('x = 1', 'assert x == 1')
  said, output, report = _shut_in(program, words, 30, Limits(), strict=False)
  if said != b''.join(words):
    why = output or report.get('stderr') or 'the interpreter did not answer'
    return {**report.get('missing', {}), 'start': ' '.join(why.split())[-300:]}
  return report['missing']


def _run(program: Program, timeout_s: float, limits: Limits, strict: bool) -> Verdict:
  words = secrets.token_hex(16).encode(), secrets.token_hex(16).encode()
  said, output, report = _shut_in(program, words, timeout_s, limits, strict)
  if (strict and report.get('missing')) or report.get('started') is False:
    raise UserError(
      f'the sandbox did not start: {report.get("missing") or output}', 'config.eval.run_code'
    )
  seconds = report.get('seconds', timeout_s)
  if report.get('late'):
    return Verdict(False, 'timeout', '', output, seconds)
  # Without a report the launcher was killed.
  if report and said == b''.join(words):
    return Verdict(True, 'passed', '', output, seconds)
  kind, _, detail = said.removeprefix(words[0]).decode('utf-8', 'replace').partition(': ')
  if kind in ('wrong', 'error', 'tampered'):
    return Verdict(False, kind, detail, output, seconds)
  return Verdict(False, 'killed' if report.get('code', 1) else 'silent', '', output, seconds)


def _shut_in(
  program: Program, words: tuple[bytes, bytes], timeout_s: float, limits: Limits, strict: bool
) -> tuple[bytes, str, dict[str, Any]]:
  """One program: what it said over the link, what it printed, and the launcher's report.

  It is to say the first word when it has run, and the second when its checks have passed.
  """
  guard = f'plain_{secrets.token_hex(8)}'
  checks, modules = _guarded(program.checks, guard)
  ran, passed = (word.decode() for word in words)
  first = b''.join(map(_frame, (program.source, ' '.join(modules), ran)))
  second = b''.join(map(_frame, (checks, ' '.join(program.names), guard, passed)))
  here, python = importlib.resources.files('sft_jax.evals'), os.path.realpath(sys.executable)
  needed = (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(python))
  ours, theirs = socket.socketpair()
  with (
    ours,
    theirs,
    tempfile.TemporaryDirectory(prefix='sft_jax-run-', ignore_cleanup_errors=True) as workspace,
    tempfile.TemporaryFile() as job,
  ):
    settings = {
      'python': python,
      'prefixes': sorted({os.path.realpath(path) for path in needed}, key=len),
      'program': (here / 'sandbox_program.py').read_text('utf-8'),
      'workspace': os.path.realpath(workspace),
      'link': theirs.fileno(),
      'idle': timeout_s * _PATIENCE,
      'wall': timeout_s * _LONGEST,
      'cpu': math.ceil(timeout_s),
      'strict': strict,
      **limits._asdict(),
    }
    job.write(json.dumps(settings).encode())
    job.seek(0)
    process = subprocess.Popen(
      [python, '-I', '-S', '-B', str(here / 'sandbox_launcher.py')],
      stdin=job,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      cwd=workspace,
      env={},
      pass_fds=(theirs.fileno(),),
      start_new_session=True,
    )
    with process:
      theirs.close()
      try:
        end = time.monotonic() + timeout_s * _LONGEST + _SPARE_S
        said, output, report = _converse(
          process, ours, (first, words[0], second), end, limits.output_kib << 10
        )
      finally:
        # The launcher's death ends what it started; its process id is ours until it is waited for.
        with contextlib.suppress(OSError):
          os.killpg(process.pid, signal.SIGKILL)
  text = output.decode('utf-8', 'replace')
  try:
    return said, text, json.loads(report)
  except ValueError:
    return said, text, {'stderr': report.decode('utf-8', 'replace')} if report else {}


def _converse(
  process: subprocess.Popen,
  link: socket.socket,
  script: tuple[bytes, bytes, bytes],
  end: float,
  most: int,
) -> tuple[bytes, bytes, bytes]:
  """Tells the first part of the script and, when its second is heard, the third; until the
  launcher has ended.

  Whatever is said beyond a bound is read and dropped, so that nobody waits for a reader.
  """
  assert process.stdout and process.stderr
  selector = selectors.DefaultSelector()
  heard: dict[int, bytearray] = {}
  bounds = {link.fileno(): 4096, process.stdout.fileno(): most, process.stderr.fileno(): 65536}
  for stream in bounds:
    os.set_blocking(stream, False)
    heard[stream] = bytearray()
    selector.register(stream, selectors.EVENT_READ)
  to_say, told, errors = bytearray(script[0]), False, process.stderr.fileno()

  def hear(stream: int) -> bool:
    try:
      chunk = os.read(stream, 65536)
    except BlockingIOError:
      return False
    except ConnectionResetError:
      chunk = b''
    heard[stream] += chunk[: max(bounds[stream] - len(heard[stream]), 0)]
    if not chunk:
      selector.unregister(stream)
    return bool(chunk)

  with selector:
    # Only the launcher holds its standard error: the end of that is the end of all.
    while errors in selector.get_map() and time.monotonic() < end:
      if link.fileno() in selector.get_map():
        writing = selectors.EVENT_WRITE if to_say else 0
        selector.modify(link.fileno(), selectors.EVENT_READ | writing)
      for key, events in selector.select(max(end - time.monotonic(), 0)):
        if events & selectors.EVENT_WRITE:
          try:
            del to_say[: os.write(key.fd, to_say)]
          except OSError:
            to_say.clear()
        if events & selectors.EVENT_READ:
          hear(key.fd)
      if not told and heard[link.fileno()].startswith(script[1]):
        to_say += script[2]
        told = True
    # What was said last may still lie there.
    for stream in (link.fileno(), process.stdout.fileno()):
      while stream in selector.get_map() and len(heard[stream]) < bounds[stream] and hear(stream):
        pass
  said, output, report = (bytes(heard[stream]) for stream in bounds)
  return said, output, report


def _frame(text: str) -> bytes:
  data = text.encode('utf-8', 'surrogatepass')
  return len(data).to_bytes(8, 'big') + data


def _guarded(checks: str, guard: str) -> tuple[str, list[str]]:
  """Checks whose comparisons pass through a function named `guard`; the modules they import."""

  class Guard(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.AST:
      self.generic_visit(node)
      name = ast.Name(guard, ast.Load())
      parts: list[ast.expr] = [
        part if isinstance(part, ast.Constant) else ast.Call(name, [part], [])
        for part in (node.left, *node.comparators)
      ]
      return ast.Compare(parts[0], node.ops, parts[1:])

  try:
    tree = ast.parse(checks)
  except SyntaxError as error:
    raise UserError(f'the checks are not Python: {error}', checks[:80]) from None
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names.add((node.module or '').split('.')[0])
  text = ast.unparse(ast.fix_missing_locations(Guard().visit(tree)))
  return text, sorted(names & sys.stdlib_module_names)
