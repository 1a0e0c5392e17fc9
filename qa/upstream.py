"""Workarounds for defects of PyTorch, transformers, accelerate and other libraries, in one place.

Import this before anything that imports PyTorch. To see whether a workaround is still needed, remove it and run its test.
The tests whose names say `still` fail without that, as soon as a library is fixed.

| workaround | library | symptom without it | test |
|---|---|---|---|
| TORCH_DEVICE_BACKEND_AUTOLOAD | PyTorch 2.13 | loads Habana's plugin before its mode is set | test_preflight.py |
| skip_unused_libraries | transformers 4.55.4, optimum-habana 1.21.2 | imports libraries that no run uses | test_screen.py |
| RankDevice | accelerate 1.10.1 | calls the CPU of a rank `cpu:0`, where torch.load fails | test_ranks.py |
| use_store | PyTorch 2.13 | waits for ranks without a word, and listens on every address of the machine | test_ranks.py |
| STRAY_METRICS | optimum-habana 1.21.2 | a time of day among the metrics | test_the_library_still_writes_stray_metrics |
| EpochOrder | accelerate 1.10.1 | a run resumed in a later epoch takes the first one's batches | test_resume.py |
| ResumedEpochs | transformers 4.55.4 | a resumed epoch loses its last update | test_an_epoch_that_is_resumed_within_... |
| RestoredCallbacks | transformers 4.55.4 | a resumed run forgets its evaluations without progress | test_resume.py |
| FinishedTraining | transformers 4.55.4 | a finished run that resumes takes another step | test_resume.py |
| BestCheckpoint | transformers 4.55.4 | `--save_strategy best` saves the last model | test_save_strategy_best |
| write_finite_states | transformers 4.55.4 | a NaN in trainer_state.json, which is no JSON | test_identity.py |
| GivenBatchSize | transformers 4.55.4 | a resumed run keeps its checkpoint's batch size, whatever the flag | test_identity.py |
| ReadableWeights | safetensors 0.8.0 | nobody except the owner can read model.safetensors | test_the_library_still_hides_weights |
| GaudiCorrections | optimum-habana 1.21.2 | accumulated gradients grow with the steps; ValueError for written answers in eager mode | test_the_corrections_are_still_needed, test_gaudi_flags.py |
| the same, `_wrap_model` | optimum-habana 1.21.2 | an evaluation of a compiled training is not compiled | test_readme.py |
| checkpoint_layers | optimum-habana 1.21.2 | `--gradient_checkpointing` fails in lazy mode and with DeepSpeed, or never ends | test_gradient_checkpointing... |
| support_albert_checkpointing | transformers 4.55.4 | ALBERT cannot checkpoint its layers | test_gradient_checkpointing_needs_... |
| trunk_mapping | transformers 4.55.4 | Llama for questions loads no tensor of a causal checkpoint | test_the_library_still_loses_causal_weights |
| changed_configurations | transformers 4.55.4 | a configuration runs code of the hub (CVE-2026-4372) | test_attention.py |
| own_generation_ignored | transformers 4.55.4 | a model's folder runs code for generation | test_attention.py |
| patch_attention | optimum-habana 1.21.2 | BERT and XLM-RoBERTa train without dropout of their attention | test_gaudi_flags.py |
| patch_bart | optimum-habana 1.21.2 | AttributeError `_shape` in BART's forward | test_bart_still_needs_its_patch |
| HubAdapter | huggingface_hub 0.36 | HTTP 429 or a broken download ends the run, a mute hub holds it forever | test_hub.py |
| exchange_through_gloo | DeepSpeed 0.19.8 | compiles for a minute before it trains on CPUs; ZeRO-3 loads no model there | test_deepspeed.py |
| qa.workers.ServedWorkers | optimum-habana 1.21.2 | forks a process that holds a card: data loader workers hang | test_ranks.py |
| let_threads_finish | PyTorch 2.13 | a finished rank ends with SIGABRT | test_ranks.py |

Workarounds of a line or two stay with the code that needs them, with the version in a comment: `git grep "1\\.21\\.2"`.
"""

import dataclasses
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


# PyTorch would load Habana's plugin on import: before PT_HPU_LAZY_MODE is set, and with a traceback where it cannot.
# `qa.preflight.why_no_gaudi` loads it. So the scripts import nothing that imports PyTorch before this module.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# All ranks have the same warnings, so rank 0 alone prints them. Every rank prints its errors.
IS_RANK_0 = os.environ.get("RANK", "0") == "0"

if not IS_RANK_0:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

import torch  # noqa: E402


del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]  # other processes may want it

import accelerate.utils.other  # noqa: E402
import huggingface_hub  # noqa: E402
import requests  # noqa: E402
import torch.distributed.rendezvous  # noqa: E402
import transformers.utils.import_utils  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from urllib3.util.retry import Retry  # noqa: E402

from qa.files import to_json  # noqa: E402


logger = logging.getLogger(__name__)

# optimum-habana leaves these among the metrics: a time of day, and a duration (misspelt) that it means to subtract from
# the throughput but looks up under another name. `qa.speed.evaluation_speed` needs neither.
STRAY_METRICS = ("_end_time", "_graph_compliation_duration")


def use_store(store: torch.distributed.Store) -> None:
    """Let PyTorch's process group use the store at which the ranks have met (`qa.meeting`), and make none itself."""
    # The module's name is also that of a function.
    sys.modules["torch.distributed.rendezvous"].TCPStore = lambda *args, **kwargs: store


def skip_unused_libraries() -> None:
    """Keep the libraries from importing others that no run of the scripts needs; call it before they import models.

    - transformers needs scikit-learn for assisted generation, SciPy for object detection, pandas for tables, and
      `datasets` to find out whether data is of its class. Rows are lists before a trainer sees them.
    - accelerate needs DeepSpeed to find out whether a model is its engine, which only an imported DeepSpeed can have made.
    - optimum-habana imports trainers of sentence-transformers, and with them all of the above.
    """
    for library in ("sklearn", "scipy", "datasets", "pandas"):
        setattr(transformers.utils.import_utils, f"_{library}_available", False)
    accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules
    unused = sys.modules["optimum.habana.sentence_transformers"] = ModuleType("unused")
    unused.__getattr__ = lambda name: None


class EpochOrder:
    """Mixin for a trainer: seed and epoch alone decide the order of the training features, so a resumed epoch has it too.

    accelerate's `skip_first_batches` returns a loader that counts epochs from 0 again. With --group_by_length transformers
    draws the order from the global random state, which is another one in a resumed run, and on each rank after some dropout.
    """

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        return None if sampler is None else SeededSampler(sampler, lambda: sum(self.seed_and_epoch()))

    def seed_and_epoch(self) -> tuple[int, int]:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return seed, int(self.state.epoch or 0)


class SeededSampler(torch.utils.data.Sampler):
    """Yield the features of a sampler that has a `generator`, which gets the seed of `seed()` each time."""

    def __init__(self, sampler: torch.utils.data.Sampler, seed: Callable[[], int]):
        self.sampler, self.seed = sampler, seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed())
        return iter(self.sampler)


class ResumedEpochs:
    """Mixin for a trainer: an epoch that a run resumes within takes its last update, of fewer batches than the others.

    transformers (and optimum-habana's copy) compares with a whole epoch's number of batches there, so the last gradients
    stayed for the next epoch's first update; see https://github.com/huggingface/transformers/issues/22143. Before each
    batch both check that `gradient_accumulation_steps` divides the number of batches so far. For these batches it is
    therefore set to a number that divides only the last one's count.
    """

    batches, handed_out, last_batch = None, 0, None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.handed_out = len(samples) + (self.handed_out if epoch_iterator is self.batches else 0)
        self.batches, self.accumulated = epoch_iterator, self.args.gradient_accumulation_steps
        resumed = self.handed_out < len(self.callback_handler.train_dataloader)
        if resumed and 0 < len(samples) < self.accumulated:
            self.args.gradient_accumulation_steps = self.last_batch = self.handed_out
        return samples, items

    def training_step(self, *args, **kwargs):
        if self.last_batch is None:
            return super().training_step(*args, **kwargs)
        self.args.gradient_accumulation_steps = self.accumulated
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.last_batch = None
        else:
            self.args.gradient_accumulation_steps = self.last_batch
        return loss


class RestoredCallbacks:
    """Mixin for a trainer: callbacks, such as early stopping, go on in a resumed run where they were.

    transformers restores them with --restore_callback_states_from_checkpoint only, and then with the earlier command's
    settings. It saves no checkpoint in a run that resumed without the state of one of its callbacks (KeyError).
    """

    def _load_callback_state(self) -> None:
        for name, callback in self.callbacks_with_state().items():
            saved = self.state.stateful_callbacks.setdefault(name, callback.state())
            for attribute, value in saved["attributes"].items():
                setattr(callback, attribute, value)

    def save_state(self) -> None:
        """Save the trainer's state with that of the callbacks, which transformers leaves as the last checkpoint has it."""
        self.state.stateful_callbacks |= {
            name: callback.state() for name, callback in self.callbacks_with_state().items()
        }
        super().save_state()

    def callbacks_with_state(self) -> dict:
        callbacks = [*self.callback_handler.callbacks, self.control]
        return {type(callback).__name__: callback for callback in callbacks if hasattr(callback, "state")}


class FinishedTraining:
    """Mixin for a trainer: a training that resumes at its end takes no further step.

    transformers asks whether a training is at its end after a step only, so each resume within an epoch took another one.
    """

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        self.resumed = None
        if resume_from_checkpoint is not None:
            self.resumed = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text())
            # Early stopping would count another one than that which is due.
            self.args.eval_on_start = self.args.eval_strategy != "no" and evaluation_is_due(self.resumed)
        output = super().train(resume_from_checkpoint, **kwargs)
        self.state.num_train_epochs = self.epochs
        return output

    def set_initial_training_values(self, *args, **kwargs) -> tuple:
        self.epochs, *others, steps = super().set_initial_training_values(*args, **kwargs)
        patience = self.args.early_stopping_patience
        ended = self.resumed is not None and has_ended(self.resumed, steps=steps, patience=patience)
        return 0 if ended else self.epochs, *others, steps


def has_ended(state: dict, steps: int, patience: int | None) -> bool:
    """Return whether a training has taken all its `steps`, or was stopped early for want of progress.

    Args:
        state: the content of a `trainer_state.json`.
        patience: the value of --early_stopping_patience.
    """
    early_stopping = state["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
    without_progress = early_stopping.get("early_stopping_patience_counter", 0)
    return state["global_step"] >= steps or (patience is not None and without_progress >= patience)


def evaluation_is_due(state: dict) -> bool:
    """Return whether a run was stopped before the evaluation of its last step had come to its end.

    Args:
        state: the content of a checkpoint's `trainer_state.json`.
    """
    return state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_evaluate", False)


class Resumable(ResumedEpochs, FinishedTraining, RestoredCallbacks):
    """Mixin for a trainer: a run that was stopped and resumes is the same run."""


class GivenBatchSize:
    """Mixin for a trainer: a run that resumes has the batch size of its flags.

    transformers, and optimum-habana's copy, takes the one of the checkpoint's `trainer_state.json`. That is right only for
    --auto_find_batch_size.
    """

    def _inner_training_loop(self, batch_size: int | None = None, *args, **kwargs):
        given = batch_size if self.args.auto_find_batch_size else self.args.train_batch_size
        return super()._inner_training_loop(given, *args, **kwargs)


class ReadableWeights:
    """Mixin for a trainer: files of weights can be read by those who can read the files next to them.

    safetensors 0.8.0 creates its files for their owner alone, whatever the umask.
    """

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        for weights in folder.glob("model*.safetensors"):
            shutil.copymode(folder / "training_args.bin", weights)


def write_finite_states() -> None:
    """Let `trainer_state.json` be JSON, with null for numbers that are not finite: transformers writes NaN and Infinity."""
    from transformers import TrainerState

    def save_to_json(state, json_path: str) -> None:
        Path(json_path).write_bytes(to_json(dataclasses.asdict(state)))

    TrainerState.save_to_json = save_to_json


class RankDevice:
    """Mixin for training arguments: a CPU has no number, as in `cpu:0`, onto which torch.load cannot resume a rank."""

    @property
    def device(self) -> torch.device:
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


class BestCheckpoint:
    """Mixin for a trainer: with --save_strategy best, --load_best_model_at_end does load the best model.

    transformers notes the best step with the strategies `steps` and `epoch` only.
    """

    def _determine_best_metric(self, metrics, trial):
        better = super()._determine_best_metric(metrics, trial)
        if better and self.args.save_strategy == "best":  # the checkpoint is written next, see `qa.saving`
            self.state.best_global_step = self.state.global_step
        return better


class GaudiCorrections:
    """Mixin for GaudiTrainer: corrections of its loss, gradient checkpointing, compiled evaluation and written answers."""

    compiled = None

    def _wrap_model(self, model, training=True, dataloader=None):
        """Return the model to train, or for an evaluation the compiled one where flags compile.

        GaudiTrainer compiles the model that it trains, and evaluates the one within it.
        """
        wrapped = super()._wrap_model(model, training, dataloader)
        if training and self.args.gradient_checkpointing:
            checkpoint_layers(self.model, self.args.gradient_checkpointing_kwargs)
        if training or not self.args.torch_compile or self.is_deepspeed_enabled:  # DeepSpeed compiles a model in place
            return wrapped
        if self.compiled is None:
            self.compiled = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.compiled

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss; in training divided by the accumulated steps, as transformers' `training_step` divides it.

        GaudiTrainer divides in lazy mode with --pipelining_fwd_bwd only, so that gradients grow with the steps.
        """
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        divided = self.args.use_lazy_mode and self.args.pipelining_fwd_bwd
        by_tokens = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        if not model.training or divided or by_tokens or self.compute_loss_func is not None:
            return computed
        steps = self.current_gradient_accumulation_steps
        return (computed[0] / steps, computed[1]) if return_outputs else computed / steps

    def prediction_step(self, *args, **kwargs):
        """Do what the base does; GaudiSeq2SeqTrainer waits for other ranks in eager mode, also where there are none."""
        rank = self.args.local_rank
        self.args.local_rank = rank if self.args.world_size > 1 else -1
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.args.local_rank = rank

    def get_batch_samples_transformers(self, epoch_iterator, num_batches, device):
        """Return what transformers' own does: GaudiTrainer's miscounts the labels of batches of different widths."""
        return self.get_batch_samples(epoch_iterator, num_batches, device)


def trunk_mapping(model: torch.nn.Module) -> dict[str, str] | None:
    """Return the `key_mapping` with which `from_pretrained` finds the trunk's tensors; None where it needs none.

    The models for question answering of Llama, Qwen2 and others call their trunk `transformer`. The trunk's own class, and
    so every other checkpoint of the family, calls it `model`. `from_pretrained` takes a checkpoint without the model's
    prefix for a bare trunk, in which the family's prefix must go.
    """
    own = model.base_model_prefix
    family = getattr(getattr(model, own, None), "base_model_prefix", own)
    return None if family == own else {rf"^{family}\.": ""}


@contextmanager
def changed_configurations(change: Callable[[dict], None]) -> Iterator[None]:
    """Let a function change, in place, the content of each config.json that transformers reads within, before it is used."""
    from transformers import PretrainedConfig

    read = vars(PretrainedConfig)["_dict_from_json_file"]

    def read_and_change(cls, file) -> dict:
        settings = read.__func__(cls, file)
        change(settings)
        return settings

    PretrainedConfig._dict_from_json_file = classmethod(read_and_change)
    try:
        yield
    finally:
        PretrainedConfig._dict_from_json_file = read


@contextmanager
def own_generation_ignored(model_args) -> Iterator[None]:
    """Let a model that is loaded within bring no `custom_generate/generate.py`, and report that it is not run.

    transformers 4.55.4 runs the one of a folder without --trust_remote_code, and loads no model of the hub that has one.
    """
    from transformers import GenerationMixin

    load = GenerationMixin.load_custom_generate

    def ignore(model, name, **kwargs):
        file = "custom_generate/generate.py"
        if (Path(name) / file).is_file() if Path(name).is_dir() else huggingface_hub.file_exists(name, file):
            logger.warning(
                f"{name}: its code for generation, {file}, is not run; add --trust_remote_code if you trust it"
            )
        raise FileNotFoundError(file)  # the libraries go on without

    GenerationMixin.load_custom_generate = load if model_args.trust_remote_code else ignore
    try:
        yield
    finally:
        GenerationMixin.load_custom_generate = load


def patch_bart() -> None:
    """Let BART run on a Gaudi: optimum-habana's forwards expect an older BART than transformers 4.55.4 has.

    Those forwards keep static shapes in generation, which transformers' own do not. So they get back what transformers
    removed: splitting states into heads, attention over flat and scaled states, a flag, and the reordering of cached
    states between beams. Each new object of training arguments installs optimum-habana's forwards again.
    """
    from optimum.habana.transformers.models.bart import modeling_bart as habana
    from transformers.models.bart import modeling_bart as bart

    bart.BartAttention._shape = split_heads
    habana.eager_attention_forward = attention_of_flat_heads
    bart.BartDecoder._use_sdpa = False
    bart.BartModel.forward = bart_forward
    bart.BartForConditionalGeneration._reorder_cache = staticmethod(reorder_beams)


def split_heads(attention, states: torch.Tensor, length: int, batch: int) -> torch.Tensor:
    """Split states of shape (batch, length, heads * size) into (batch, heads, length, size)."""
    return states.view(batch, length, attention.num_heads, attention.head_dim).transpose(1, 2).contiguous()


def attention_of_flat_heads(attention, query, key, value, attention_mask, scaling=None, **settings):
    """Call transformers' attention of BART on states of (batch * heads, length, size); the query is scaled already."""
    from transformers.models.bart.modeling_bart import eager_attention_forward

    states = [flat.unflatten(0, (-1, attention.num_heads)) for flat in (query, key, value)]
    return eager_attention_forward(attention, *states, attention_mask, scaling=1.0, **settings)


def bart_forward(model, *args, use_cache: bool | None = None, token_idx: torch.Tensor | None = None, **kwargs):
    """Call optimum-habana's forward of BartModel, which takes the use of a cache for generation: only that has a token_idx."""
    from optimum.habana.transformers.models.bart.modeling_bart import gaudi_BartModel_forward

    use_cache = use_cache if token_idx is not None else False
    return gaudi_BartModel_forward(model, *args, use_cache=use_cache, token_idx=token_idx, **kwargs)


def reorder_beams(past_key_values: tuple, beams: torch.Tensor) -> tuple:
    """Return the decoder's states of the beams that go on; those of the encoder are the same for all beams of a text."""
    return tuple((*(states.index_select(0, beams) for states in layer[:2]), *layer[2:]) for layer in past_key_values)


def patch_attention() -> None:
    """Correct the attention that Habana's kernel computes; each object of training arguments installs optimum-habana's again.

    - BERT and XLM-RoBERTa train with the dropout of their configurations. optimum-habana's forwards pass 0 to the kernel,
      call themselves without an end for what it does not compute, and XLM-RoBERTa's needs a method of an older transformers.
    - With --attn_implementation gaudi_fused_sdpa decoders see no padding and no later tokens: transformers makes masks only
      for the names of attentions that it knows a kind of mask for.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.models.bert.modeling_bert import BertSdpaSelfAttention
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSdpaSelfAttention

    for attention in (BertSdpaSelfAttention, XLMRobertaSdpaSelfAttention):
        attention.forward = fused_attention
    ALL_MASK_ATTENTION_FUNCTIONS.register("gaudi_fused_sdpa", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def fused_attention(
    attention,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    head_mask: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    past_key_value=None,
    output_attentions: bool = False,
    cache_position: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """Compute the self-attention of an encoder with Habana's kernel; anything else as `eager` does.

    Args:
        hidden_states: (batch, length, size).
        attention_mask: added to the scores, (batch, 1, length or 1, length).
    """
    absolute = attention.position_embedding_type == "absolute"
    others = (head_mask, encoder_hidden_states, past_key_value)
    if not absolute or output_attentions or attention.is_decoder or any(other is not None for other in others):
        eager = type(attention).__base__.forward
        return eager(attention, hidden_states, attention_mask, *others, output_attentions, cache_position)
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    heads = (*hidden_states.shape[:-1], attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        layer(hidden_states).view(heads).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
    )
    mask = None if attention_mask is None else attention_mask.to(query.dtype)
    dropout, softmax = (attention.dropout_prob, "None") if attention.training else (0.0, "fast")
    mixed = FusedSDPA.apply(query, key, value, mask, dropout, False, None, softmax, False)
    return mixed.transpose(1, 2).flatten(2), None


def checkpoint_layers(model: torch.nn.Module, settings: dict | None) -> None:
    """Let a model that a GaudiTrainer trains checkpoint its layers by PyTorch's own function, without reentrant autograd.

    optimum-habana replaces that function. Its own calls a private one by position, which has one more parameter since
    PyTorch 2.9; the one for DeepSpeed makes a tuple of a layer's only tensor. With reentrant autograd its T5, which hands
    the bias of positions on by name, would repeat its layers without end.

    Args:
        settings: the value of --gradient_checkpointing_kwargs.
    """
    torch.utils.checkpoint.checkpoint = transformers.modeling_utils.checkpoint = checkpoint
    model.gradient_checkpointing_enable({**(settings or {}), "use_reentrant": False})


def support_albert_checkpointing() -> None:
    """Let ALBERT train with --gradient_checkpointing: transformers supports that for almost every other model."""
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.models.albert.modeling_albert import AlbertLayerGroup, AlbertPreTrainedModel

    AlbertLayerGroup.__bases__ = (GradientCheckpointingLayer,)
    AlbertPreTrainedModel.supports_gradient_checkpointing = True


class PatientRetry(Retry):
    """Wait, and say so, where the hub limits requests (HTTP 429); other failures are not tried again here."""

    RETRY_AFTER_STATUS_CODES = frozenset({429})
    MOST, LONGEST_WAIT = 5, 60  # times, seconds

    @classmethod
    def on_limits(cls) -> "PatientRetry":
        return cls(cls.MOST, connect=0, read=False, redirect=0, other=0, status_forcelist=[429], raise_on_status=False)

    def sleep(self, response=None) -> None:
        """Wait as long as the hub asks for, but not longer than LONGEST_WAIT; else 1, 2, 4, 8 and 16 s."""
        number = len(self.history)
        asked = self.get_retry_after(response) if response is not None else None
        seconds = min(2 ** (number - 1) if asked is None else asked, self.LONGEST_WAIT)
        logger.warning(f"The hub limits requests (HTTP 429); trying again in {seconds:.0f} s [{number}/{self.MOST}]")
        time.sleep(seconds)


class HubAdapter(requests.adapters.HTTPAdapter):
    """Downloads that huggingface_hub 0.36 tries again, where on its own it would give up at once.

    - HTTP 429: see PatientRetry. huggingface_hub 1.0 waits too: https://github.com/huggingface/huggingface_hub/pull/3437.
    - A connection that breaks in the middle of a file: huggingface_hub goes on from there after a
      `requests.ConnectionError`, but requests raises a ChunkedEncodingError.
    - Questions to the hub without a limit of time, such as those for a list of files or a model's licence: a hub that
      does not answer would hold the run forever. Their callers know a ConnectionError, which a ReadTimeout is not.
    """

    def __init__(self):
        super().__init__(max_retries=PatientRetry.on_limits())

    def send(self, request, *args, timeout=None, **kwargs):
        if timeout is not None or request.method not in ("GET", "HEAD"):  # an upload may take its time
            return super().send(request, *args, timeout=timeout, **kwargs)
        try:
            return super().send(request, *args, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, **kwargs)
        except requests.ReadTimeout as error:
            raise requests.ConnectTimeout(error, request=request) from error

    def build_response(self, request, response):
        built = super().build_response(request, response)
        content = built.iter_content

        def iter_content(*args, **kwargs):
            try:
                yield from content(*args, **kwargs)
            except requests.exceptions.ChunkedEncodingError as error:
                raise requests.ConnectionError(error, request=request) from error

        built.iter_content = iter_content
        return built


def patient_session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HubAdapter())
    return session


if not constants.HF_HUB_OFFLINE:
    huggingface_hub.configure_http_backend(patient_session)


def exchange_through_gloo() -> None:
    """Let DeepSpeed's ranks on CPUs exchange tensors through gloo.

    DeepSpeed 0.19.8 compiles an exchange of its own in the first run: for a minute, and with a traceback where there is
    no compiler. With ZeRO-3 it counts one rank when a model is loaded, since accelerate 1.10.1 does not start it on CPUs.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.distributed.is_initialized():
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def let_threads_finish() -> None:
    """Give the threads of collectives and gradients the time to release their last tensors.

    A thread that does so while Python is being torn down aborts the process: a rank whose work was done would end with
    SIGABRT (https://github.com/pytorch/pytorch/issues/190489; seen with gloo). Destroying the process group is not
    enough, because DDP and DeepSpeed hold it and its threads live on.
    """
    time.sleep(0.5)  # they need milliseconds, and a core, which other ranks may have
