"""A model behind an endpoint as the model to evaluate. It can only write: no log-likelihoods."""

from collections.abc import Mapping, Sequence

from sft_jax.evals.chats import Chat, Messages, Target
from sft_jax.evals.endpoint import Endpoint
from sft_jax.utils.errors import UserError


def target(path: str, environment: Mapping[str, str]) -> Target | None:
  """The model of 'endpoint:MODEL@URL' (`config.model.path`); None for a path of another kind.

  Args:
    path: See above.
    environment: Where its key is, if it needs one: SFT_JAX_ENDPOINT_KEY.

  Raises:
    UserError: it begins like that and goes on otherwise; see `Target`.
  """
  if not path.startswith('endpoint:'):
    return None
  model, _, url = path.removeprefix('endpoint:').rpartition('@')
  if not model:
    raise UserError('no model and address', 'config.model.path', 'write endpoint:MODEL@URL')
  return Target(url, model, environment.get('SFT_JAX_ENDPOINT_KEY', ''))


def converse(
  endpoint: Endpoint,
  openings: Sequence[Messages],
  turns: Sequence[Sequence[str]],
  max_new: int,
  temperatures: Sequence[float],
  stops: Sequence[str] = (),
) -> list[tuple[str, ...] | None]:
  """Lets a served model answer conversations, turn by turn.

  Args:
    endpoint: The model.
    openings: Messages up to the first answer.
    turns: Further user turns of each, put after its own answers.
    max_new: Most new tokens of an answer.
    temperatures: Of each.
    stops: Answers are cut before the first of these.

  Returns:
    The answers to each, or None where one is missing: what follows it was not asked.
  """
  dialogues = [list(opening) for opening in openings]
  missing: set[int] = set()
  answers: list[list[str]] = [[] for _ in openings]
  for turn in range(1 + max(map(len, turns), default=0)):
    asked = [i for i in range(len(openings)) if i not in missing and turn <= len(turns[i])]
    for i in asked:
      if turn:
        dialogues[i].append({'role': 'user', 'content': turns[i][turn - 1]})
    chats = [Chat(tuple(dialogues[i]), max_new, temperatures[i], tuple(stops)) for i in asked]
    for i, answer in zip(asked, endpoint.complete(chats), strict=True):
      if answer is None:
        missing.add(i)
        continue
      # Endpoints take four stops only.
      text = min((answer.text.split(stop, 1)[0] for stop in stops), key=len, default=answer.text)
      answers[i].append(text)
      dialogues[i].append({'role': 'assistant', 'content': text})
  return [None if i in missing else tuple(texts) for i, texts in enumerate(answers)]
