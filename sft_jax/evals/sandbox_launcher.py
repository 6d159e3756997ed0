"""Shuts one program in and waits for it. Run as a script of its own, single-threaded, standard
library only; never imported. What it guarantees stands in `sandbox.py`.

A job is read from standard input, a report written to standard error (JSON). Processes: this one
(outside, the clock), a first process of the inner world, and the program's interpreter. When the
first process ends, the kernel ends everything inside.
"""

import contextlib
import ctypes
import json
import os
import pwd
import resource
import signal
import sys
import time

LINK = 3  # where the program finds its link
INNER_UID = 1000
# Unused by convention: systemd's dynamic users.
SPARE_UIDS = range(61184, 65520)
NO_START = 71
LOOK_S = 0.5  # between looks at what the program does

# <linux/sched.h>, <sys/mount.h>, <linux/mount.h>, <sys/prctl.h>
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_SETATTR, AT_RECURSIVE, ATTR_RDONLY, ATTR_NOSUID = 442, 0x8000, 1, 2
PIVOT_ROOT = {'x86_64': 155, 'aarch64': 41, 'riscv64': 41, 'ppc64le': 203, 's390x': 217}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38

# Shared libraries an interpreter needs.
LIBRARIES = (
  *('/lib', '/lib32', '/lib64', '/usr/lib', '/usr/lib32', '/usr/lib64', '/etc/ld.so.cache'),
  *('/nix/store', '/gnu/store'),
)
DEVICES = ('/dev/null', '/dev/zero', '/dev/random', '/dev/urandom')


def call(name, *arguments):
  """A function of the C library. Raises OSError where it fails or is missing."""
  try:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
  except AttributeError:
    raise OSError(0, f'{name} is not on this platform') from None
  values = [
    os.fsencode(value)
    if isinstance(value, str)
    else ctypes.c_long(value)
    if isinstance(value, int)
    # A pointer, or none.
    else value
    for value in arguments
  ]
  if function(*values) == -1:
    number = ctypes.get_errno()
    raise OSError(number, f'{name}: {os.strerror(number)}')


def main():
  """Reads a job, runs it, reports."""
  job = json.loads(sys.stdin.buffer.read())
  missing, uid = {}, None
  # Of the outside, where the program's processes can be seen; they themselves never hold it.
  proc = os.open('/proc', os.O_RDONLY) if os.path.isdir('/proc/self') else None
  os.umask(0o022)
  with contextlib.suppress(OSError):  # what it is for is done by the sweep, too
    call('prctl', PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call('prctl', PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
  with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w') as file:
    file.write('1000')  # where memory runs out, this goes first
  owner = enter_namespaces(missing)
  if owner != 'user' and os.geteuid() == 0:
    uid = spare_uid()
  elif owner != 'user' or os.geteuid() == 0:
    missing['user'] = 'the program runs as the user that starts it'
  if owner:
    try:
      enter_root(job)
    except OSError as error:
      missing['files'] = error.strerror
      with contextlib.suppress(OSError):
        call('umount2', job['workspace'], MNT_DETACH)
      os.chdir(job['workspace'])
  if 'files' in missing and uid is not None:
    os.chown(job['workspace'], uid, uid)
  if uid is None and owner != 'user':
    missing['number of processes'] = 'the limit would count all processes of the user'
  if sys.platform == 'darwin':
    missing['memory'] = 'macOS has no such limit'
  report = {'missing': missing}
  if not (job['strict'] and missing):
    report.update(run(job, uid, missing, proc))
  sys.stderr.write(json.dumps(report))
  sys.stderr.flush()
  os._exit(0)


def enter_namespaces(missing):
  """Own processes, network, mounts and IPC: 'root', in a user namespace ('user'), or ''."""
  flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
  uid, gid = os.geteuid(), os.getegid()
  try:
    if uid == 0:
      with contextlib.suppress(OSError):  # a root without that right may have the other
        call('unshare', flags)
        return 'root'
    call('unshare', flags | CLONE_NEWUSER)
    for name, text in (
      ('setgroups', 'deny'),
      ('uid_map', f'{INNER_UID} {uid} 1'),
      ('gid_map', f'{INNER_UID} {gid} 1'),
    ):
      with open(f'/proc/self/{name}', 'w') as file:
        file.write(text)
    return 'user'
  except OSError as error:
    for name in ('network', 'files', 'processes'):
      missing[name] = f'{error.strerror}'
    return ''


def enter_root(job):
  """A root that has the interpreter, its libraries and an empty /tmp in memory; nothing else.

  Raises:
    OSError: one of its parts cannot be had.
  """
  if any(os.path.dirname(path) == path for path in job['prefixes']):
    raise OSError(0, 'the interpreter is installed in /')
  call('mount', None, '/', None, MS_REC | MS_PRIVATE, None)
  base, shown = job['workspace'], []
  call('mount', 'tmpfs', base, 'tmpfs', MS_NOSUID | MS_NODEV, 'mode=755,size=1m')
  root = f'{base}/jail'
  os.makedirs(f'{root}/tmp')
  # First: the interpreter may lie below /tmp.
  size = f'mode=1777,size={job["disk_mib"]}m,nr_inodes=4096'
  call('mount', 'tmpfs', f'{root}/tmp', 'tmpfs', MS_NOSUID | MS_NODEV, size)
  for path in (*job['prefixes'], *LIBRARIES, *DEVICES):
    below = any(path == other or path.startswith(f'{other}/') for other in shown)
    if below or not os.path.exists(path):
      continue
    os.makedirs(os.path.dirname(root + path), mode=0o755, exist_ok=True)
    if os.path.islink(path):
      os.symlink(os.readlink(path), root + path)
      continue
    if os.path.isdir(path):
      os.makedirs(root + path, mode=0o755, exist_ok=True)
    else:
      os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY, 0o644))
    call('mount', path, root + path, None, MS_BIND | MS_REC, None)
    shown.append(path)
  set_attributes(base, ATTR_RDONLY | ATTR_NOSUID, 0, AT_RECURSIVE)
  set_attributes(f'{root}/tmp', 0, ATTR_RDONLY, 0)
  os.chdir(base)
  call('syscall', PIVOT_ROOT.get(os.uname().machine, -1), '.', '.')
  call('umount2', '.', MNT_DETACH)
  os.chdir('/')
  # Below the top of the mounts: there the kernel refuses further user namespaces.
  os.chroot('/jail')
  os.chdir('/tmp')


def set_attributes(path, added, removed, flags):
  """Attributes of a mount (mount_setattr, Linux 5.12)."""
  attributes = (ctypes.c_uint64 * 4)(added, removed, 0, 0)
  call('syscall', MOUNT_SETATTR, -1, path, flags, attributes, ctypes.sizeof(attributes))


def spare_uid():
  """A user id nobody has; by chance, so that programs side by side have different ones."""
  while True:
    uid = SPARE_UIDS[int.from_bytes(os.urandom(4), 'big') % len(SPARE_UIDS)]
    try:
      pwd.getpwuid(uid)
    except KeyError:
      return uid


def run(job, uid, missing, proc):
  """Runs the program to its end or until its time is up; then nothing of it is left."""
  start, late, idle = time.monotonic(), [], 0.0
  looked, family = start, set()
  first = os.fork()
  if not first:
    try:
      first_process(job, uid, 'number of processes' not in missing)
    except BaseException as error:
      os.write(1, f'{error}'.encode())
    finally:
      os._exit(NO_START)

  def look(*_):
    nonlocal idle, looked, family
    now = time.monotonic()
    # Those known first: there may be thousands of others to look through.
    if not is_busy(proc, family) and not is_busy(proc, family := below(proc, first)):
      # Where this process was kept waiting, so may the program have been.
      idle += min(now - looked, 2 * LOOK_S)
    looked = now
    if idle >= job['idle'] or now - start >= job['wall']:
      late.append(True)
      with contextlib.suppress(OSError):
        os.kill(first, signal.SIGKILL)

  signal.signal(signal.SIGALRM, look)
  signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
  _, status, usage = os.wait4(first, 0)
  signal.setitimer(signal.ITIMER_REAL, 0)
  code = os.waitstatus_to_exitcode(status)
  seconds, used = time.monotonic() - start, usage.ru_utime + usage.ru_stime
  # The kernel kills what used up its processor time, of which it keeps a coarse account.
  spent = code == 128 + signal.SIGKILL and used > job['cpu'] / 2
  if 'processes' in missing:
    sweep(first, uid, proc)
  ran = {'late': bool(late) or spent, 'started': code != NO_START, 'code': code}
  return {**ran, 'seconds': seconds}


def first_process(job, uid, count):
  """Starts the program, reaps whatever is orphaned, and ends with the program."""
  with contextlib.suppress(OSError):
    call('prctl', PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call('prctl', PR_SET_DUMPABLE, 0, 0, 0, 0)
  os.setsid()
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(1, 2)
  os.dup2(job['link'], LINK)  # inheritable
  os.closerange(LINK + 1, 1024)
  reading, writing = os.pipe()  # closed by a successful exec
  program = os.fork()
  if not program:
    try:
      become(job, uid, count, writing)
    except BaseException as error:
      os.write(1, f'{error}'.encode())
      os.write(writing, b'!')
    finally:
      os._exit(NO_START)
  os.close(writing)
  os.close(LINK)
  unstarted = os.read(reading, 1)
  while True:
    pid, status = os.wait()
    if pid == program:
      code = os.waitstatus_to_exitcode(status)
      os._exit(NO_START if unstarted else (128 - code if code < 0 else 0))


def become(job, uid, count, writing):
  """Limits, another user, and the program's interpreter in place of this one."""
  limits = {
    'CPU': job['cpu'],
    'AS': job['memory_mib'] << 20,
    'FSIZE': job['disk_mib'] << 20,
    'NOFILE': job['open_files'],
    'CORE': 0,
  }
  if count:
    limits['NPROC'] = job['processes']
  if sys.platform == 'darwin':
    del limits['AS']
  for name, value in limits.items():
    which = getattr(resource, f'RLIMIT_{name}')
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))
  if uid is not None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
  if sys.platform == 'linux':
    call('prctl', PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  os.closerange(LINK + 1, writing)
  os.closerange(writing + 1, 1024)
  # Hashes are fixed: a verdict must not hang on the order of a set.
  command = [job['python'], '-P', '-s', '-S', '-B', '-X', 'utf8', '-c', job['program']]
  os.execve(job['python'], command, {'PYTHONHASHSEED': '0'})


def sweep(first, uid, proc):
  """Kills what is left where the kernel has not: without a process namespace."""
  with contextlib.suppress(OSError):
    os.killpg(first, signal.SIGKILL)
  end = time.monotonic() + 5
  while time.monotonic() < end:
    if uid is not None and os.path.isdir('/proc/self'):
      killer = os.fork()
      if not killer:
        os.setuid(uid)
        with contextlib.suppress(OSError):
          os.kill(-1, signal.SIGKILL)
        os._exit(0)
    # It inherits those whose parents are gone.
    for pid in (pid for pid, parent in parents(proc).items() if parent == os.getpid()):
      with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:
      return
    time.sleep(0.002)


def is_busy(proc, family):
  """Whether a thread of these processes is at work, or would be if it had a processor; false where
  that cannot be seen."""
  for pid in family:
    threads = []
    with contextlib.suppress(OSError):
      directory = os.open(f'{pid}/task', os.O_RDONLY, dir_fd=proc)
      threads = os.listdir(directory)
      os.close(directory)
    # Running or ready to; or waiting for a disk.
    if any(state(proc, f'{pid}/task/{thread}')[0] in b'RD' for thread in threads):
      return True
  return False


def below(proc, first):
  """`first`, its children, and theirs."""
  family, more, known = set(), {first}, parents(proc)
  while more:
    family |= more
    more = {pid for pid, parent in known.items() if parent in family} - family
  return family


def parents(proc):
  """{process: its parent} of all that can be seen."""
  names = os.listdir(proc) if proc is not None else ()
  return {int(name): state(proc, name)[1] for name in names if name.isdigit()}


def state(proc, name):
  """State and parent of a process or thread; '-' and 0 where it is gone."""
  try:
    with open(os.open(f'{name}/stat', os.O_RDONLY, dir_fd=proc), 'rb') as file:
      one, parent = file.read().rpartition(b')')[2].split()[:2]
    return one, int(parent)
  except (OSError, ValueError):
    return b'-', 0


if __name__ == '__main__':
  main()
