"""lm-evaluation-harness on our engines and on its own model, the same tiny weights and tasks."""

import json

import jax
import jax.numpy as jnp
import pytest

from sft_jax.evals import lm_eval_model
from sft_jax.evals import model as eval_model
from sft_jax.models import hf, source
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as meshes
from sft_jax.utils.errors import UserError

WINDOW = 96


@pytest.fixture(scope='module')
def both(tiny_files):
  """Its `hf` model and ours."""
  torch = pytest.importorskip('torch')
  huggingface = pytest.importorskip('lm_eval.models.huggingface')
  import transformers

  directory = tiny_files[0]
  checkpoint = source.resolve(str(directory))
  cfg, tokenizer = ModelConfig.from_hf(checkpoint.config), checkpoint.tokenizer()
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  params = hf.load_params(checkpoint, cfg, mesh, jnp.float32)
  theirs = huggingface.HFLM(
    transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
    tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
    batch_size=2,
    device='cpu',
    max_length=WINDOW,
  )
  subject = eval_model.single(cfg, params, jnp.float32, mesh)
  stops = [tokenizer.eos_token_id]
  return theirs, lm_eval_model.make(subject, tokenizer, stops, max_length=WINDOW)


def instances(kind, arguments):
  from lm_eval.api.instance import Instance

  return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


PAIRS = [
  ('Water boils at', ' 100 degrees.'),
  ('Water boils at', ' noon'),
  ('Water boils at ', 'noon'),
  ('', 'Water'),
  ('The quick brown fox jumps over the lazy dog. ' * 9, ' And so on'),
  ('你好，', '世界！'),
]


def test_log_likelihoods(both):
  theirs, ours = (m.loglikelihood(instances('loglikelihood', PAIRS)) for m in both)
  for (one, greedy), (two, also) in zip(theirs, ours, strict=True):
    assert two == pytest.approx(one, abs=1e-4) and bool(greedy) == also


def test_rolling(both):
  texts = [(a + b,) for a, b in PAIRS]
  theirs, ours = (m.loglikelihood_rolling(instances('loglikelihood_rolling', texts)) for m in both)
  assert ours == pytest.approx(theirs, abs=1e-3)


def test_generation(both):
  how = {'until': ['\n\n', 'the '], 'max_gen_toks': 12, 'do_sample': False}
  asked = [(a + b, dict(how)) for a, b in PAIRS]
  theirs, ours = (m.generate_until(instances('generate_until', asked)) for m in both)
  assert ours == theirs
  assert asked[0][1] == how, 'what was given is left as it was'


def test_samples_of_one_request_differ(both):
  """As a vote among them needs (`repeats`); the same each time, and greedy ones asked once."""
  ours = both[1]
  warm = {'until': [], 'max_gen_toks': 8, 'do_sample': True, 'temperature': 2.0}
  asked = instances('generate_until', [('Water boils at', dict(warm))] * 6 + [('Ice', dict(warm))])
  drawn = ours.generate_until(asked)
  assert len(set(drawn)) == 7 and ours.generate_until(asked) == drawn
  assert ours.generate_until(asked[-1:]) == drawn[-1:], 'whatever else is asked'
  greedy = instances('generate_until', [('Water boils at', {'until': [], 'max_gen_toks': 8})] * 3)
  assert len(set(ours.generate_until(greedy))) == 1


def test_special_tokens_that_end_a_text(both, monkeypatch):
  """They are in no text, so they are found by their ids."""
  stops = []

  def written(subject, requests, answers, tokenizer, stop_ids, **options):
    stops.append(([request.prompt for request in requests], stop_ids))
    return [[{'text': str(len(request.prompt)), 'finish': 'end'} for request in requests]]

  monkeypatch.setattr(lm_eval_model, 'written', written)
  tokenizer = both[1]._tokenizer
  end, stop = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids('<|end|>')
  until = (['Q:', '<|end|>'], ['Q:', '</s>'], ['<|end|>'], 'Q:')
  asked = [('x' * (i + 1), {'until': words, 'max_gen_toks': 4}) for i, words in enumerate(until)]
  texts = both[1].generate_until(instances('generate_until', asked))
  assert texts == [str(len(both[1].tok_encode(context))) for context, _ in asked]
  assert [(len(prompts), ids) for prompts, ids in stops] == [(2, [end, stop]), (2, [end])]


def test_no_room_for_a_question(both):
  """Its `hf` model refuses too; what is left of a question would be one token."""
  asked = instances('generate_until', [('Water boils at', {'until': [], 'max_gen_toks': WINDOW})])
  with pytest.raises(AssertionError):
    both[0].generate_until(asked)
  with pytest.raises(UserError, match='96 new tokens leave no room in a window of 96'):
    both[1].generate_until(asked)


def test_a_task_of_its_own(both, tmp_path):
  """Metrics of `simple_evaluate` are equal."""
  import lm_eval

  rows = [
    {'q': f'{i} and {i + 1} make', 'choices': [str(i), str(2 * i + 1)], 'gold': i % 2}
    for i in range(12)
  ]
  (tmp_path / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  task = {
    'task': 'ours',
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(tmp_path / 'x.jsonl')}},
    'test_split': 'test',
    'output_type': 'multiple_choice',
    'doc_to_text': '{{q}}',
    'doc_to_choice': 'choices',
    'doc_to_target': 'gold',
    'metric_list': [
      {'metric': m, 'aggregation': 'mean', 'higher_is_better': True} for m in ('acc', 'acc_norm')
    ],
  }
  found = []
  for model in both:
    out = lm_eval.simple_evaluate(model=model, tasks=[dict(task)], bootstrap_iters=0)
    found.append({k: v for k, v in out['results']['ours'].items() if isinstance(v, float)})
  assert found[0] == found[1] and found[0]
