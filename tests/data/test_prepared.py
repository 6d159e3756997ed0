"""Prepared data: what comes back is what was saved, or nothing."""

import dataclasses
import json
import os
import stat

import numpy as np
import pytest

from sft_jax import spec
from sft_jax.data import prepared
from sft_jax.execution import inputs
from tests import tiny


@pytest.fixture(scope='module')
def data(tiny_files):
  model = inputs.load_model(str(tiny_files[0]), '', 64)
  return inputs.load_data(spec.from_config(tiny.config(*tiny_files), 'cpu'), model.tokenizer, [])


def same(got, want):
  for part in ('train', 'heldout'):
    for a, b in zip(getattr(got, part), getattr(want, part), strict=True):
      for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        np.testing.assert_array_equal(x, y) if isinstance(y, np.ndarray) else None
        assert isinstance(y, np.ndarray) or x == y
        assert getattr(x, 'dtype', None) == getattr(y, 'dtype', None)
  for field in ('train_records', 'records_of', 'heldout_records', 'audit', 'name', 'fingerprint'):
    assert getattr(got, field) == getattr(want, field), field


def refuse():
  raise AssertionError('prepared twice')


def test_comes_back_as_it_was(data, tmp_path):
  place = str(tmp_path / 'kept' / 'key')
  same(inputs.load_prepared(place, lambda: data), data)
  again = inputs.load_prepared(place, refuse)
  same(again, data)
  assert inputs.fingerprint(again.train, again.heldout) == data.fingerprint
  assert isinstance(again.train[0].ids.base, np.memmap) or isinstance(
    again.train[0].ids.base.base, np.memmap
  )
  with pytest.raises(ValueError, match='read-only'):
    again.train[0].ids[0] = 1
  files = list((tmp_path / 'kept' / 'key').iterdir())
  assert all(not file.stat().st_mode & stat.S_IWUSR for file in files)
  assert os.listdir(tmp_path / 'kept') == ['key'], 'nothing half-made is left'


def test_without_a_heldout_part(data, tmp_path):
  bare = dataclasses.replace(data, heldout=[], heldout_records=[])
  same(inputs.load_prepared(str(tmp_path / 'x'), lambda: bare), bare)


@pytest.mark.parametrize('name', ['train-ids.npy', 'train-examples.json', 'heldout-records.json'])
def test_a_damaged_file_is_never_used(data, tmp_path, name):
  place = tmp_path / 'key'
  inputs.load_prepared(str(place), lambda: data)
  file = place / name
  raw = bytearray(file.read_bytes())
  raw[-2] ^= 1
  file.chmod(0o644)
  file.write_bytes(raw)
  calls = []
  same(inputs.load_prepared(str(place), lambda: calls.append(1) or data), data)
  assert calls == [1]
  same(inputs.load_prepared(str(place), refuse), data)


def test_one_made_by_another_process_stays(data, tmp_path):
  place = tmp_path / 'key'

  def meanwhile():
    inputs.load_prepared(str(place), lambda: data)
    return data

  same(inputs.load_prepared(str(place), meanwhile), data)
  assert json.loads((place / 'manifest.json').read_text())['format'] == 3


def test_nothing_there(tmp_path):
  assert prepared.load(str(tmp_path / 'no')) is None
