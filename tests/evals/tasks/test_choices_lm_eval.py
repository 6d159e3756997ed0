"""Reading `ll` of the multiple-choice benchmarks against lm-eval's own tasks on the same data.

The tasks are built from lm-eval's YAML files, with nothing replaced but where data come from and,
where lm-eval would draw shots at random, that the first are taken. Prompts, continuations and
scores must be equal.
"""

import json
import pathlib

import numpy as np
import pytest

from sft_jax.evals import prompts
from sft_jax.evals.benchmark import Choices
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.tasks import arc, boolq, cmmlu, hellaswag, mmlu, piqa, truthfulqa
from tests.evals.tasks import choice_files

lm_eval = pytest.importorskip('lm_eval')
TASKS = pathlib.Path(lm_eval.__file__).parent / 'tasks'
BENCHMARKS = {
  'hellaswag': (hellaswag.BENCHMARK, 'hellaswag/hellaswag.yaml'),
  'boolq': (boolq.BENCHMARK, 'super_glue/boolq/default.yaml'),
  'mmlu': (mmlu.BENCHMARK, 'mmlu/default/mmlu_{}.yaml'),
  'cmmlu': (cmmlu.BENCHMARK, 'cmmlu/cmmlu_{}.yaml'),
  'arc_easy': (arc.EASY, 'arc/arc_easy.yaml'),
  'arc_challenge': (arc.CHALLENGE, 'arc/arc_challenge.yaml'),
  'piqa': (piqa.BENCHMARK, 'piqa/piqa.yaml'),
}
EXAMS = {
  'mmlu': ('anatomy', 'moral_scenarios', 'us_foreign_policy'),
  'cmmlu': ('agronomy', 'elementary_chinese', 'logical'),
}


@pytest.fixture(params=['ours', 'real'])
def directory(request, tmp_path):
  """Data of our own, and the real ones with a few items of each."""
  if request.param == 'ours':
    choice_files.write(tmp_path)
    return tmp_path
  data = request.getfixturevalue('data_dir')
  for path in (data / 'bench').iterdir():
    (tmp_path / path.name).symlink_to(path)
  for name, source in (
    *[(f'{name}_train.jsonl', f'{name}_train.jsonl') for name in ('arc_easy', 'arc_challenge')],
    ('piqa_train.jsonl', 'piqa_train_2000.jsonl'),
  ):
    (tmp_path / name).symlink_to(data / 'train' / source)
  # HellaSwag's training split is not at hand in its own fields; any rows in them will do as shots.
  rows = (data / 'bench/hellaswag_val_5000.jsonl').read_text().splitlines()
  (tmp_path / 'hellaswag_train.jsonl').write_text('\n'.join(rows[-20:]))
  return tmp_path


def hub_row(name, row, subject):
  """A row of a file as lm-eval gets it from the hub."""
  if name == 'boolq':
    return {'passage': row['passage'], 'question': row['question'], 'label': int(row['answer'])}
  if name == 'mmlu':
    choices = [row[letter] for letter in 'ABCD']
    answer = 'ABCD'.index(row['answer'])
    return {'question': row['question'], 'subject': subject, 'choices': choices, 'answer': answer}
  return {key: value for key, value in row.items() if key}


def built(tmp_path, yaml_file, splits, shots):
  """lm-eval's task on rows of ours, with its requests by document."""
  from lm_eval.tasks import TaskManager

  folder = tmp_path / 'lm_eval'
  folder.mkdir(exist_ok=True)
  files = {}
  for split, rows in splits.items():
    files[split] = str(folder / f'{split}.jsonl')
    pathlib.Path(files[split]).write_text('\n'.join(json.dumps(row) for row in rows))
  config = {
    'include': str(TASKS / yaml_file),
    'task': f'local_{pathlib.Path(yaml_file).stem}',
    'dataset_path': 'json',
    'dataset_name': None,
    'dataset_kwargs': {'data_files': files, 'cache_dir': str(folder / 'cache')},
  }
  if shots and 'dev' not in splits:
    config['fewshot_config'] = {'sampler': 'first_n'}
  if 'test' in splits and 'train' not in splits and 'dev' not in splits:
    config |= {'training_split': None, 'validation_split': None}
  # JSON is YAML.
  (folder / 'local.yaml').write_text(json.dumps(config))
  manager = TaskManager(include_path=str(folder), include_defaults=False)
  (task,) = manager.load([config['task']])['tasks'].values()
  task.set_config('num_fewshot', shots)
  task.build_all_requests()
  requests = {}
  for instance in task.instances:
    requests.setdefault(instance.doc_id, []).append(instance)
  return task, [requests[index] for index in sorted(requests)]


def cases(name, directory, count):
  """(YAML file, rows by split, our items, our pool) for lm-eval's task or tasks of a benchmark."""
  benchmark, yaml_file = BENCHMARKS[name]
  files = LocalFiles(str(directory))
  items, pool = benchmark.read(files)
  if name in EXAMS:
    there = {item.group for item in items}
    for subject in [subject for subject in EXAMS[name] if subject in there]:
      rows = {}
      for split in ('test', 'dev'):
        path = (
          f'mmlu/{split}/{subject}_{split}.csv'
          if name == 'mmlu'
          else f'cmmlu/{split}/{subject}.csv'
        )
        columns = ('question', *'ABCD', 'answer') if name == 'mmlu' else ()
        found = files.rows(path, columns=columns)[:count]
        rows[split] = [hub_row(name, row, subject) for row, _ in found]
      yield (
        yaml_file.format(subject),
        rows,
        [item for item in items if item.group == subject][:count],
        [item for item in pool if item.group == subject],
      )
    return
  source = items[0].source.rsplit(':', 1)[0]
  split = 'test' if name.startswith('arc') else 'validation'
  raw = [row for row, _ in files.rows(source)]
  if name == 'boolq':
    train = [raw[index] for index in (0, 2, 4, 6, 8)]
  else:
    train = [row for row, _ in files.rows(f'{name}_train.jsonl')][:8]
  rows = {split: raw[:count], 'train': train}
  if split == 'test':
    rows['validation'] = train
  yield (
    yaml_file,
    {key: [hub_row(name, row, '') for row in part] for key, part in rows.items()},
    items[:count],
    pool,
  )


def scores_of(task, requests, logprobs):
  """lm-eval's scores of a document, by our names."""
  results = [(float(value), False) for value in logprobs]
  found = task.process_results(requests[0].doc, results)
  return {key.replace('_', '-'): float(value) for key, value in found.items()}


@pytest.mark.parametrize('shots', [0, 2])
@pytest.mark.parametrize('name', BENCHMARKS)
def test_prompts_and_scores(name, shots, directory, tmp_path):
  benchmark, _ = BENCHMARKS[name]
  reading = benchmark.readings['ll']
  draw = np.random.default_rng(0)
  compared = 0
  for yaml_file, rows, items, pool in cases(name, directory, count=24):
    task, documents = built(tmp_path, yaml_file, rows, shots)
    assert len(documents) == len(items)
    for item, requests in zip(items, documents, strict=True):
      chosen = prompts.same_group(item, pool, shots)
      if item in chosen:
        continue  # BoolQ's shots: lm-eval would take others for these questions
      prompt = reading.ask(item, chosen)
      texts = reading.choices(item)
      ours = [(prompts.raw_text(prompt), prompt.delimiter + text) for text in texts]
      assert ours == [request.args for request in requests]
      logprobs = -np.round(draw.gamma(2, 4, len(texts)), 1)  # rounded, so that some are equal
      choices = Choices(texts, logprobs, logprobs > 0, np.ones(len(texts), np.int64))
      theirs = scores_of(task, requests, logprobs)
      found = reading.grade(item, choices).scores
      assert found == {measure: theirs[measure] for measure in reading.measures}
      compared += 1
  assert compared >= (20 if (directory / 'mt_bench').exists() else 1)


def test_truthfulqa(directory, tmp_path):
  """Both of lm-eval's tasks, given our lists of choices."""
  reading = truthfulqa.BENCHMARK.readings['ll']
  items = truthfulqa.BENCHMARK.read(LocalFiles(str(directory)))[0][:40]
  rows = []
  for item in items:
    texts = reading.choices(item)
    true = [int(text in (item.fields['best'], *item.fields['correct'])) for text in texts]
    wrong = [text for text, label in zip(texts, true, strict=True) if not label]
    first = {'choices': [item.fields['best'], *wrong], 'labels': [1] + [0] * len(wrong)}
    both = {'choices': list(texts), 'labels': true}
    rows.append({'question': item.fields['question'], 'mc1_targets': first, 'mc2_targets': both})
  one, ones = built(tmp_path, 'truthfulqa/truthfulqa_mc1.yaml', {'validation': rows}, 0)
  two, twos = built(tmp_path, 'truthfulqa/truthfulqa_mc2.yaml', {'validation': rows}, 0)
  draw = np.random.default_rng(0)
  for item, first, both in zip(items, ones, twos, strict=True):
    prompt = reading.ask(item, ())
    texts = reading.choices(item)
    ours = [(prompts.raw_text(prompt), prompt.delimiter + text) for text in texts]
    assert ours == [request.args for request in both]
    assert {request.args for request in first} <= set(ours)
    logprobs = -draw.gamma(2, 4, len(texts))
    grade = reading.grade(item, Choices(texts, logprobs, logprobs > 0, np.ones(len(texts))))
    of_first = [logprobs[ours.index(request.args)] for request in first]
    assert grade.scores['mc1'] == scores_of(one, first, of_first)['acc']
    assert grade.scores['mc2'] == pytest.approx(scores_of(two, both, logprobs)['acc'], abs=1e-12)


@pytest.mark.parametrize('name, subjects', [('mmlu', 57), ('cmmlu', 67)])
def test_heads_of_all_subjects(name, subjects):
  import yaml

  benchmark, pattern = BENCHMARKS[name]
  example, _ = benchmark.example
  found = 0
  for path in sorted((TASKS / pattern).parent.glob(f'{name}_*.yaml')):
    config = yaml.safe_load(path.read_text())
    if 'description' in config:
      item = type(example)('x', example.fields, group=config['dataset_name'])
      assert benchmark.readings['ll'].ask(item, ()).head == config['description']
      found += 1
  assert found == subjects
