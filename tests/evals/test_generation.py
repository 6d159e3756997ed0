"""The generation engine against transformers' `generate`, and against itself in other layouts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.evals import caches, generation, slots
from sft_jax.models import lora
from tests.evals import toy
from tests.evals.toy import plain, subject, torch_model, weights
from tests.train import common

MAX_NEW = 9


def prompts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, common.VOCAB, n).tolist() for n in (5, 1, 17, 16, 2, 30)]


def alike(count=24):
  """Prompts that share a long beginning, and a few that do not."""
  rng = np.random.default_rng(1)
  beginning = rng.integers(0, common.VOCAB, 70).tolist()
  rest = [rng.integers(0, common.VOCAB, 1 + i % 5).tolist() for i in range(count)]
  return [*(beginning + part for part in rest), *prompts()]


def text(prompt, new):
  """Each token as letters, so that a stop string may sit inside or across tokens."""
  return ''.join(f'<{token}>' for token in new)


def ours(given, stop_ids=(), model=None, *, requests=None, **options):
  engine = generation.Engine(model or subject(), text, stop_ids, **options)
  (outputs,) = engine.generate(requests or [generation.Request(p, MAX_NEW) for p in given])
  return [list(output.ids) for output in outputs]


def theirs(given, stop_ids=(), max_new=MAX_NEW):
  """Answers of transformers, one prompt at a time."""
  llama = torch_model()
  import torch

  out = []
  for prompt in given:
    ids = torch.tensor([prompt])
    with torch.no_grad():
      whole = llama.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new,
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
      )
    new = whole[0, len(prompt) :].tolist()
    stops = [i for i, token in enumerate(new) if token in stop_ids]
    out.append(new[: stops[0]] if stops else new)
  return out


def test_greedy_equals_transformers():
  answers = ours(prompts())
  assert answers == theirs(prompts()) and {len(a) for a in answers} == {MAX_NEW}
  assert len({tuple(a) for a in answers}) > 3, 'the prompts matter'


def test_a_shared_beginning_changes_nothing():
  engine = generation.Engine(subject(), text, ())
  requests = [generation.Request(p, MAX_NEW) for p in alike()]
  waves = engine._waves(requests)
  assert [(len(prefix), len(members)) for prefix, members, _ in waves] == [(0, 6), (70, 24)]
  assert ours(alike()) == theirs(alike())


def test_stop_tokens_end_an_answer_and_are_left_out():
  free = theirs(prompts())
  # Tokens from the middle and the very beginning of some answers.
  stops = (free[0][4], free[2][0])
  want = theirs(prompts(), stops)
  assert ours(prompts(), stops) == want
  assert [] in want and any(0 < len(answer) < MAX_NEW for answer in want)


@pytest.mark.parametrize('slots', [1, 4, 64])
def test_neighbours_do_not_matter(slots):
  want = theirs(alike())
  assert ours(alike(), slots=slots) == want
  assert ours(alike()[::-1], slots=slots, tokens_per_batch=64) == want[::-1]


def test_texts_of_unequal_length():
  lengths = [1, 30, 2, 9, 17, 40]
  requests = [generation.Request(p, n) for p, n in zip(prompts(), lengths, strict=True)]
  got = ours(None, requests=requests, slots=2)
  assert got == [theirs([p], max_new=n)[0] for p, n in zip(prompts(), lengths, strict=True)]


def test_several_devices():
  assert ours(alike(), model=subject(devices=8)) == ours(alike())


@pytest.mark.parametrize('slots', [2, 8, 16])
def test_tokens_begun_before_others_are_read_change_nothing(slots):
  """Texts of all lengths, ended by tokens, by strings, and by nothing; slots are let go of."""
  some = [token for answer in theirs(prompts(), max_new=40) for token in answer[9::7]]
  requests = [
    generation.Request(prompt, 20 + 3 * i, stops=(f'<{some[i % len(some)]}>',) if i % 3 else ())
    for i, prompt in enumerate(2 * prompts())
  ]
  found = []
  for ahead in (False, True):
    engine = generation.Engine(subject(), text, some[:1], slots=slots)
    assert not engine.ahead  # on a CPU
    engine.ahead = ahead
    found.append(engine.generate(requests)[0])
  assert found[0] == found[1]
  assert {output.finish for output in found[1]} == {'length', 'stop', 'end'}


def test_stop_strings_cut_the_text():
  """One inside a token's text, one across two tokens; the earliest counts."""
  (free,) = ours(prompts()[:1])
  inside, across = f'{free[3]}>', f'>{"<"}{free[5]}'
  for stops, cut in (((inside,), 3), ((across,), 5), ((across, inside), 3), (('nothing',), None)):
    request = generation.Request(prompts()[0], MAX_NEW, stops=stops)
    ((output,),) = generation.Engine(subject(), text, ()).generate([request])
    whole = text(None, free)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert output.text == whole[: min(ends, default=None)]
    assert output.finish == ('length' if cut is None else 'stop')


def test_a_settled_answer_is_not_gone_on_with():
  (free,) = ours(prompts()[:1])
  settled = lambda seen: f'<{free[1]}>' in seen
  request = generation.Request(prompts()[0], 60, settled=settled)
  ((output,),) = generation.Engine(subject(), text, ()).generate([request])
  assert output.finish == 'settled' and list(output.ids) == [*free, 0][: len(output.ids)]
  assert len(output.ids) < 20


def test_adapter_equals_merged_weights():
  cfg, base = weights()
  adapter = lora.one_run(common.adapter(cfg, [4], [1], b_size=0.3), 0)
  scale = jnp.array([2.0, 0.5])
  answers = ours(alike(), model=subject(adapter=adapter, lora_scale=scale))
  assert answers == ours(alike(), model=subject(base=lora.merge(base, adapter, scale)))
  assert answers != theirs(alike()), 'the adapter does something'


def test_a_cohort_equals_its_runs_alone():
  cfg, _ = weights()
  adapter = common.adapter(cfg, [4, 2, 4], [1, 2, 3], b_size=0.3)
  scale = jnp.array([[2.0, 0.5], [1.0, 1.0], [0.0, 0.0]])
  runs = toy.cohort(adapter, scale)
  requests = [generation.Request(p, 3 + i % 7) for i, p in enumerate(alike())]
  seen = []
  engine = generation.Engine(runs, text, (5,), slots=32)
  outputs = engine.generate(requests, lambda run, index, output: seen.append((run, index)))
  assert sorted(seen) == [(r, i) for r in range(3) for i in range(len(requests))]
  for run in range(3):
    alone = subject(adapter=lora.one_run(adapter, run), lora_scale=scale[run])
    (want,) = generation.Engine(alone, text, (5,), slots=8).generate(requests)
    assert outputs[run] == want
  assert outputs[0] != outputs[1] != outputs[2]


@pytest.mark.parametrize('runs', [0, 3])
def test_a_step_copies_neither_caches_nor_adapters(runs):
  """Layers read their slice of a cache, new tokens are written in place, adapters lie as read."""
  cfg, layers = weights()[0], weights()[0].num_layers
  if runs:
    scale = jnp.ones((runs, layers))
    model = toy.cohort(common.adapter(cfg, [4] * runs, range(runs)), scale)
  else:
    model = subject()
  held = caches.Caches(model, 16, 128)
  one = lambda kind: jax.ShapeDtypeStruct((*held.lead, 16), kind)
  lowered = jax.jit(
    functools.partial(
      slots.advance.__wrapped__, model.model, runs=runs, sampled=False, steps=4, prefix=None
    ),
    donate_argnames=('cache', 'state'),
  ).lower(
    model.params,
    cache=held.cache,
    state=held.state,
    alive=one(bool),
    stop_ids=jax.ShapeDtypeStruct((1,), jnp.int32),
  )
  stacks = {leaf.shape for leaf in jax.tree.leaves((held.cache, model.params['adapter']))}
  stacks |= {(*shape[1::-1], *shape[2:]) for shape in stacks}
  for line in lowered.compile().as_text().splitlines():
    found = re.search(r'\[([0-9,]+)\]\S* (copy|transpose)\(', line)
    assert not found or tuple(map(int, found[1].split(','))) not in stacks, line


def sampled(given, seeds, **options):
  requests = [
    generation.Request(p, MAX_NEW, temperature=1.0, seed=s)
    for p, s in zip(given, seeds, strict=True)
  ]
  return ours(None, requests=requests, **options)


def test_samples_depend_on_their_seed_alone():
  given = prompts()
  first = sampled(given, range(6))
  assert first == sampled(given, range(6), slots=2)
  assert first[::-1] == sampled(given[::-1], range(6)[::-1])
  assert first != sampled(given, range(6, 12)) and first != ours(given)


def test_samples_have_the_model_s_frequencies():
  prompt = prompts()[2]
  count = 2000
  requests = [generation.Request(prompt, 1, temperature=0.7, seed=s) for s in range(count)]
  drawn = np.array(ours(None, requests=requests, slots=256))[:, 0]
  logits = np.asarray(toy.logits(weights()[1], np.array([prompt])))[0, -1] / 0.7
  want = np.exp(logits - logits.max())
  want /= want.sum()
  got = np.bincount(drawn, minlength=len(want)) / count
  assert np.abs(got - want).max() < 4 * np.sqrt(want.max() * (1 - want.max()) / count)


def test_a_model_that_is_only_a_function():
  assert ours(prompts(), model=plain()) == theirs(prompts())


def test_nothing_to_do():
  assert ours([]) == []
