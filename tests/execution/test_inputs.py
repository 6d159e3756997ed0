"""What a run starts from: names for the table, the held-out part, and what makes data the same."""

import json

import pytest

from sft_jax import spec
from sft_jax.execution import inputs
from tests import tiny


@pytest.fixture(scope='module')
def tokenizer(tiny_files):
  return inputs.load_model(str(tiny_files[0]), '', 64).tokenizer


def load(tiny_files, tokenizer, path, **changes):
  config = tiny.config(tiny_files[0], path, **changes)
  return inputs.load_data(spec.from_config(config, 'cpu'), tokenizer, [])


def pair(index, split='', answer='yes'):
  messages = [
    {'role': 'user', 'content': f'question {index}'},
    {'role': 'assistant', 'content': answer},
  ]
  return {'messages': messages, **({'split': split} if split else {})}


@pytest.mark.parametrize(
  ('path', 'name'),
  [
    ('hf:openai/gsm8k:main', 'gsm8k'),
    ('hf:openai/gsm8k:socratic@test', 'gsm8k-socratic'),
    ('hf:allenai/ai2_arc:ARC-Easy', 'ai2_arc-ARC-Easy'),
    ('hf:allenai/ai2_arc:ARC-Challenge', 'ai2_arc-ARC-Challenge'),
    ('hf:org/name:default@train', 'name'),
    ('hf:HuggingFaceH4/ultrachat_200k@train_sft', 'ultrachat_200k'),
    ('hf:/some/folder/name/', 'name'),
    ('tfds:gsm8k:1.0.0', 'gsm8k'),
    ('tfds:ai2_arc/ARC-Easy:1.0.0@train[:9%]', 'ai2_arc-ARC-Easy'),
    ('tfds:gsm8k', 'gsm8k'),
    ('dir/a.jsonl', 'a'),
    ('dir/a.TSV', 'a'),
    ('a.ndjson', 'a'),
    ('dir.x/a.b@c.json.gz', 'a.b@c'),
    ('dir/a.tsv.csv.GZ', 'a.tsv'),
    ('builtin:quickstart.jsonl', 'quickstart'),
  ],
)
def test_data_names(path, name):
  assert inputs._data_name(path) == name


@pytest.mark.parametrize(
  ('path', 'name'),
  [
    ('org/Name', 'Name'),
    ('org/Name@rev', 'Name'),
    ('wheel:llm-pkg==0.1.2', 'llm-pkg'),
    ('a:b/dir/Name/', 'Name'),
    ('dir/Name:v2', 'Name:v2'),
  ],
)
def test_model_names(path, name):
  assert inputs._model_name(path) == name


def test_heldout_max_counts_what_can_be_measured(tiny_files, tokenizer, tmp_path):
  """Of six held-out records two have no answer: at most five is at most four."""
  rows = [pair(i, 'heldout', '' if i < 2 else 'yes') for i in range(6)]
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(map(json.dumps, [*rows, *(pair(i, 'train') for i in range(6, 9))])))
  for most, measured, dropped in ((0, 4, 2), (3, 3, 0), (4, 4, 2), (5, 4, 2), (6, 4, 2)):
    data = load(tiny_files, tokenizer, path, data__heldout_max=most)
    assert len(data.heldout) == len(data.heldout_records) == measured
    assert (data.audit.heldout, data.audit.heldout_dropped) == (measured, dropped)
    assert len(data.train) == 3


def test_a_list_on_one_line_keeps_its_heldout_records(tiny_files, tokenizer, tmp_path):
  """The records behind the examples are told by identity: text and dropped ones are not shown."""
  rows = [pair(i, 'heldout', '' if i == 1 else 'yes') for i in range(4)]
  path = tmp_path / 'a.json'
  path.write_text(json.dumps([*rows, pair(4, 'train')]))
  data = load(tiny_files, tokenizer, path)
  asked = [record.messages[0]['content'] for record in data.heldout_records]
  assert asked == ['question 0', 'question 2', 'question 3'] and len(data.heldout) == 3


def test_nothing_held_out_is_said(tiny_files, tokenizer, tmp_path):
  """A share of a few records may well be none of them."""
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps(pair(0)))
  data = load(tiny_files, tokenizer, path, data__heldout_share=0.01)
  assert not data.heldout
  assert 'held out     no records: there is no held-out perplexity' in data.audit.lines()


def test_the_fingerprint_tells_who_is_held_out(tiny_files, tokenizer, tmp_path):
  """The same records in the same order, one of them on the other side."""
  path, prints = tmp_path / 'a.jsonl', []
  for trained in (2, 3):
    rows = [pair(i, 'train' if i < trained else 'heldout') for i in range(4)]
    path.write_text('\n'.join(map(json.dumps, rows)))
    prints.append(load(tiny_files, tokenizer, path).fingerprint)
  assert prints[0] != prints[1]
