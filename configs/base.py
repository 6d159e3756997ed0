"""Every key of a run, declared once. Other configs start from `get_config()` and change values.

Override on the command line with `--config.train.learning_rate=2e-5`; an unknown key is refused, in
a config file too.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The defaults: full fine-tuning with the study's hyper-parameters and template."""
  config = ConfigDict()

  config.model = ConfigDict()
  # Hub id (optionally id@revision), directory (local, or gs://… in an object store), .gguf file, or
  # wheel:<package>==<version>; of --mode=eval also run:WORKDIR[@STEP], or endpoint:MODEL@URL
  # (OpenAI-compatible).
  config.model.path = ''
  config.model.name = ''  # Its name in the table; '' is the last part of the path.
  # none | int8 | int4: kernels of a frozen base in integers (LoRA only).
  config.model.quantize = 'none'
  config.model.adapter = ''  # --mode=eval: directory of a PEFT adapter to score on the model.

  config.data = ConfigDict()
  # A row of sft_jax/data/named.py; a mixture of rows and paths in shares, mix:alpaca_cleaned=0.7,
  # lima=0.3; all (the study's ten, in equal shares); without:lima (the same, one left out).
  config.data.name = ''
  # Or instead a file (json, jsonl, csv, parquet), hf:ORG/NAME[:CONFIG][@SPLIT], tfds:NAME.
  config.data.path = ''
  # Directory of copies of the named data sets, as NAME.jsonl or under their published names; '' is
  # the hub.
  config.data.dir = ''
  config.data.format = 'auto'  # Record shape; see FORMATS in sft_jax/data/formats.py.
  config.data.size = 0  # Training records to keep, of a mixture in all; 0 keeps all.
  # Of these, the share whose responses the base finds most or least likely, or those around the
  # median: ppl:low:SHARE | ppl:mid:SHARE | ppl:high:SHARE, such as ppl:low:0.5; '' is all.
  config.data.select = ''
  config.data.template = 'study'  # study | chat (the model's own chat template).
  config.data.loss_on = 'response'  # response | all
  config.data.heldout_share = 0.1  # Share held out by content hash, for perplexity.
  config.data.heldout_max = 256  # At most this many held-out records; 0 keeps all.
  config.data.bench_files = ''  # Comma-separated benchmark files to search the training data for.

  config.train = ConfigDict()
  config.train.method = 'full'  # full | lora
  config.train.epochs = 10.0
  config.train.batch_size = 32  # Examples per optimiser step, over all devices.
  config.train.learning_rate = 1e-5
  config.train.schedule = 'cosine'  # cosine | linear | constant
  config.train.warmup_ratio = 0.0  # Share of all steps.
  config.train.end_ratio = 0.0  # Learning rate at the end, as a share of its peak.
  config.train.beta1 = 0.9
  config.train.beta2 = 0.999
  config.train.eps = 1e-8
  config.train.weight_decay = 0.0  # Never on norms and biases.
  config.train.clip_norm = 1.0  # Global gradient norm; 0 switches clipping off.
  config.train.max_length = 2048  # Tokens an example may have.
  config.train.too_long = 'truncate'  # truncate | drop | error
  config.train.layers = 'all'  # Or a band FIRST:LAST (half open, from 0): train those layers only.
  config.train.snapshot_at = 'every:1'  # every:EPOCHS | EPOCH,EPOCH,… (fractions allowed) | sSTEP,…
  config.train.param_dtype = 'float32'  # float32 (master copy) | bfloat16
  config.train.compute_dtype = 'auto'  # auto: bfloat16 on GPU and TPU, float32 on CPU.
  config.train.param_rounding = 'nearest'  # nearest | stochastic (needed for bfloat16 parameters)
  config.train.allow_lost_updates = False  # Permit bfloat16 parameters rounded to nearest.
  config.train.seeds = ConfigDict()
  config.train.seeds.data = 42  # Order of examples and choice of data.size records.
  config.train.seeds.init = 42  # Initial adapters.
  config.train.seeds.dropout = 42
  config.train.remat = 'auto'  # auto | none | dots | full | offload: what layers recompute.
  # auto | xla | splash (TPU) | cudnn (GPU): plain attention is taken where a kernel does not suit.
  config.train.attention = 'auto'  # auto: splash on TPUs, cudnn on GPUs, else xla.
  config.train.loss_chunk = 0  # Supervised positions a row per chunk of the loss; 0 chooses.
  config.train.layout = 'packed'  # packed | padded; the update is the same.
  config.train.row_length = 0  # Tokens a packed row; 0 chooses.
  config.train.rows_per_micro = 0  # Rows in memory at once; 0 chooses.

  config.lora = ConfigDict()
  config.lora.rank = 8
  config.lora.alpha = 32.0
  config.lora.dropout = 0.05
  # Or, between commas, PEFT names (q_proj,v_proj) or regular expressions of whole names or paths
  # (layers/attn/.*); a comma inside brackets belongs to its expression.
  config.lora.targets = 'all-linear'

  config.eval = ConfigDict()
  # Comma-separated: perplexity, builtin, or benchmarks as NAME[:Kshot][:ll|:gen] (see
  # sft_jax/evals/benchmarks.py), such as gsm8k:4shot:gen,mmlu:5shot:ll; a file
  # of your own, custom:FILE.jsonl (sft_jax/evals/tasks/custom.py); or a task of
  # lm-evaluation-harness, lm_eval:NAME[:Kshot] or lm_eval:FILE.yaml
  # (sft_jax/evals/lm_eval_tasks.py).
  config.eval.tasks = 'perplexity'
  # Directory of benchmark files in their original formats; '' is the hub.
  config.eval.data_dir = ''
  config.eval.template = 'train'  # train (as in training) | raw | study | chat: of benchmarks.
  config.eval.precision = 0.0  # ± points each benchmark must give: a seeded subset; 0 asks all.
  config.eval.seed = 0  # Of subsets, sampling and the order put to judges.
  config.eval.slots = 32  # Texts that are written at once.
  # Run programs that models wrote (humaneval, mbpp), in a sandbox: no | yes | weak (also where this
  # platform lacks some of its walls).
  config.eval.run_code = 'no'
  # Most requests or tokens a judge may cost, such as '200 requests, 3e6 tokens'; '' is no limit.
  config.eval.judge_budget = ''
  config.eval.endpoint_budget = ''  # The same, for endpoint:MODEL@URL as the model to score.
  # About how many seconds all benchmarks of one snapshot may take; 0 for no limit. Each gets a
  # seeded subset, of equal ± points.
  config.eval.budget_seconds = 0.0
  config.eval.limit = 0  # Items of each task; 0 takes all.
  config.eval.train_limit = 128  # Training examples scored under the base (ppl-train); 0 for none.
  config.eval.samples = 0  # Held-out prompts answered by the base and by each snapshot.
  config.eval.max_new_tokens = 96
  config.eval.tokens_per_batch = 4096
  # --mode=eval: score the base with parts of what was trained into it: bands of layers FIRST-LAST
  # (from 0, the last included) between commas, or how many bands of about equal size; '' scores
  # the model as it is.
  config.eval.graft = ''
  # The base of config.model.path, where that is a whole model or a delta, and no run: a path as
  # there.
  config.eval.graft_base = ''

  # --mode=compare: two rows, as DIR or DIR@STEP (a number, base, best, last): the workdirs of runs
  # or evaluations.
  config.compare = ConfigDict()
  config.compare.a = ''  # The row to start from, such as the base.
  config.compare.b = ''
  config.compare.task = ''  # Only this task (gsm8k, gsm8k:4shot:gen) or column; '' is all.
  config.compare.common = False  # Compare what both were asked where one was asked more.

  config.checkpoint = ConfigDict()
  # Save training state this often; 0 never. It is saved before each snapshot and at a stop anyway.
  config.checkpoint.every_seconds = 600.0
  config.checkpoint.every_steps = 0  # And every so many steps; 0 never.
  # Training states kept for resuming, besides the newest, which the next step may prove bad. A
  # finished run keeps none.
  config.checkpoint.keep_states = 1
  config.checkpoint.keep_weights = (
    'best'  # Weights of snapshots: all | best (and last) | last | none
  )

  config.export = ConfigDict()
  # none | hf (adapters merged) | peft | delta (the hf directory as its difference from the base)
  config.export.format = 'none'
  config.export.dtype = 'bfloat16'  # float32 | bfloat16 | float16
  config.export.snapshot = 'last'  # last | best
  config.export.step = 0  # That step instead, where its weights are kept; 0: as the line before.
  # Of a study, only runs whose last rows say COLUMN=VALUE, between commas; '' is all.
  config.export.only = ''

  # A study: the runs that a config's `sweep()` and this grid describe (sft_jax/study/plan.py).
  config.study = ConfigDict()
  # KEY=VALUE,VALUE;KEY=… with keys as here, or short: base, quantize, data, path, size, template,
  # method, epochs, batch, lr, schedule, warmup, wd, length, layers, seed (all three), rank, alpha,
  # dropout, targets. A value with a comma stands in single quotes. Each combination is a run.
  config.study.grid = ''
  # Most LoRA runs trained as one program; 0 chooses.
  config.study.cohort_size = 0
  # What all runs must have equal: none | examples | supervised (tokens) | steps | flops.
  config.study.equal = 'none'
  # local: this process works on the study, with any others that are started on the same --workdir.
  # ray: such processes are started all over a Ray cluster that sees this --workdir.
  config.study.engine = 'local'
  config.study.resources = 'CPU:1'  # Ray: what a process takes of one node, such as TPU:4 or GPU:1.
  config.study.workers = 0  # Ray: processes at once; 0 is as many as the cluster has room for.
  # Most that --workdir may take, in GB and in files (directories count); 0 sets no limit.
  config.study.quota_gb = 0.0
  config.study.quota_files = 0
  # How often a failure that may pass (network, missing file) is tried again.
  config.study.retries = 2
  config.study.retry_failed = False  # Try runs again that an earlier start gave up.
  # When nothing is free, stay for cohorts that other processes are at, to follow those that die.
  config.study.wait = True
  # Seconds without a sign of life after which a process on another machine counts as dead.
  config.study.lease_seconds = 180.0

  # --mode=release: writes the models of a --workdir to its directory release/, ready for the hub.
  config.release = ConfigDict()
  # Directories, between commas, of bases: whole models are released as deltas against the only one
  # given; deltas whose base the hub does not have need theirs.
  config.release.bases = ''
  config.release.push = ''  # ORG/NAME: also upload it there, with the token in HF_TOKEN.

  # --mode=probe: tables of a study's data and models that its report reads beside scores.
  config.probe = ConfigDict()
  # Probe texts, the same for all models: a file of records with prompt, answer and task; '' takes
  # the questions of the benchmarks in config.eval.tasks, with their right answers.
  config.probe.texts = ''
  config.probe.each = 150  # Texts of each task.
  config.probe.states = 'mean'  # mean | last (token) | none: states kept of each text and layer.
  config.probe.snapshots = 'last'  # last | all: weights that runs have kept.
  config.probe.records = 0  # Examples of each data set that count; 0 takes all.
  # Only runs whose last rows say COLUMN=VALUE, between commas: lora=True,seed-data=1; '' is all.
  config.probe.only = ''

  # --mode=report: the analysis of a table of results.
  config.report = ConfigDict()
  config.report.table = ''  # csv or parquet with the released header; '' is the study's own.
  # Checks of the table whose findings change what is analysed (all findings are told): all | none |
  # names between commas, of CHECKS in sft_jax/analysis/checks.py.
  config.report.checks = 'all'
  config.report.bootstrap = 2000  # Draws, for what is tested by draws: predictors, the map.
  config.report.seed = 0  # Of the draws.

  # --mode=choose: which of several data sets to train on, by a race within a budget. All else
  # (model, method, epochs, config.data.size at full size) is as in a run.
  config.choose = ConfigDict()
  # Candidates, between commas: data sets, mixtures or files as in config.data, whole or, as in
  # lima#500, at most so many records; one with a comma in it stands in single quotes.
  config.choose.data = ''
  # What is to be improved, between commas: benchmarks as in config.eval.tasks, or a file of your
  # own.
  config.choose.target = ''
  config.choose.guard = ''  # Benchmarks that may not fall: TASK>=POINTS, such as mmlu:ll>=-1.0.
  # What may be spent: of time, 6h, 90m or 600s, evaluation included; or, in training alone, such as
  # '3e6 tokens', '1e17 flops' or '20000 examples'.
  config.choose.budget = ''
  config.choose.rates = ''  # Learning rates to try, between commas; '' takes config.train's.
  # Examples at each rung, between commas, 0 for all; '' is a sixteenth, a quarter and all of
  # config.data.size, or of the largest candidate.
  config.choose.sizes = ''
  config.choose.seeds = 2  # Runs of each candidate and learning rate at a rung.
  config.choose.final_seeds = 3  # The same at full size.
  config.choose.least_gain = 0.0  # Points over the base that are worth having.
  config.choose.error = 0.05  # Chance that the best candidate is shown to be worse than another.
  config.choose.most_leak = 0.1  # Candidates that hold a larger share of a task are out.
  # Count no gain of an item in which no answer was found before: it may be one of form alone. Where
  # none is found any more that is a loss.
  config.choose.ability_only = True
  # A table of results, csv or parquet, of other models: where it has a target and a candidate's
  # name, the race starts from what it leads to expect.
  config.choose.prior = ''
  # MODEL@URL of a served model to compare with, such as the one in production.
  config.choose.endpoint = ''

  # --mode=recommend: what a table of results leads to expect before any training.
  config.recommend = ConfigDict()
  config.recommend.table = ''  # csv or parquet with the released header.
  config.recommend.target = ''  # Score columns of it, between commas; their mean counts.
  # Candidates, between commas: names of the table, or data as in config.choose.data; '' is all of
  # the table.
  config.recommend.data = ''
  config.recommend.base = ''  # The model asked about, by its name in the table: left out of it.
  config.recommend.method = 'full'  # full | lora | both: rows that count.

  # --mode=chat: with --workdir its run, beside the base it was trained from; else config.model.
  config.chat = ConfigDict()
  # A second model to answer beside the first: a path as in config.model.path, run:WORKDIR, or base
  # (of a run or an adapter); none is nobody.
  config.chat.beside = 'auto'  # auto: the base of a run or an adapter, and nobody beside a base.
  # auto: as a run was trained; else the chat template, or study where the model has none.
  config.chat.template = 'auto'  # auto | chat | study | raw
  config.chat.system = ''  # What the models are told before the first question.
  config.chat.max_new_tokens = 256
  config.chat.temperature = 0.0  # 0 writes the likeliest token each time.
  config.chat.seed = 0  # Of what is drawn at a temperature above 0.

  # --mode=show-data: what of the data is shown.
  config.show = ConfigDict()
  config.show.records = 3  # 0 is all.
  config.show.first = 0  # Number of the first, from 0.
  config.show.part = 'train'  # train | heldout
  config.show.steps = 0  # Optimiser steps whose rows are drawn, as packed.

  # --mode=doctor
  config.doctor = ConfigDict()
  config.doctor.bench = False  # Also measure products, copies, all-gathers and a step.
  config.doctor.timeout = 5.0  # Seconds to wait for a hub.

  # --mode=plan: with a topology also what the study takes on chips that need not be here.
  config.plan = ConfigDict()
  # TPU slices, v5e:4x4 (or v5litepod-16), v5p:4x4x4, v6e:8x8, v4; GPUs, h100:8, a100:2x8 (nodes x
  # GPUs). '' plans without.
  config.plan.topology = ''
  # Compile the programs for these chips: yes | no (only count) | auto (yes where this Python can
  # and the study has few programs). TPUs need libtpu, GPUs jax's CUDA plugin; neither needs chips.
  config.plan.compile = 'auto'
  config.plan.evaluation = False  # Compile scoring and decoding too.
  # Look for the best mesh, rows, remat and cohort, and compile so many candidates at most; 0 does
  # not look.
  config.plan.search = 0
  config.plan.tokens = 0  # Tokens an example has on average; 0 takes train.max_length, the most.
  config.plan.room = 1024  # Tokens a written text may have, prompt included.
  # Tokens read in the evaluation of one snapshot, prompts of all tasks, and tokens written; 0
  # counts them from config.eval.tasks: prompts of usual length, answers as long as they may be.
  config.plan.scored = 0.0
  config.plan.written = 0.0
  # Share of the least that steps take which hours assume; 0 takes 0.75 of a GPU's training, as was
  # measured on an H200, and 0.5 of all else. Measure yours.
  config.plan.attained = 0.0
  config.plan.price = 0.0  # Of a chip-hour, in whatever currency.
  config.plan.reference = ''  # What it took others, in words: printed beside the hours.

  config.log = ConfigDict()
  config.log.tensorboard = True  # Events beside metrics.jsonl; the first costs seconds of start.

  # Record what devices do in these steps, such as 10-12 (the first compiles), for TensorBoard or
  # XProf, into `profile` of the workdir; '' does not.
  config.profile = ''

  config.mesh = ConfigDict()
  config.mesh.data = 1  # Replicas of the parameters; -1 fills.
  config.mesh.fsdp = -1  # Devices that share one copy; -1 fills.
  config.mesh.tensor = 1  # Devices that split each matrix.
  config.mesh.allow_idle = False  # Run on the CPU though a GPU or TPU is present.
  config.mesh.wait_seconds = 300  # For the other processes of a program to start.

  # Save and exit with status 3 after this long, and one step or evaluation task; 0 never.
  config.max_seconds = 0.0
  # Models from wheels, compiled programs and benchmarks as tokens (2 GB at most); '' is
  # $SFT_JAX_CACHE or ~/.cache/sft_jax. Models from the hub lie in the hub's own cache (HF_HOME),
  # where other programs find them.
  config.cache_dir = ''
  config.lock()
  return config
