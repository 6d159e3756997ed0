"""Tables of probes are whole, carry their provenance, and hold no pickle."""

import os

import numpy as np
import pytest

from sft_jax.utils import tables
from sft_jax.utils.errors import UserError

ARRAYS = {'x': np.arange(6.0).reshape(2, 3), 'names': np.array(['a', 'bb'])}


def test_round_trip(tmp_path):
  path = tmp_path / 'deep' / 'x.npz'
  tables.write_arrays(path, ARRAYS, {'model_name': 'm'})
  arrays, about = tables.read_arrays(path)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(arrays[name], array)
  assert about == {'model_name': 'm', 'arrays': {'x': [2, 3], 'names': [2]}}
  assert sorted(os.listdir(path.parent)) == ['x.npz', 'x.npz.json']


def test_no_pickles(tmp_path):
  with pytest.raises(ValueError, match='objects'):
    tables.write_arrays(tmp_path / 'x.npz', {'x': np.array([{}])}, {})
  assert not os.listdir(tmp_path)
  np.savez(tmp_path / 'x.npz', x=np.array([{}]))
  (tmp_path / 'x.npz.json').write_text('{}')
  with pytest.raises(UserError, match='not a whole'):
    tables.read_arrays(tmp_path / 'x.npz')


def test_damage_is_noticed(tmp_path):
  path = tmp_path / 'x.npz'
  with pytest.raises(UserError):
    tables.read_arrays(path)
  tables.write_arrays(path, ARRAYS, {})
  whole = path.read_bytes()
  path.write_bytes(whole[:-20])
  with pytest.raises(UserError, match='not a whole'):
    tables.read_arrays(path)
  path.write_bytes(whole)
  (tmp_path / 'x.npz.json').write_text('{"arrays": {"x": [9]}}')
  with pytest.raises(UserError, match='do not belong'):
    tables.read_arrays(path)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  tables.write_arrays(tmp_path / 'x.npz', ARRAYS, {})
  before = (tmp_path / 'x.npz').read_bytes()
  monkeypatch.setattr(os, 'replace', lambda *args: (_ for _ in ()).throw(OSError(28, 'full')))
  with pytest.raises(UserError, match='full'):
    tables.write_arrays(tmp_path / 'x.npz', {'x': np.ones(3)}, {})
  assert (tmp_path / 'x.npz').read_bytes() == before
  assert sorted(os.listdir(tmp_path)) == ['x.npz', 'x.npz.json']


def test_rows(tmp_path):
  tables.write_rows(tmp_path / 't.csv', [{'a': 1}, {'a': 2, 'b': 'x, "y"'}], {'k': 1})
  assert (tmp_path / 't.csv').read_text() == 'a,b\n1,\n2,"x, ""y"""\n'
