r"""Answers out of what a model wrote: the extractors that several benchmarks share.

Those of OpenCompass do what its `opencompass/utils/text_postprocessors.py` does, oddities included:
a score of the published table measures them as much as the model. Not for a single benchmark's own
rules, nor for comparing answers.
"""

import collections
import functools
import re
import string

# The order decides; '@' stands for the options. A comma is missing in the original list after
# `故选?`, so that pattern and the one after it are one, which next to nothing matches.
_OPTION_PATTERNS = (
  r'答案是?\s*([@])',
  r'答案是?\s*：\s*([@])',
  r'答案是?\s*:\s*([@])',
  r'答案选项应?该?是\s*([@])',
  r'答案选项应?该?为\s*([@])',
  r'答案应该?是\s*([@])',
  r'答案应该?选\s*([@])',
  r'答案选项为?\s*：\s*([@])',
  r'答案选项为?\s+\(?\*?\*?([@])\*?\*?\)?',
  r'答案选项是?\s*:\s*([@])',
  r'答案为\s*([@])',
  r'答案选\s*([@])',
  r'选择?\s*([@])',
  r'故选?\s*([@])只有选?项?\s?([@])\s?是?对',
  r'只有选?项?\s?([@])\s?是?错',
  r'只有选?项?\s?([@])\s?不?正确',
  r'只有选?项?\s?([@])\s?错误',
  r'说法不?对选?项?的?是\s?([@])',
  r'说法不?正确选?项?的?是\s?([@])',
  r'说法错误选?项?的?是\s?([@])',
  r'([@])\s?是正确的',
  r'([@])\s?是正确答案',
  r'选项\s?([@])\s?正确',
  r'所以答\s?([@])',
  r'所以\s?([@][.。$]?$)',
  r'所有\s?([@][.。$]?$)',
  r'[\s，：:,]([@])[。，,\.]?$',
  r'[\s，,：:][故即]([@])[。\.]?$',
  r'[\s，,：:]因此([@])[。\.]?$',
  r'[是为。]\s?([@])[。\.]?$',
  r'因此\s?([@])[。\.]?$',
  r'显然\s?([@])[。\.]?$',
  r'答案是\s?(\S+)(?:。|$)',
  r'答案应该是\s?(\S+)(?:。|$)',
  r'答案为\s?(\S+)(?:。|$)',
  r'(?i)ANSWER\s*:\s*([@])',
  r'[Tt]he answer is:?\s+\(?([@])\)?',
  r'[Tt]he answer is:?\s+\(?\*?\*?([@])\*?\*?\)?',
  r'[Tt]he answer is option:?\s+\(?([@])\)?',
  r'[Tt]he correct answer is:?\s+\(?([@])\)?',
  r'[Tt]he correct answer is option:?\s+\(?([@])\)?',
  r'[Tt]he correct answer is:?.*?boxed{([@])}',
  r'[Tt]he correct option is:?.*?boxed{([@])}',
  r'[Tt]he correct answer option is:?.*?boxed{([@])}',
  r'[Tt]he answer to the question is:?\s+\(?([@])\)?',
  r'^选项\s?([@])',
  r'^([@])\s?选?项',
  r'(\s|^)[@][\s。，,：:\.$]',
  r'1.\s?(.*?)$',
  r'1.\s?([@])[.。$]?$',
)
_CUSHION = (r'([@]):', r'([@])')


def first_capital(text: str) -> str:
  """The first upper-case character whatever it belongs to ('Yes' gives 'Y'); '' if none."""
  return next((character for character in text if character.isupper()), '')


def last_capital(text: str) -> str:
  """The last upper-case character; '' if none."""
  return first_capital(text[::-1])


def has_capital(text: str) -> bool:
  """Whether `first_capital` can no longer change: the exact early stop for it."""
  return bool(first_capital(text))


def first_option(text: str, options: str, cushion: bool = True) -> str:
  """The option that the first pattern of an ordered list finds anywhere in the text.

  Later text can match an earlier pattern, so no early stop is exact. A pattern that finds no option
  (as in 'I: B ', where the group holds the space) leaves the word to the next.

  Args:
    text: What the model wrote.
    options: The letters, such as 'ABCD'.
    cushion: At last take 'X:' and then any of the letters, also one inside a word.

  Returns:
    One of `options`, or ''.
  """
  text = text.strip()
  for pattern in _compiled(options, cushion):
    match = pattern.search(text)
    if match:
      found = match.group(1) or match.group(0)
      for option in options:
        if option in found:
          return option
  return ''


@functools.cache
def _compiled(options: str, cushion: bool) -> tuple[re.Pattern[str], ...]:
  patterns = _OPTION_PATTERNS + (_CUSHION if cushion else ())
  return tuple(re.compile(pattern.replace('@', options), re.DOTALL) for pattern in patterns)


def last_option(text: str, options: str) -> str:
  """The last of the letters in the text, also one inside a word; '' if none."""
  return next((character for character in reversed(text) if character in options), '')


def match_answer_pattern(text: str, pattern: str) -> str:
  """The group of the first match; '' if there is none."""
  match = re.search(pattern, text)
  return match.group(1) if match else ''


def general_postprocess(text: str) -> str:
  """Up to the first line break, full stop or comma, without punctuation and English articles."""
  text = re.split(r'[\n.,]', text, maxsplit=1)[0]
  text = re.sub(r'[^\w\s]', '', text)
  text = re.sub(r'\b(a|an|the)\b', '', text, flags=re.IGNORECASE)
  return re.sub(r'\s+', ' ', text).strip()


def last_number(text: str) -> str:
  """The last number as it is written; '' if none.

  A comma ends a number ('1,234' gives '234') and a hyphen is a sign ('10-5' gives '-5').
  """
  numbers = re.findall(r'-?\d+\.\d+|-?\d+', text)
  return numbers[-1] if numbers else ''


def last_boxed(text: str) -> str:
  r"""The content of the last `\boxed{}`.

  '' if there is none, if its braces are not balanced, or without a brace right after the name.
  """
  start = text.rfind(r'\boxed')
  if not text.startswith(r'\boxed{', max(start, 0)):
    return ''
  start += len(r'\boxed{')
  depth = 1
  for at in range(start, len(text)):
    depth += {'{': 1, '}': -1}.get(text[at], 0)
    if not depth:
      return text[start:at]
  return ''


def squad_normalised(text: str) -> str:
  """Lower case without ASCII punctuation, English articles and surplus space, as SQuAD compares.

  The source is SQuAD's evaluate-v1.1.py (arXiv 1606.05250).
  """
  text = text.lower().translate(dict.fromkeys(map(ord, string.punctuation)))
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def same_answer(answer: str, other: str) -> bool:
  """Whether two answers are equal as SQuAD compares; of '---' and the like as they stand."""
  normalised = squad_normalised(answer)
  if not normalised:
    return answer.strip() == other.strip()
  return normalised == squad_normalised(other)


def token_f1(answer: str, gold: str) -> float:
  """Harmonic mean of precision and recall over the words of the normalised texts, as in SQuAD."""
  words = collections.Counter(squad_normalised(answer).split())
  wanted = collections.Counter(squad_normalised(gold).split())
  shared = (words & wanted).total()
  if not shared:
    return float(same_answer(answer, gold))
  return 2 * shared / (words.total() + wanted.total())
