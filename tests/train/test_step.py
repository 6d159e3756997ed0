"""The step against itself: layouts, cohorts, devices, freezing, one trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.models import decoder, families, hf, lora
from sft_jax.parallel import mesh as meshes
from sft_jax.parallel import rules
from sft_jax.utils import trees
from tests.train import common

METHODS = ('full', 'lora')


def start(method, cfg, dropout=0.0, **options):
  """(step, base, state) of one run."""
  base = common.params(cfg)
  # A larger eps: Adam divides entries of almost no gradient by almost nothing.
  given = common.hypers(cfg, lora_scale=2.0, weight_decay=0.01, eps=1e-5, dropout_rate=dropout)
  options = {'use_dropout': dropout > 0} | options
  trained = base if method == 'full' else common.adapter(cfg, [4], [0], b_size=0.05)
  train, fresh = common.make(cfg, method, trained, [given], **options)
  return train, None if method == 'full' else base, fresh


def assert_equal_runs(one, other, atol):
  (losses, metrics, after), (want, want_metrics, want_after) = one, other
  np.testing.assert_allclose(losses, want, atol=1e-5)
  for name in ('tokens', 'supervised'):
    np.testing.assert_array_equal(metrics[name], want_metrics[name])
  for name in ('grad-norm', 'accuracy'):
    np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=1e-3)
  for path, leaf in trees.flatten(after.trained).items():
    np.testing.assert_allclose(
      leaf, trees.flatten(want_after.trained)[path], atol=atol, err_msg=path
    )


@functools.cache
def reference_layout(method, dropout):
  """Ten steps of 32 examples, a row each, in one microbatch."""
  train, base, fresh = start(method, common.config(), dropout)
  data = [common.batch(common.examples(32, seed), rows=32) for seed in range(10)]
  return common.run(train, base, fresh, data)


@pytest.mark.parametrize(('method', 'dropout'), [('full', 0.0), ('lora', 0.0), ('lora', 0.3)])
@pytest.mark.parametrize(
  'layout', [{'rows': 1}, {'rows': 1, 'packed': True, 'row_length': 64},
             {'rows': 3, 'packed': True, 'row_length': 40, 'micros': 12}],
)  # fmt: skip
def test_the_update_does_not_depend_on_the_layout(method, dropout, layout):
  """Batch 32 at once = one at a time = packed, with uneven masks; what is dropped out, too.

  The mean of microbatch means, which several trainers take, is another number here.
  """
  train, base, fresh = start(method, common.config(), dropout)
  layout = {'micros': None} | layout
  data = [common.batch(common.examples(32, seed), **layout) for seed in range(10)]
  if layout['rows'] == 1 and layout.get('packed'):
    most = max(int(b['micro']) for b in data)
    data = [
      common.batch(common.examples(32, seed), **(layout | {'micros': most})) for seed in range(10)
    ]
    assert len({int(b['micro']) for b in data}) > 1
  assert_equal_runs(
    common.run(train, base, fresh, data), reference_layout(method, dropout), atol=2e-5
  )
  assert train.traces == train.executables == 1


def test_the_loss_is_the_token_mean_of_the_step():
  cfg = common.config()
  train, _, fresh = start('full', cfg)
  given = common.batch(common.examples(6, 3), rows=2)
  value, _ = train.gradients(None, fresh, given)
  flat = {k: v.reshape(-1, v.shape[-1]) for k, v in given.items() if np.ndim(v) == 4}
  hidden = decoder.forward(
    cfg, fresh.trained, flat['tokens'], flat['positions'], flat['segments'], dtype=jnp.float32
  )
  logs = jax.nn.log_softmax(hidden @ decoder.head_kernel(fresh.trained))[:, :-1]
  nll = -np.take_along_axis(np.asarray(logs), flat['tokens'][:, 1:, None], 2)[..., 0]
  weight = flat['loss_weight'][:, 1:]
  np.testing.assert_allclose(value, [(nll * weight).sum() / weight.sum()], rtol=1e-5)
  means = [(n * w).sum() / w.sum() for n, w in zip(np.split(nll, 3), np.split(weight, 3))]  # noqa: B905
  assert abs(np.mean(means) - value[0]) > 1e-3  # the defect would show


def cohort():
  """Four runs that differ in everything a cohort may differ in."""
  cfg = common.config()
  kinds = [
    {'learning_rate': 1e-3, 'schedule': 'constant', 'total_steps': 12},
    {'learning_rate': 5e-3, 'schedule': 'cosine', 'total_steps': 10, 'warmup_steps': 2},
    {'learning_rate': 2e-3, 'schedule': 'linear', 'total_steps': 5, 'weight_decay': 0.1},
    {'learning_rate': 1e-2, 'schedule': 'cosine', 'total_steps': 12, 'clip_norm': 0.1},
  ]
  ranks, seeds = [2, 4, 8, 1], [11, 5, 7, 3]
  hypers = [
    common.hypers(cfg, lora_scale=16 / rank, dropout_rate=0.1 * i, **kind)
    for i, (rank, kind) in enumerate(zip(ranks, kinds, strict=True))
  ]
  data = [
    [common.batch(common.examples(4 + r, 10 * r + s), rows=3, micros=3) for s in range(12)]
    for r in range(4)
  ]
  return cfg, ranks, seeds, hypers, data


@functools.cache
def cohort_run(dropout):
  cfg, ranks, seeds, hypers, data = cohort()
  base = common.params(cfg)
  adapter = common.adapter(cfg, ranks, seeds)
  train, fresh = common.make(cfg, 'lora', adapter, hypers, seeds=seeds, use_dropout=dropout)
  losses, snapshots = [], []
  for step in range(12):
    fresh, metrics = train(base, fresh, common.stack_runs([d[step] for d in data]))
    losses.append(np.asarray(metrics['loss']))
    snapshots.append(jax.tree.map(np.asarray, fresh))
  assert train.traces == train.executables == 1
  return np.array(losses), snapshots


@pytest.mark.parametrize('dropout', [False, True])
def test_a_cohort_equals_its_runs_alone(dropout):
  cfg, ranks, seeds, hypers, data = cohort()
  losses, snapshots = cohort_run(dropout)
  for r in (0, 1, 2, 3) if not dropout else (2, 3):
    steps = int(hypers[r].total_steps)
    adapter = common.adapter(cfg, [ranks[r]], [seeds[r]])
    train, fresh = common.make(
      cfg, 'lora', adapter, [hypers[r]], seeds=[seeds[r]], use_dropout=dropout
    )
    want, _, after = common.run(train, common.params(cfg), fresh, data[r][:steps])
    np.testing.assert_allclose(losses[:steps, r], want[:, 0], atol=1e-5)
    mine = trees.flatten(lora.one_run(snapshots[-1].trained, r))
    for path, leaf in trees.flatten(lora.one_run(after.trained, 0)).items():
      rank = ranks[r]
      cut = mine[path][..., :rank] if path.endswith('lora_a') else mine[path][:, :rank]
      np.testing.assert_allclose(cut, leaf, atol=2e-5, err_msg=path)
      rest = mine[path][..., rank:] if path.endswith('lora_a') else mine[path][:, rank:]
      assert not rest.any()  # padded ranks stay zero


def test_a_lane_may_hold_any_run():
  """Blocks in whatever lanes and microbatches, with fillers: the same sums and gradients."""
  cfg = common.config()
  adapter = common.adapter(cfg, [4, 2, 4, 3], [0, 1, 2, 3])
  train, fresh = common.make(cfg, 'lora', adapter, [common.hypers(cfg)] * 4)
  sizes = (1, 2, 9, 4)  # examples; 1, 1, 3 and 2 blocks of three rows
  given = common.stack_runs([common.batch(common.examples(n, n), rows=3, micros=3) for n in sizes])
  base = common.params(cfg)
  loss, grads = train.gradients(base, fresh, given)
  blocks = [(run, micro) for run, count in enumerate((1, 1, 3, 2)) for micro in range(count)]
  for order in (range(7), (6, 2, 0, 3, 5, 1, 4)):
    moved = {k: np.zeros_like(v) for k, v in given.items()} | {'micro': np.int32(2)}
    for place, block in enumerate(order):
      lane, micro = place % 4, place // 4
      moved['run'][lane, micro] = blocks[block][0]
      for name in ('tokens', 'loss_weight', 'positions', 'segments'):
        moved[name][lane, micro] = given[name][blocks[block]]
    again, others = train.gradients(base, fresh, moved)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), others, grads)
    _, metrics = train(base, jax.tree.map(jnp.copy, fresh), moved)
    want = [(given['loss_weight'][run] > 0).sum() for run in range(4)]
    assert metrics['supervised'].tolist() == want


def test_a_finished_run_is_frozen_bit_for_bit():
  _, snapshots = cohort_run(False)
  of_run = lambda snapshot, r: jax.tree.leaves(
    jax.tree.map(lambda x: x[r], (snapshot.trained, snapshot.moments))
  )
  for before, after in zip(of_run(snapshots[4], 2), of_run(snapshots[-1], 2), strict=True):
    np.testing.assert_array_equal(before, after)
  changed = zip(of_run(snapshots[4], 0), of_run(snapshots[-1], 0), strict=True)
  assert any(np.any(a != b) for a, b in changed)
  assert snapshots[-1].step == 12


@pytest.mark.parametrize('method', METHODS)
def test_nothing_is_learnt_from_a_failed_step(method):
  """A non-finite run freezes at once and for good; the others of its cohort go on."""
  cfg = common.config()
  base = common.params(cfg)
  good = common.batch(common.examples(4, 1), rows=4)
  if method == 'full':
    train, fresh = common.make(cfg, 'full', base, [common.hypers(cfg)])
    base, data = None, good
    fresh, _ = train(base, fresh, data)
    fresh.trained['final_norm']['scale'] = fresh.trained['final_norm']['scale'].at[0].set(jnp.nan)
  else:
    adapter = common.adapter(cfg, [4, 4], [0, 1])
    train, fresh = common.make(cfg, 'lora', adapter, [common.hypers(cfg)] * 2)
    data = common.stack_runs([good, good])
    fresh, _ = train(base, fresh, data)
    leaf = fresh.trained['layers']['attn']['q']
    leaf['lora_a'] = leaf['lora_a'].at[0, 0, 0, 0].set(jnp.inf)
  before = jax.tree.map(np.array, fresh)
  for _ in range(2):
    fresh, metrics = train(base, fresh, data)
  after = jax.tree.map(np.array, fresh)
  assert bool(np.atleast_1d(after.failed)[0])
  pick = (lambda x: x) if method == 'full' else (lambda x: x[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(pick(a), pick(b)),
    (before.trained, before.moments),
    (after.trained, after.moments),
  )
  if method == 'full':
    assert after.step == before.step
  else:
    assert after.failed.tolist() == [True, False] and after.step == before.step + 2
    assert np.isfinite(metrics['loss'][1])
    b = lambda s: s.trained['layers']['attn']['q']['lora_b'][1]
    assert np.any(b(after) != b(before))


def test_a_failure_is_for_good():
  """A later good batch does not take a failed run on: its step is missing from the state."""
  cfg = common.config()
  base = common.params(cfg)
  train, fresh = common.make(cfg, 'full', base, [common.hypers(cfg)])
  data = common.batch(common.examples(4, 1), rows=4)
  broken = jax.tree.map(lambda x: x * jnp.nan, fresh.trained)
  fresh, metrics = train(None, fresh._replace(trained=broken), data)
  assert metrics['nonfinite'] == 1
  fresh, metrics = train(None, fresh._replace(trained=jax.tree.map(jnp.copy, base)), data)
  assert np.isfinite(metrics['loss'][0]) and fresh.step == 0
  jax.tree.map(np.testing.assert_array_equal, fresh.trained, base)


def test_a_step_without_supervised_tokens_changes_nothing():
  cfg = common.config()
  train, fresh = common.make(cfg, 'full', common.params(cfg), [common.hypers(cfg)])
  data = common.batch(common.examples(4, 1), rows=4)
  fresh, _ = train(None, fresh, data)
  before = jax.tree.map(np.array, fresh)
  fresh, metrics = train(None, fresh, data | {'loss_weight': 0 * data['loss_weight']})
  assert metrics['loss'] == 0 and metrics['nonfinite'] == 0 and metrics['supervised'] == 0
  jax.tree.map(np.testing.assert_array_equal, before.trained, jax.tree.map(np.array, fresh.trained))


def test_one_trace_for_every_hyper_parameter():
  cfg = common.config()
  train, fresh = common.make(cfg, 'full', common.params(cfg), [common.hypers(cfg)])
  for i, changes in enumerate(
    [{}, {'schedule': 'cosine'}, {'clip_norm': 0.0, 'b1': 0.5}, {'layers': [1]}]
  ):
    fresh = fresh._replace(hypers=jax.tree.map(jnp.asarray, common.hypers(cfg, **changes)))
    fresh, _ = train(None, fresh, common.batch(common.examples(2 + i, i), rows=1, micros=5))
  assert train.traces == train.executables == 1


def test_layers_left_out_statically_equal_those_masked():
  cfg = common.config()
  results = []
  for other in (True, False):
    given = [common.hypers(cfg, layers=[0, 1])]
    train, fresh = common.make(cfg, 'full', common.params(cfg), given, other_trained=other)
    results.append(common.run(train, None, fresh, [common.batch(common.examples(4), rows=4)] * 2))
  assert_equal_runs(*results, atol=1e-7)


@functools.cache
def one_device(method):
  return sharded_run(method, None)


def sharded_run(method, sizes):
  cfg = common.config(hidden_size=32, num_attention_heads=4, vocab_size=136)
  base = common.params(cfg)
  given = [common.hypers(cfg, lora_scale=2.0)]
  trained = base if method == 'full' else common.adapter(cfg, [4], [0])
  mesh = base_shardings = shardings = None
  if sizes:
    mesh = meshes.make_mesh(**sizes)
    base_shardings = trees.unflatten(hf.param_shardings(cfg, mesh))
    base = jax.device_put(base, base_shardings)
    shardings = base_shardings
    if method == 'lora':
      named = {}
      for path, leaf in trees.flatten(trained).items():
        module, side = path.rsplit('/', 1)
        fans = next(r.axes for r in families.rows(cfg) if r.path == f'{module}/kernel')
        named[path] = (rules.adapter_axes(fans)[side], leaf.shape)
      shardings = trees.unflatten(rules.shardings(named, mesh))
  train, fresh = common.make(cfg, method, trained, given, mesh=mesh, shardings=shardings)
  losses = []
  for step in range(20):
    data = common.batch(common.examples(32, step, vocab=136), rows=8, row_length=40, packed=True,
                        micros=4)  # fmt: skip
    if mesh is not None:
      rows = NamedSharding(mesh, PartitionSpec(None, None, ('data', 'fsdp')))
      whole = NamedSharding(mesh, PartitionSpec())
      data = {k: jax.device_put(v, rows if np.ndim(v) == 4 else whole) for k, v in data.items()}
    fresh, metrics = train(None if method == 'full' else base, fresh, data)
    losses.append(float(metrics['loss'][0]))
  assert train.traces == train.executables == 1
  if shardings is not None:
    for tree in (fresh.trained, fresh.moments.mu, fresh.moments.nu):
      jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(s)), tree,
                   shardings)  # fmt: skip
  return losses, jax.tree.map(np.array, fresh.trained)


@pytest.mark.parametrize(
  'method, sizes',
  [
    ('full', {'fsdp': 8}),
    ('full', {'data': 8, 'fsdp': 1}),
    ('full', {'data': 2, 'fsdp': 4}),
    ('full', {'fsdp': 4, 'tensor': 2}),
    ('full', {'data': 2, 'fsdp': 2, 'tensor': 2}),
    ('lora', {'fsdp': 8}),
    ('lora', {'fsdp': 4, 'tensor': 2}),
  ],
  ids=str,
)
def test_eight_devices_equal_one(method, sizes):
  assert jax.device_count() == 8
  losses, after = sharded_run(method, sizes)
  want, want_after = one_device(method)
  np.testing.assert_allclose(losses, want, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), after, want_after)
