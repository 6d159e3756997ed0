"""JMMLU: MMLU in Japanese, with some subjects about Japan (nlp-waseda/JMMLU).

No harness defines it, and the published table's jmmlu-0shot is another exam in Japanese, of 57
subjects and 14,042 questions, so no reading fills it. The release has 56, of which 53 may be passed
on freely. The prompts and the Japanese names of subjects are ours, in the likeness of `mmlu`'s
without shots (there are no dev questions), and columns are named by the number of subjects
('jmmlu53'). Both readings are the mean of the subjects' means; under `ll` a letter
follows '答え:' after a space.
"""

from collections.abc import Sequence

from sft_jax.evals.benchmark import Benchmark, Choose, Files, Generate, Item, Prompt, Round
from sft_jax.evals.parse import lettered
from sft_jax.evals.tasks import exams, variants

_HUB = 'nlp-waseda/JMMLU'

SUBJECTS = {
  'abstract_algebra': '抽象代数学',
  'anatomy': '解剖学',
  'astronomy': '天文学',
  'business_ethics': '企業倫理',
  'clinical_knowledge': '臨床知識',
  'college_biology': '大学の生物学',
  'college_chemistry': '大学の化学',
  'college_computer_science': '大学のコンピュータ科学',
  'college_mathematics': '大学の数学',
  'college_medicine': '大学の医学',
  'college_physics': '大学の物理学',
  'computer_security': 'コンピュータセキュリティ',
  'conceptual_physics': '概念物理学',
  'econometrics': '計量経済学',
  'electrical_engineering': '電気工学',
  'elementary_mathematics': '初等数学',
  'formal_logic': '形式論理学',
  'global_facts': '世界の事実',
  'high_school_biology': '高校の生物学',
  'high_school_chemistry': '高校の化学',
  'high_school_computer_science': '高校のコンピュータ科学',
  'high_school_european_history': '高校のヨーロッパ史',
  'high_school_geography': '高校の地理',
  'high_school_macroeconomics': '高校のマクロ経済学',
  'high_school_mathematics': '高校の数学',
  'high_school_microeconomics': '高校のミクロ経済学',
  'high_school_physics': '高校の物理学',
  'high_school_psychology': '高校の心理学',
  'high_school_statistics': '高校の統計学',
  'human_aging': '人間の老化',
  'human_sexuality': '人間の性',
  'international_law': '国際法',
  'japanese_civics': '日本の公民',
  'japanese_geography': '日本の地理',
  'japanese_history': '日本史',
  'japanese_idiom': '日本語の慣用句',
  'jurisprudence': '法理学',
  'logical_fallacies': '論理的誤謬',
  'machine_learning': '機械学習',
  'management': '経営学',
  'marketing': 'マーケティング',
  'medical_genetics': '遺伝医学',
  'miscellaneous': '雑学',
  'moral_disputes': '道徳的論争',
  'nutrition': '栄養学',
  'philosophy': '哲学',
  'prehistory': '先史学',
  'professional_accounting': '専門的な会計学',
  'professional_medicine': '専門的な医学',
  'professional_psychology': '専門的な心理学',
  'public_relations': '広報',
  'security_studies': '安全保障研究',
  'sociology': '社会学',
  'virology': 'ウイルス学',
  'world_history': '世界史',
  'world_religions': '世界の宗教',
}


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The questions of all subjects there are; nothing to take shots from."""
  items = []
  for subject in exams.subjects_in(files, 'jmmlu/*.csv', '.csv', tuple(SUBJECTS)):
    rows = files.rows(f'jmmlu/{subject}.csv', hub=f'{_HUB}:{subject}@test', columns=exams.COLUMNS)
    items += exams.subject_items(rows, subject)
  return exams.by_subjects('jmmlu', items, published=0), []


def ask_ll(item: Item, shots: Sequence[Item]) -> Prompt:
  """Our Japanese form of lm-eval's MMLU prompt."""
  head = f'以下は{SUBJECTS[item.group]}に関する選択問題（解答付き）です。\n\n'
  return exams.letter_prompt(item, shots, head, '答え:')


def ask_gen(item: Item, shots: Sequence[Item]) -> Prompt:
  """Our Japanese form of OpenCompass's MMLU prompt without shots."""
  del shots  # there is nothing to take them from
  text = (
    f'{SUBJECTS[item.group]}に関する単一選択問題があります。'
    'A、B、C、またはDで答えてください。\n'
    f'Q: {item.fields["question"]}\n{lettered(item.fields["choices"])}\n'
    '順を追って考えましょう。A: '
  )
  return Prompt(question=(Round('user', text),))


(_ITEM,) = exams.example(
  (('日本で最も高い山はどれか？', ('富士山', '北岳', '槍ヶ岳', '浅間山'), 'A'),),
  'high_school_geography',
)

BENCHMARK = Benchmark(
  name='jmmlu',
  version=1,
  read=read,
  readings={
    'll': Choose(ask=ask_ll, choices=exams.letters, grade=exams.choose_letter, macro=True),
    'gen': Generate(
      ask=ask_gen,
      grade=exams.first_option_grade,
      max_new=256,
      macro=True,
    ),
  },
  shots=(0,),
  size=7536,
  example=(_ITEM, ()),
  prompt_hash={'ll': 'e6347955fa33', 'gen': '15442ec7b896'},
  licence='CC BY-SA 4.0 (53 subjects), CC BY-NC-ND 4.0 (3)',
  variant=variants.variant,
)
