"""The data sets that have a name. Not for reading them: `datasets.py`."""

from typing import Any

# path: what `formats.read_records` takes, or builtin:FILE. revision: commit of the hub data set;
# rows without one take what `main` is when they are fetched, which the run records. columns:
# {field in the data: field of the format}. where: {field: values} of the records that are kept.
# drop: answers whose records are left out. turns: keep so many questions (0: all). records: how
# many were published. files: names of copies in `config.data.dir`, besides NAME.jsonl and the like.
# The licence is the one published with the data.
DATASETS: dict[str, dict[str, Any]] = {
  'builtin': {
    'path': 'builtin:quickstart.jsonl',
    'format': 'messages',
    'licence': 'Apache-2.0',
    'note': 'written for this project: general, code, maths, short answers; has a held-out part',
  },
  'builtin_general': {
    'path': 'builtin:quickstart.jsonl',
    'format': 'messages',
    'where': {'category': ('general',)},
    'records': 93,
    'licence': 'Apache-2.0',
    'note': 'the part of builtin that answers in sentences',
  },
  'builtin_code': {
    'path': 'builtin:quickstart.jsonl',
    'format': 'messages',
    'where': {'category': ('code',)},
    'records': 83,
    'licence': 'Apache-2.0',
    'note': 'the part of builtin that answers in Python',
  },
  'builtin_maths': {
    'path': 'builtin:quickstart.jsonl',
    'format': 'messages',
    'where': {'category': ('maths',)},
    'records': 84,
    'licence': 'Apache-2.0',
    'note': 'the part of builtin that calculates',
  },
  'builtin_short': {
    'path': 'builtin:quickstart.jsonl',
    'format': 'messages',
    'where': {'category': ('short',)},
    'records': 100,
    'licence': 'Apache-2.0',
    'note': 'the part of builtin that answers in a word',
  },
  # The ten data sets of the study (arXiv 2506.14681, App. B).
  'alpaca_cleaned': {
    'path': 'hf:yahma/alpaca-cleaned',
    'revision': '12567cabf869d7c92e573c7c783905fc160e9639',
    'format': 'alpaca',
    'records': 51760,
    'files': ('alpaca_data_cleaned.json', 'alpaca_cleaned_1000.json'),
    'licence': 'CC BY-NC 4.0',
    'note': 'instructions; its card says CC BY 4.0, its source CC BY-NC 4.0',
  },
  'lima': {
    'path': 'hf:GAIR/lima',
    # Its main branch is a script, which `datasets` no longer runs; no commit is pinned.
    'revision': 'refs/convert/parquet',
    'format': 'sharegpt',
    'turns': 1,
    'records': 1030,
    'licence': 'CC BY-NC-SA 4.0 or stricter',
    'note': 'conversations; the first turn of each; gated',
  },
  'ultrachat': {
    'path': 'hf:openchat/ultrachat-sharegpt',
    'revision': '490644c97d3343c40b3ffa62cb7f99a148650e5f',
    'format': 'sharegpt',
    'turns': 1,
    'records': 774000,
    'files': ('ultrachat.jsonl', 'ultrachat_200k_2dialogs.jsonl'),
    'licence': 'MIT',
    'note': 'dialogues, about 774k; the first turn of each. The study does not name its copy',
  },
  'code_alpaca': {
    'path': 'hf:sahil2801/CodeAlpaca-20k',
    'format': 'alpaca',
    'records': 20022,
    'files': ('code_alpaca_20k.json', 'code_alpaca_2k.json'),
    'licence': 'CC BY 4.0',
    'note': 'code instructions',
  },
  'magicoder': {
    'path': 'hf:ise-uiuc/Magicoder-Evol-Instruct-110K',
    'revision': 'b0079beaa0361d82412520b873715bee59cc7dd4',
    'format': 'alpaca',
    'records': 111183,
    'files': ('data-evol_instruct-decontaminated.jsonl',),
    'licence': 'Apache-2.0',
    'note': 'code instructions, decontaminated by its authors',
  },
  'openmath': {
    'path': 'hf:nvidia/OpenMathInstruct-1',
    'revision': '2e123e467011ef2e489422b74ba24fd65d0024cf',
    'format': 'question_answer',
    'columns': {'generated_solution': 'answer'},
    'records': 1800000,
    'licence': 'NVIDIA licence',
    'note': 'solutions with Python code, about 1.8M',
  },
  'math': {
    'path': 'hf:TIGER-Lab/MathInstruct',
    'revision': 'b4fdc323a7be1379c9c7c0b67b1de72dfee2111a',
    'format': 'alpaca',
    'records': 262039,
    'files': ('MathInstruct.json',),
    'licence': 'mixed, see its card',
    'note': 'from 13 sources, reasoning in words and in programs',
  },
  'flan_knowledge': {
    'path': 'hf:Open-Orca/FLAN/flan2021_zsnoopt_submix_data.json',
    'revision': 'ec69480d5afc9829f5a2a0dd7a498effad20e31b',
    'format': 'prompt_completion',
    'columns': {'inputs': 'prompt', 'targets': 'completion'},
    'where': {
      '_task_name': ('bool_q:1.0.0', 'natural_questions_open:1.0.0', 'trivia_qa/rc:1.1.0'),
    },
    'drop': ('none',),
    'files': ('flan2021_zsnoopt_submix_data.json',),
    'licence': 'CC BY 4.0',
    'note': 'BoolQ, NQ and TriviaQA, zero-shot, without options; a file of 12.6 GB',
  },
  'flan_reasoning': {
    'path': 'hf:Open-Orca/FLAN/flan2021_zsnoopt_submix_data.json',
    'revision': 'ec69480d5afc9829f5a2a0dd7a498effad20e31b',
    'format': 'prompt_completion',
    'columns': {'inputs': 'prompt', 'targets': 'completion'},
    'where': {
      '_task_name': (
        *('ai2_arc/ARC-Easy:1.0.0', 'ai2_arc/ARC-Challenge:1.0.0', 'hellaswag:1.1.0'),
        *('winogrande:1.1.0', 'piqa:1.0.0'),
      ),
    },
    'files': ('flan2021_zsnoopt_submix_data.json',),
    'licence': 'CC BY 4.0',
    'note': 'ARC, HellaSwag, WinoGrande and PIQA, zero-shot, without options; a file of 12.6 GB',
  },
  'flan_comprehension': {
    'path': 'hf:Open-Orca/FLAN/flan2021_zsnoopt_submix_data.json',
    'revision': 'ec69480d5afc9829f5a2a0dd7a498effad20e31b',
    'format': 'prompt_completion',
    'columns': {'inputs': 'prompt', 'targets': 'completion'},
    'where': {'_task_name': ('quac:1.0.0', 'squad/v2.0:3.0.0')},
    'drop': ('none',),
    'files': ('flan2021_zsnoopt_submix_data.json',),
    'licence': 'CC BY 4.0',
    'note': 'QuAC and SQuAD 2.0, zero-shot; a file of 12.6 GB',
  },
  'numina': {
    'path': 'hf:AI-MO/NuminaMath-CoT',
    'format': 'messages',
    'records': 859494,
    'files': ('numinamath_cot_sharegpt_1k.jsonl',),
    'licence': 'Apache-2.0',
    'note': '860k competition problems',
  },
  'gsm8k': {
    'path': 'hf:openai/gsm8k:main',
    'format': 'question_answer',
    'records': 7473,
    'files': ('gsm8k_train.jsonl',),
    'licence': 'MIT',
    'note': '7,473 word problems',
  },
  'boolq': {
    'path': 'hf:google/boolq',
    'format': 'question_answer',
    'records': 9427,
    'files': ('boolq_train_2000.jsonl',),
    'licence': 'CC BY-SA 3.0',
    'note': '9,427 yes/no questions on a passage',
  },
  'nq_open': {
    'path': 'hf:google-research-datasets/nq_open',
    'format': 'question_answer',
    'records': 87925,
    'files': ('nq_open_efficientqa_dev.jsonl',),
    'licence': 'CC BY-SA 3.0',
    'note': '87,925 questions; the first answer is trained',
  },
  'trivia_qa': {
    'path': 'hf:mandarjoshi/trivia_qa:rc.nocontext',
    'format': 'question_answer',
    'records': 138384,
    'files': ('triviaqa_rows0-1499.jsonl',),
    'licence': 'Apache-2.0 (release)',
    'note': '138k questions without their documents',
  },
  'arc_easy': {
    'path': 'hf:allenai/ai2_arc:ARC-Easy',
    'format': 'question_answer',
    'records': 2251,
    'files': ('arc_easy_train.jsonl',),
    'licence': 'CC BY-SA 4.0',
    'note': '2,251 questions; the right option is trained, options are not shown',
  },
  'arc_challenge': {
    'path': 'hf:allenai/ai2_arc:ARC-Challenge',
    'format': 'question_answer',
    'records': 1119,
    'files': ('arc_challenge_train.jsonl',),
    'licence': 'CC BY-SA 4.0',
    'note': '1,119 questions; the right option is trained, options are not shown',
  },
  'squad_v2': {
    'path': 'hf:rajpurkar/squad_v2',
    'format': 'question_answer',
    'records': 130319,
    'licence': 'CC BY-SA 4.0',
    'note': '130k questions on a passage; those without an answer are dropped',
  },
}

# The parts of `all`, the study's mixture: arXiv 2506.14681, App. B.
STUDY = (
  *('alpaca_cleaned', 'lima', 'ultrachat', 'code_alpaca', 'magicoder', 'openmath', 'math'),
  *('flan_knowledge', 'flan_reasoning', 'flan_comprehension'),
)
