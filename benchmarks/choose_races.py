"""Planted races: `python -m benchmarks.choose_races --out=benchmarks/results/choose_races`.

Races of six candidates whose true gains are planted (`planted.py`), each within half of what
training everything fully costs; how often the true best, or a tie that contains it, comes out, how
often intervals cover the planted gain, what is said when nothing helps, and how often a planted
trap is chosen: a leaked test, a data set that only teaches the form of answers, one that is lucky
with some seeds, one with shuffled labels. Counts carry 95 % Clopper-Pearson intervals.
"""

import argparse
from typing import Any

import numpy as np
from scipy import special

from benchmarks import report
from benchmarks.planted import TASK, Candidate, World
from sft_jax.study import choose
from sft_jax.study.choose import Decision
from sft_jax.study.race import Race
from sft_jax.study.race_data import Field
from sft_jax.study.race_evidence import Arm, Rung
from sft_jax.study.race_rules import Rules

RUNGS = (Rung('1/16', 2, 1.5), Rung('1/4', 2, 0.75), Rung('full', 4))
SHARE = 0.5


def hold(world: World, leaks: dict[str, dict[str, list[str]]] | None = None) -> Any:
  """(decision, race) of a world."""
  rules = Rules({TASK: 1.0})
  field = Field(world.base, rules.targets, leaks or {}, most_leak=0.1, ability_only=True)
  arms = [Arm(name) for name in world.candidates]
  full = len(arms) * RUNGS[-1].seeds * world.costs[-1]
  race = Race(arms, RUNGS, rules, field, SHARE * full, lambda _, rung: world.costs[rung])
  return choose.choose(race, world.evaluate), race


def helpful(seed: int, least: float = 5.0) -> World:
  """Gains of any size, the best one `least` points or more; noise differs between data sets."""
  rng = np.random.default_rng([seed, 7])
  gains = rng.normal(1.0, 4.0, 6)
  gains[rng.integers(6)] = max(gains.max(), least + rng.exponential(1.0))
  noise = rng.uniform(0.5, 2.0, 6)
  return World(
    {
      f'data-{i}': Candidate(float(g), float(s))
      for i, (g, s) in enumerate(zip(gains, noise, strict=True))
    },
    seed,
  )


def useless(seed: int) -> World:
  """Nothing helps; half of them do harm."""
  rng = np.random.default_rng([seed, 8])
  gains = [0.0, 0.0, 0.0, *(-rng.exponential(2.0, 3))]
  noise = rng.uniform(0.5, 2.0, 6)
  return World(
    {
      f'data-{i}': Candidate(float(g), float(s))
      for i, (g, s) in enumerate(zip(gains, noise, strict=True))
    },
    seed,
  )


def traps(seed: int, good: float) -> World:
  """Traps, beside one that helps by `good` points and one that does nothing."""
  rng = np.random.default_rng([seed, 9])
  return World(
    {
      'good': Candidate(good, float(rng.uniform(0.5, 2.0))),
      'plain': Candidate(0.0, float(rng.uniform(0.5, 2.0))),
      'leak-much': Candidate(0.0, leaked=float(rng.uniform(0.15, 0.6))),
      'leak-some': Candidate(0.0, leaked=float(rng.uniform(0.02, 0.09))),
      'form': Candidate(0.0, form=1.0),
      'lucky': Candidate(0.0, lucky=8.0),
      'shuffled': Candidate(-float(rng.exponential(3.0)), 1.5),
    },
    seed,
    unread=0.2,
  )


def found_leaks(world: World) -> dict[str, dict[str, list[str]]]:
  """Leaks as they are found: every other item is too short to share 13 words in a row."""
  from sft_jax.data.formats import Record
  from sft_jax.data.overlap import NgramIndex

  rng = np.random.default_rng(len(world.ids))
  words = rng.integers(0, 5000, (len(world.ids), 20))
  words = [row[: 20 if i % 2 else 8] for i, row in enumerate(words)]
  texts = [' '.join(f'w{word}' for word in row) for row in words]
  out: dict[str, dict[str, list[str]]] = {}
  for name, held in world.leaked.items():
    own = rng.integers(5000, 9000, (50, 30))
    training = [' '.join(f'w{word}' for word in row) for row in own]
    training += [f'solve this now {text} please' for text, h in zip(texts, held, strict=True) if h]
    records = [Record((), '', text) for text in training]
    hits = NgramIndex(records).hits([{'question': text} for text in texts])
    out[name] = {TASK: [world.ids[i] for i in hits]}
  return out


def share(hits: int, n: int) -> dict[str, float]:
  """A share in percent with its Clopper-Pearson interval."""
  low = special.betaincinv(hits, n - hits + 1, 0.025) if hits else 0.0
  high = special.betaincinv(hits + 1, n - hits, 0.975) if hits < n else 1.0
  return {'hits': hits, 'of': n, 'percent': 100 * hits / n, 'low': 100 * low, 'high': 100 * high}


def contains_best(world: World, decision: Decision) -> bool:
  """Whether a true best is the winner or in the tie."""
  most = max(c.gain for c in world.candidates.values())
  return any(world.candidates[arm.candidate].gain == most for arm in decision.members)


def measure(n: int, first: int = 0) -> dict[str, Any]:
  """All figures of n races of each kind, of worlds from number `first` on."""
  out: dict[str, Any] = {}
  right = wins = 0
  sizes, opens, costs, regrets = [], [], [], []
  cover: dict[str, list[bool]] = {'finalists': [], 'pick': [], 'finalists, nothing helps': []}
  none_when_good = 0
  for seed in range(first, first + n):
    world = helpful(seed)
    decision, race = hold(world)
    right += contains_best(world, decision)
    none_when_good += decision.kind == choose.NONE
    wins += decision.kind == choose.WINNER
    sizes.append(len(decision.members))
    opens.append(len(decision.open))
    costs.append(decision.spent / decision.full)
    best = max(c.gain for c in world.candidates.values())
    if decision.pick:
      regrets.append(best - world.candidates[decision.pick.candidate].gain)
    _covers(world, decision, race, cover['finalists'], cover['pick'])
  wrong = quiet = 0
  for seed in range(first, first + n):
    world = helpful(seed + 10_000, 2.0)
    decision, _ = hold(world)
    quiet += decision.kind == choose.NONE
    wrong += decision.kind != choose.NONE and not contains_best(world, decision)
  none = 0
  for seed in range(first, first + n):
    world = useless(seed)
    decision, race = hold(world)
    none += decision.kind == choose.NONE
    _covers(world, decision, race, cover['finalists, nothing helps'], [])
  out['true best is the winner or in the tie'] = share(right, n)
  out['nothing helps: none beats the base'] = share(none, n)
  out |= {f'intervals cover: {k}': share(sum(v), len(v)) for k, v in cover.items()}
  out['best is 2 points or more: others are named without it'] = share(wrong, n)
  out['best is 2 points or more: none is said to beat the base'] = share(quiet, n)
  out['a single winner is named'] = share(wins, n)
  out['something helps, none is said to'] = share(none_when_good, n)
  for name, values in (
    ('candidates named', sizes),
    ('of them dropped for the budget', opens),
    ('cost, share of everything fully', costs),
    ('regret of the pick, points', regrets),
  ):
    out[name] = {'mean': float(np.mean(values)), 'max': float(np.max(values))}
  for label, good in (('one helps', 5.0), ('nothing helps', 0.0)):
    picks: dict[str, int] = dict.fromkeys(
      ('leak-much', 'leak-some', 'form', 'lucky', 'shuffled'), 0
    )
    for seed in range(first, first + n):
      world = traps(seed, good)
      decision, _ = hold(world, found_leaks(world))
      if decision.pick and decision.pick.candidate in picks:
        picks[decision.pick.candidate] += 1
    out |= {f'trap chosen ({label}): {k}': share(v, n) for k, v in picks.items()}
  return out


def _covers(
  world: World, decision: Decision, race: Race, all_: list[bool], pick: list[bool]
) -> None:
  for one in decision.standings:
    if one.rung == race.last and one.gain is not None:
      hit = one.gain.low() <= world.candidates[one.arm.candidate].gain <= one.gain.high()
      all_.append(hit)
      if one.arm == decision.pick:
        pick.append(hit)


def table(found: dict[str, Any]) -> list[str]:
  """As Markdown."""
  lines = ['| | | 95 % interval |', '|---|---|---|']
  for name, row in found.items():
    if 'of' in row:
      lines.append(
        f'| {name} | {row["hits"]} of {row["of"]} ({row["percent"]:.1f} %) '
        f'| {row["low"]:.1f} to {row["high"]:.1f} % |'
      )
    else:
      lines.append(f'| {name} | mean {row["mean"]:.2f}, most {row["max"]:.2f} | |')
  return lines


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--races', type=int, default=200, help='of each kind')
  parser.add_argument('--first', type=int, default=0, help='number of the first world')
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  args = parser.parse_args()
  found = measure(args.races, args.first)
  lines = table(found)
  print('\n'.join(lines))
  command = f'`python -m benchmarks.choose_races --races={args.races} --first={args.first}`'
  report.write(args.out, ['# Planted races', '', command, '', *lines], found)


if __name__ == '__main__':
  main()
