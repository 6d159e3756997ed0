"""The exceptions that end a run on purpose. Anything else that escapes is a defect of ours."""


class UserError(Exception):
  """Bad input or environment. `main` prints one line and exits with status 2.

  Args:
    what: What is wrong, in words a user understands.
    where: File, line, config key or record where it is wrong.
    how: What to do about it.
  """

  def __init__(self, what: str, where: str = '', how: str = ''):
    super().__init__(what)
    self.what, self.where, self.how = what, where, how

  def __str__(self) -> str:
    where = f' ({self.where})' if self.where else ''
    how = f' — {self.how}' if self.how else ''
    return ' '.join(f'{self.what}{where}{how}'.split())


class OutOfMemory(UserError):
  """A device has too little memory for what it was given; fewer runs at once may fit."""


class Diverged(UserError):
  """The numbers of one run are no numbers any more; runs beside it are not concerned."""


# How the reason of an interruption begins that is no signal.
TIME_LIMIT = 'the time limit'


class Interrupted(Exception):
  """A signal or time limit stopped the run; its state is saved. `main` exits with status 3."""

  @property
  def timed_out(self) -> bool:
    """Whether it was a time limit."""
    return str(self).startswith(TIME_LIMIT)


def no_workdir(name: str) -> UserError:
  """The error where a workdir is needed and none is given; `name` is the flag or argument."""
  return UserError('no workdir', name, f'for example {name}=runs/first')
