"""Probes of models and data: their tables are found by the report, with what each model is."""

import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from sft_jax.analysis import measured
from sft_jax.evals.probes.loglik_vector import ProbeText
from sft_jax.execution import probed
from sft_jax.utils import tables
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.fixture(scope='module')
def place(tiny_files, lora_run, tmp_path_factory):
  place = tmp_path_factory.mktemp('study')
  texts = [ProbeText(f'what is {i} and {i % 7}?', f' {i + i % 7}') for i in range(40)]
  with tiny.on_devices():
    for path in (tiny_files[0], f'run:{lora_run}'):
      given = tiny.config(path, tiny_files[1], model__name='tiny')
      probed.probe_model(given, texts, str(place))
    probed.probe_data(tiny.config(*tiny_files, model__name='tiny'), str(place))
  return place


def test_the_report_finds_models(place, lora_run):
  base, tuned = sorted(place.glob(measured.VECTORS), key=lambda f: not f.stem.endswith('-0'))
  row = tiny.read_jsonl(lora_run / 'rows.jsonl')[-1]
  about = tables.read_arrays(tuned)[1]
  assert {k: about[k] for k in ('data_name', 'lora', 'epoch', 'data_size')} == {
    k: row[k] for k in ('data_name', 'lora', 'epoch', 'data_size')
  }
  assert about['run-id'] == row['run-id'] and tables.read_arrays(base)[1]['epoch'] == 0
  sums = [tables.read_arrays(file)[0]['loglik'] for file in (base, tuned)]
  assert np.isfinite(sums).all() and abs(sums[0] - sums[1]).max() > 0.01


def test_the_report_finds_data(place, tiny_files, lora_run):
  """The perplexity is that of all training examples, which the run's own row has of some."""
  (file,) = place.glob(measured.PROPERTIES)
  (row,) = pd.read_csv(file).to_dict('records')
  assert (row['model_name'], row['data_name']) == ('tiny', 'sums')
  base = tiny.read_jsonl(lora_run / 'rows.jsonl')[0]
  assert row['data-n'] > base['train-n'] and 0 <= row['hard-tokens'] <= 1
  assert math.log(row['ppl-data']) == pytest.approx(math.log(base['ppl-train']), abs=0.5)


def test_what_cannot_be_probed(tiny_files, lora_run, tmp_path):
  given = tiny.config(f'run:{lora_run}', tiny_files[1])
  with tiny.on_devices():
    with pytest.raises(UserError, match='name the base'):
      probed.probe_data(given, str(tmp_path))
    with pytest.raises(UserError, match='no probe texts'):
      probed.probe_model(given, [], str(tmp_path))
  assert not list(pathlib.Path(tmp_path).iterdir())
