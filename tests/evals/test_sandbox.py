"""Programs that mean harm stay shut in, are never passed, and leave nothing; honest ones pass."""

import importlib.resources
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from sft_jax.evals import sandbox
from sft_jax.evals.sandbox import Limits, Program
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY

CHECKS = 'assert answer() == 42'
SMALL = Limits(memory_mib=256, disk_mib=8, processes=8, open_files=32, output_kib=4)


@pytest.fixture
def whole():
  """Skips where something is missing: what is refused there is not run here."""
  missing = sandbox.capabilities()
  if missing:
    pytest.skip(f'the sandbox lacks {missing}')


@pytest.fixture
def temporary(tmp_path, monkeypatch):
  """Where the sandbox makes its directories, and only it."""
  path = tmp_path / 'temporary'
  path.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(path))
  return path


def processes():
  """Processes that run our launcher or its program."""
  found = set()
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      line = path.read_bytes()
    except OSError:
      continue
    if b'sandbox_launcher' in line or b'What the sandboxed interpreter runs' in line:
      found.add(int(path.parent.name))
  return found


def gone(before, seconds=10):
  """Whether all new ones end; those of other sandboxes on this machine do so by themselves."""
  end, new = time.monotonic() + seconds, processes() - before
  while new and time.monotonic() < end:
    time.sleep(0.05)
    new &= processes()
  return not new


def run(source, checks=CHECKS, seconds=1.0, limits=SMALL, names=()):
  return sandbox.run_all([Program(source, checks, names)], seconds, 1, limits=limits)[0]


# name -> program. Each says what it got at as 'REACHED', and 'tried' when it has come to its end.
# CANARY is a file of ours, PORT and ABSTRACT are sockets that listen, PARENT is this process.
HARM = {
  'fork bomb': """
import os
for _ in range(200):
  try:
    if not os.fork():
      while True:
        os.fork()
  except OSError:
    break
else:
  print('REACHED')
print('tried', flush=True)
""",
  'threads without end': """
import threading, time
made = 0
try:
  for made in range(200):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
  print('REACHED')
except RuntimeError:
  pass
print('tried', flush=True)
""",
  'memory': """
kept = []
try:
  for _ in range(64):
    kept.append(bytearray(32 << 20))
  print('REACHED')
except MemoryError:
  kept = None
print('tried', flush=True)
""",
  'loop in C that ignores signals': """
import signal
for number in range(1, 32):
  try:
    signal.signal(number, signal.SIG_IGN)
  except OSError:
    pass
print('tried', flush=True)
sum(range(1 << 60))
""",
  'waits for ever': """
import time
print('tried', flush=True)
time.sleep(1000)
""",
  'fills the disk': """
written = 0
try:
  for number in range(100):
    with open(f'file{number}', 'wb') as file:
      for _ in range(16):
        written += file.write(bytes(1 << 18))
except OSError:
  pass
print('REACHED' if written > 9 << 20 else 'tried', written, flush=True)
""",
  'makes files without end': """
made = 0
try:
  for made in range(10**6):
    open(f'file{made}', 'w').close()
  print('REACHED')
except OSError:
  pass
print('tried', made, flush=True)
""",
  'reads': """
import glob, os
for path in ['CANARY', '/etc/passwd', '/etc/shadow', '/proc/self/environ', '/proc/1/environ',
             *glob.glob('/root' '/*'), *glob.glob('/home' '/*/*'), *glob.glob('/proc/PARENT/*')]:
  if os.path.isfile(path):
    print('REACHED', path, open(path, 'rb').read(20))
print('REACHED' if 'canary' in f'{os.environ}' else 'tried', flush=True)
""",
  'writes outside': """
import os, shutil, sys
for path in ['CANARY', '/new', '/etc/new', '/dev/new', '/dev/shm/new', '/usr/lib/new', os.__file__,
             sys.executable, '/var/tmp/new', '../new']:
  try:
    open(path, 'a').write('harm')
    print('REACHED', path)
  except OSError:
    pass
print('tried', flush=True)
""",
  'deletes': """
import os, shutil
for path in ['CANARY', os.__file__]:
  try:
    os.unlink(path)
    print('REACHED', path)
  except OSError:
    pass
import json
for path in ('/etc', '/dev', '/tmp', os.path.dirname(json.__file__)):
  shutil.rmtree(path, ignore_errors=True)
print('tried' if os.path.exists(json.__file__) else 'REACHED', flush=True)
""",
  'links out': """
import os
for number, target in enumerate(['CANARY', '/etc/shadow', '/../' * 9 + 'CANARY', '/proc/1/root']):
  for make in (os.symlink, os.link):
    try:
      make(target, f'/tmp/link{number}')
      print('REACHED', open(f'/tmp/link{number}', 'rb').read(20))
    except OSError:
      pass
  try:
    os.unlink(f'/tmp/link{number}')
  except OSError:
    pass
print('tried', flush=True)
""",
  'leaves its root': """
import os
try:
  os.mkdir('x')
  os.chroot('x')
  for _ in range(20):
    os.chdir('..')
  os.chroot('.')
except OSError:
  pass
print('REACHED' if os.path.exists('CANARY') else 'tried', flush=True)
""",
  'mounts, namespaces, users': """
import ctypes, os
libc = ctypes.CDLL(None)
for name, arguments in [('unshare', (0x10000000,)), ('unshare', (0x20000,)), ('setuid', (0,)),
                        ('mount', (None, b'/tmp', b'tmpfs', 0, None)), ('umount2', (b'/tmp', 2)),
                        ('mount', (b'proc', b'/tmp', b'proc', 0, None)), ('setgroups', (0, None)),
                        ('mount', (None, b'/', None, 32 | 4096, None)), ('sethostname', (b'x', 1))]:
  # Groups: none are left to drop, and none can be had.
  if getattr(libc, name)(*arguments) == 0 and name != 'setgroups':
    print('REACHED', name)
for make in (lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)), lambda: os.setresuid(0, 0, 0)):
  try:
    make()
    print('REACHED')
  except OSError:
    pass
print('tried', flush=True)
""",
  'network': """
import socket
for family, address in [(socket.AF_INET, ('127.0.0.1', PORT)), (socket.AF_INET, ('192.0.2.1', 80)),
                        (socket.AF_UNIX, chr(0) + 'ABSTRACT')]:
  try:
    with socket.socket(family) as one:
      one.settimeout(0.2)
      one.connect(address)
      print('REACHED', address)
  except OSError:
    pass
print('tried', flush=True)
""",
  'kills': """
import os, signal
for kill, whom in [(os.kill, PARENT), (os.kill, os.getppid()), (os.kill, 1), (os.killpg, PARENT)]:
  try:
    kill(whom, signal.SIGKILL)
  except OSError:
    pass
print('tried', flush=True)
os.kill(-1, signal.SIGKILL)
""",
  'debugs its parents': """
import ctypes, os
libc = ctypes.CDLL(None)
space = ctypes.create_string_buffer(64)
for pid in (PARENT, os.getppid(), 1):
  if libc.ptrace(16, pid, None, None) == 0:
    print('REACHED', pid)
  pair = (ctypes.c_void_p * 2)(ctypes.addressof(space), 64)
  far = (ctypes.c_void_p * 2)(0x400000, 64)
  if libc.process_vm_readv(pid, pair, ctypes.c_ulong(1), far, ctypes.c_ulong(1), 0) > 0:
    print('REACHED', pid)
print('tried', flush=True)
""",
  'imports ours': """
import sys
for name in ('sft_jax', 'jax', 'numpy', 'tests'):
  try:
    __import__(name)
    print('REACHED', name)
  except ImportError:
    pass
print('tried' if set(vars(sys.modules['__main__'])) < set(vars(sys)) else 'REACHED', flush=True)
""",
  'descriptors': """
import os
for number in range(4, 1024):
  try:
    os.fstat(number)
    print('REACHED', number)
  except OSError:
    pass
print('tried', flush=True)
os.closerange(0, 1024)
""",
  'commands': """
import os, subprocess
for command in (['/bin/sh', '-c', 'id'], ['/usr/bin/id'], ['su'], ['CANARY']):
  try:
    print('REACHED', subprocess.run(command, capture_output=True).stdout)
  except OSError:
    pass
print('tried', flush=True)
""",
  'prints without end': """
print('tried', flush=True)
while True:
  print('x' * 100000)
""",
  'stops itself': """
import os, signal
print('tried', flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
""",
  'breaks the interpreter': """
import ctypes
print('tried', flush=True)
ctypes.string_at(0)
""",
  'recursion in C': """
print('tried', flush=True)
import sys
sys.setrecursionlimit(1 << 30)
f = lambda: f()
f()
""",
}
if os.path.realpath(sys.base_prefix) == '/usr':
  del HARM['commands']  # the interpreter comes with a shell there

# The programs that go on using up time.
LASTING = ('waits for ever', 'stops itself')


@pytest.mark.parametrize('name', HARM)
def test_harm_is_contained(name, whole, temporary, tmp_path, monkeypatch):
  canary = tmp_path / 'canary'
  canary.write_text('canary')
  canary.chmod(0o600)
  monkeypatch.setenv('CANARY_OF_OURS', 'canary')
  abstract, before = f'sft-{secrets.token_hex(8)}', processes()
  with socket.socket() as net, socket.socket(socket.AF_UNIX) as unix:
    net.bind(('127.0.0.1', 0))
    unix.bind(f'\0{abstract}')
    net.listen()
    unix.listen()
    source = HARM[name]
    for word, value in (
      ('CANARY', canary),
      ('PORT', net.getsockname()[1]),
      ('ABSTRACT', abstract),
      ('PARENT', os.getpid()),
    ):
      source = source.replace(word, str(value))
    seconds = 0.2 if name in LASTING else 1.0
    start = time.monotonic()
    verdict = run(source, seconds=seconds)
    # Five times as long asleep, and what starting takes on a busy machine.
    assert time.monotonic() - start < 60
  assert not verdict.passed
  assert 'tried' in verdict.output and 'REACHED' not in verdict.output, verdict
  assert len(verdict.output) <= SMALL.output_kib << 10
  assert verdict.seconds <= 5 * seconds + 5
  assert canary.read_text() == 'canary'
  assert list(temporary.iterdir()) == []
  assert gone(before)
  assert run('answer = lambda: 42').passed, 'the next program is hindered'


def test_nothing_is_missing_where_there_are_namespaces():
  command = ['unshare', '-m', '-n', '-p', '-f', 'true']
  if not shutil.which('unshare') or subprocess.run(command, capture_output=True).returncode:
    pytest.skip('no namespaces here')
  assert sandbox.capabilities() == {}


def test_limits_are_those_asked_for(whole):
  source = """
import os, resource, stat
for name in ('CPU', 'AS', 'FSIZE', 'NPROC', 'NOFILE', 'CORE'):
  print(name, *resource.getrlimit(getattr(resource, f'RLIMIT_{name}')))
for path in ('/', os.__file__, '/tmp'):
  flags = os.statvfs(path).f_flag
  print(bool(flags & os.ST_RDONLY), bool(flags & os.ST_NOSUID))
print(os.getgroups(), os.getpid(), os.getcwd(), os.listdir('/tmp'))
raise ValueError
"""
  mib = 1 << 20
  assert run(source, seconds=1.2).output.splitlines() == [
    'CPU 2 2',
    f'AS {256 * mib} {256 * mib}',
    f'FSIZE {8 * mib} {8 * mib}',
    'NPROC 8 8',
    'NOFILE 32 32',
    'CORE 0 0',
    *('True True', 'True True', 'False True'),
    '[] 2 /tmp []',
  ]


def test_a_daemon_ends_with_its_program(whole, temporary):
  """It has left session and group, its parents are dead, and it ignores what it can."""
  name = f'sft{secrets.token_hex(5)}'
  source = f"""
import ctypes, os, signal, time
reading, writing = os.pipe()
if not os.fork():
  os.setsid()
  if os.fork():
    os._exit(0)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)
  os.write(writing, b'x')
  time.sleep(1000)
os.read(reading, 1)
answer = lambda: 42
"""
  assert run(source).passed  # it did what was asked for, too
  names = [path.read_text().strip() for path in pathlib.Path('/proc').glob('[0-9]*/comm')]
  assert name not in names


ALWAYS = """
class Always:
  def __eq__(self, other): return True
  __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__
  __hash__ = object.__hash__
  def __sub__(self, other): return self
  __rsub__ = __sub__
  def __abs__(self): return self
"""
# name -> (program, checks). None of them knows the answer.
FAKES = {
  'says so': ("print('passed')\nimport os\nos._exit(0)", CHECKS),
  'ends at once': ('import sys\nsys.exit(0)', CHECKS),
  'ends when called': ('import os\ndef answer(): os._exit(0)', CHECKS),
  'ends in a thread': (
    'import os, threading\ndef answer():\n  t = threading.Thread(target=os._exit, args=(0,))\n'
    '  t.start()\n  t.join()',
    CHECKS,
  ),
  'writes to all descriptors': (
    "import os\nfor n in range(64):\n  try: os.write(n, b'ranpassed')\n  except OSError: pass\n"
    'os._exit(0)',
    CHECKS,
  ),
  'writes results': (
    "import os\nfor n in ('result', 'out.json'): open(n, 'w').write('passed')\nos._exit(0)",
    CHECKS,
  ),
  'replaces AssertionError': (
    'import builtins\nclass Quiet(Exception): pass\nbuiltins.AssertionError = Quiet\n'
    'def answer(): return 0',
    'try:\n  assert answer() == 42\nexcept ValueError: pass',
  ),
  'replaces exec and compile': (
    'import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None',
    CHECKS,
  ),
  'replaces exec and its exception': (
    'import builtins\nbuiltins.exec = lambda *a, **k: None\nbuiltins.BaseException = ValueError',
    CHECKS,
  ),
  'equals anything': (f'{ALWAYS}\nanswer = Always', CHECKS),
  'equals anything, inside': (
    f'{ALWAYS}\nanswer = lambda: [{{1: (Always(),)}}]',
    """
assert answer() == [{1: (42,)}]""",
  ),
  'is below anything': (f'{ALWAYS}\nanswer = Always', 'assert abs(answer() - 42) < 1e-6'),
  'contains anything': (f'{ALWAYS}\nanswer = Always', 'assert 42 in answer()'),
  'equals anything, by class': (
    'class Kind(type):\n  def __eq__(self, other): return True\n'
    'class One(metaclass=Kind): pass\nanswer = lambda: One',
    CHECKS,
  ),
  'equals by a method of Python': (
    'class One(list):\n  __eq__ = list.__ne__\nanswer = lambda: One([1])',
    'assert answer() == [42]',
  ),
  'lies about its class': (
    f'{ALWAYS}\nclass Int(Always):\n  __class__ = int\nanswer = Int',
    'assert isinstance(answer(), int) and answer() == 42',
  ),
  'shadows a built-in': (
    'abs = lambda x: 0\ndef answer(): return 0',
    'assert abs(answer() - 42) < 1e-6',
  ),
  'changes a module': (
    'import math\nmath.isclose = lambda *a: True\nanswer = lambda: 0',
    'import math\nassert math.isclose(answer(), 42)',
  ),
  'changes a module when called': (
    'def answer():\n  import math\n  math.fabs = lambda x: 0\n  return 0',
    'import math\nassert math.fabs(answer() - 42) < 1',
  ),
  'replaces a module': (
    "import sys, types\nsys.modules['math'] = types.SimpleNamespace(fabs=lambda x: 0)\n"
    'answer = lambda: 0',
    'import math\nassert math.fabs(answer() - 42) < 1',
  ),
  'jumps over the check': (
    'import sys\n'
    'def trace(frame, event, argument):\n'
    "  if event == 'line' and frame.f_code.co_filename == '<checks>' and frame.f_lineno == 1:\n"
    '    frame.f_lineno = 2\n'
    '  return trace\n'
    'sys.settrace(trace)\nanswer = lambda: 0',
    'assert answer() == 42\ndone = True',
  ),
  'quotes the checks away': ("answer = lambda: 0\ntext = '''", CHECKS),
  'skips the checks': ('answer = lambda: 0\nif False:', CHECKS),
  'is no program': ('def answer(:', CHECKS),
  'writes a signal handler': (
    'import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nraise KeyboardInterrupt',
    CHECKS,
  ),
}


@pytest.mark.parametrize('name', FAKES)
def test_fakes_do_not_pass(name, whole):
  source, checks = FAKES[name]
  verdict = run(source, checks)
  assert not verdict.passed, verdict
  assert verdict.reason in ('wrong', 'error', 'tampered', 'silent'), verdict


HONEST = {
  'plain': ('def answer(): return 42', CHECKS),
  'prints': ("print('x' * 100000)\nanswer = lambda: 42", CHECKS),
  'collections': (
    'import collections, decimal, fractions, enum, datetime\n'
    "Pair = collections.namedtuple('Pair', 'a b')\n"
    'class Colour(enum.Enum):\n  RED = 1\n'
    'def answer(): return [collections.Counter("aab"), collections.OrderedDict(a=1),\n'
    '  collections.deque([1]), collections.defaultdict(int, a=1), decimal.Decimal("1.5"),\n'
    '  fractions.Fraction(1, 2), Pair(1, 2), datetime.date(2020, 1, 1), Colour.RED.value]\n',
    'import collections, datetime\n'
    'assert answer() == [{"a": 2, "b": 1}, {"a": 1}, collections.deque([1]), {"a": 1}, 1.5, 0.5,\n'
    '  (1, 2), datetime.date(2020, 1, 1), 1]',
  ),
  'own classes inside': (
    'import dataclasses\n@dataclasses.dataclass(order=True)\nclass Point:\n  x: int\n'
    'class Node:\n  def __init__(self, value): self.value = value\n'
    'def answer(): return max(Point(1), Point(42)).x if Node(1) != Node(1) else 0',
    CHECKS,
  ),
  'helpers in the checks': (
    'def helper(x): return x // 2\ndef answer(x): return 2 * x',
    'def check(candidate):\n  assert helper(candidate(21)) == 21\ncheck(answer)',
  ),
  'temporary files': (
    "import tempfile\ndef answer():\n  with tempfile.NamedTemporaryFile('w+') as f:\n"
    "    f.write('42')\n    f.seek(0)\n    return int(f.read())",
    CHECKS,
  ),
  'threads': (
    'import concurrent.futures as c\ndef answer():\n'
    '  with c.ThreadPoolExecutor(2) as p: return sum(p.map(int, ["20", "22"]))',
    CHECKS,
  ),
  'line ends and letters': ('def answer():\r\n  é = "→\\ud800"\r\n  return 42\r\n', CHECKS),
  'reads its input': (
    'import sys\nrest = sys.stdin.read()\nanswer = lambda: 42 + len(rest)',
    CHECKS,
  ),
  'no main': ("if __name__ == '__main__':\n  raise ValueError\nanswer = lambda: 42", CHECKS),
  'random': (
    'import random\nrandom.seed(1)\ndef answer(): return 42 + 0 * random.random()',
    'import random\nrng = random.Random(42)\nassert answer() == 42 and rng.random() < 1',
  ),
  'caught in the checks': (
    'def answer(): raise ValueError',
    'try:\n  answer()\n  assert False\nexcept ValueError:\n  pass',
  ),
}


@pytest.mark.parametrize('name', HONEST)
def test_honest_programs_pass(name, whole):
  verdict = run(*HONEST[name])
  assert verdict == (True, 'passed', '', verdict.output, verdict.seconds), verdict


def test_a_built_in_name_that_is_asked_for(whole):
  source, checks = 'def sum(a, b): return a + b', 'assert sum(1, 2) == 3'
  assert run(source, checks, names=('sum',)).passed
  assert run(source, checks).reason == 'error'


def test_verdicts_say_why_and_keep_their_order(whole):
  programs = [
    Program('def answer(): return 41', CHECKS),
    Program('def answer(): return 42', CHECKS),
    Program("print('so far')\nanswer = 1 / 0", CHECKS),
    Program('import os\nos.kill(os.getpid(), 9)', CHECKS),
    Program('while True: pass', CHECKS),
    Program('', CHECKS),
  ]
  verdicts = sandbox.run_all(programs, 1.0, 3, limits=SMALL)
  assert [v.reason for v in verdicts] == ['wrong', 'passed', 'error', 'killed', 'timeout', 'error']
  assert verdicts[2].detail == 'ZeroDivisionError: division by zero'
  assert verdicts[2].output == 'so far\n'
  assert verdicts[5].detail == "NameError: name 'answer' is not defined"
  assert sandbox.run_all([], 1.0) == []


@pytest.mark.parametrize('threads', [False, True])
def test_a_program_that_waits_for_a_processor_has_time(threads, whole, monkeypatch):
  """It may not sleep at all, and take what it needs by the clock, as on a machine that is busy."""
  monkeypatch.setattr(sandbox, '_PATIENCE', 0.6)
  work = 'while time.process_time() < 1.2: pass'
  source = f'import time\n{work}\nanswer = lambda: 42'
  if threads:
    # Its first thread sleeps.
    source = f"""
import threading, time
def work():
  {work}
one = threading.Thread(target=work)
one.start()
one.join()
answer = lambda: 42
"""
  assert run(source, seconds=2.0).passed
  verdict = run('import time\ntime.sleep(1000)', seconds=2.0)
  assert verdict.reason == 'timeout' and verdict.seconds < 60


def test_a_program_that_never_sleeps_for_long_ends(whole, monkeypatch):
  monkeypatch.setattr(sandbox, '_LONGEST', 1)
  verdict = run('import time\nwhile True: time.sleep(0.001)', seconds=2.0)
  assert verdict.reason == 'timeout' and verdict.seconds < 60


def test_sets_have_one_order(whole):
  source = 'def answer(): return "".join({"a", "b", "c", "d", "e", "f"})'
  orders = {run(f'{source}\nraise ValueError(answer())').detail for _ in range(3)}
  assert len(orders) == 1


def test_broken_checks_are_the_data_s_fault(whole):
  with pytest.raises(UserError, match='the checks are not Python'):
    run('', 'assert (')


def test_what_is_missing_is_refused(monkeypatch):
  programs = [Program('answer = lambda: 42', CHECKS)]
  monkeypatch.setattr(sandbox, 'capabilities', lambda: {'network': 'Operation not permitted'})
  with pytest.raises(UserError, match=r'network: Operation not permitted.*allow namespaces'):
    sandbox.run_all(programs, 1.0)
  monkeypatch.setattr(sandbox, 'capabilities', lambda: {'start': 'no interpreter'})
  with pytest.raises(UserError, match='no interpreter'):
    sandbox.require(allow_weaker=True)


@pytest.fixture
def without_namespaces(tmp_path, monkeypatch):
  """The launcher as on a platform that has none. It keeps its user: others may not be able to read
  the interpreter."""
  here = importlib.resources.files('sft_jax.evals')
  launcher = (here / 'sandbox_launcher.py').read_text()
  for old, new in (("call('unshare'", "call('no_such'"), ('spare_uid()\n', 'None\n')):
    assert old in launcher
    launcher = launcher.replace(old, new)
  (tmp_path / 'sandbox_launcher.py').write_text(launcher)
  (tmp_path / 'sandbox_program.py').write_text((here / 'sandbox_program.py').read_text())
  monkeypatch.setattr(importlib.resources, 'files', lambda name: tmp_path)
  sandbox.capabilities.cache_clear()
  yield
  sandbox.capabilities.cache_clear()


def test_without_namespaces(without_namespaces, temporary):
  """What is missing is named; time, memory and files are limited all the same, and no daemon is
  left where its launcher adopts it."""
  missing = sandbox.capabilities()
  assert {'network', 'files', 'processes'} < set(missing) and 'start' not in missing
  programs = [
    Program('answer = lambda: 42', CHECKS),
    Program('while True: pass', CHECKS),
    Program('x = bytearray(1 << 31)', CHECKS),
    Program(
      'import os, time\n'
      'if not os.fork():\n  os.setsid()\n  if os.fork(): os._exit(0)\n  time.sleep(1000)\n'
      "open('file', 'w').write('x')\nos.wait()",
      CHECKS,
    ),
  ]
  with pytest.raises(UserError, match='cannot be shut in'):
    sandbox.run_all(programs, 1.0)
  before = processes()
  verdicts = sandbox.run_all(programs, 1.0, 2, limits=SMALL, allow_weaker=True)
  assert [v.reason for v in verdicts] == ['passed', 'timeout', 'error', 'error']
  assert verdicts[2].detail.startswith('MemoryError')
  assert sys.platform != 'linux' or gone(before, 2)
  assert list(temporary.iterdir()) == []


ORDINARY = """
import os, sys
sys.path[:0] = {paths!r}
from sft_jax.evals import sandbox
from sft_jax.evals.sandbox import Program
assert os.getuid() == 61000, os.getuid()
print(sandbox.capabilities())
reach = '''
import os, ctypes
for path in ('/proc', '/etc/passwd', {paths!r}[0]):
  assert not os.path.exists(path), path
assert ctypes.CDLL(None).unshare(0x10000000) == -1
assert ctypes.CDLL(None).mount(None, b'/tmp', b'tmpfs', 0, None) == -1
for number in range(100):
  try:
    if not os.fork():
      import time
      time.sleep(100)
  except OSError:
    break
else:
  raise ValueError('forks')
answer = lambda: 42
'''
for verdict in sandbox.run_all([Program(reach, 'assert answer() == 42')], 2):
  print(verdict.passed, verdict.detail)
"""


@pytest.mark.skipif(
  sys.platform != 'linux' or os.getuid() != 0 or not shutil.which('setpriv'),
  reason='starts as root and becomes an ordinary user with util-linux',
)
def test_as_an_ordinary_user(whole):
  with tempfile.TemporaryDirectory(dir='/tmp') as directory:
    os.chmod(directory, 0o755)
    prefix, python = os.path.realpath(sys.base_prefix), os.path.realpath(sys.executable)
    shown = f'{directory}/python'
    os.mkdir(shown)
    paths = [str(REPOSITORY), *(path for path in sys.path if path.endswith('site-packages'))]
    script = (
      'mount --bind "$1" "$2" && shift 2 && '
      'exec setpriv --reuid 61000 --regid 61000 --clear-groups "$@"'
    )
    inner = [python.replace(prefix, shown, 1), '-c', ORDINARY.format(paths=paths)]
    done = subprocess.run(
      ['unshare', '-m', 'sh', '-c', script, 'sh', prefix, shown, *inner],
      cwd='/tmp',
      env={},
      capture_output=True,
      text=True,
      check=False,
    )
  if 'Permission denied' in done.stderr or 'No module named' in done.stderr:
    pytest.skip(f'others cannot read the packages: {done.stderr.splitlines()[-1]}')
  if "{'" in done.stdout:
    pytest.skip(f'ordinary users lack {done.stdout}')
  assert done.stdout == '{}\nTrue \n', done.stdout + done.stderr
