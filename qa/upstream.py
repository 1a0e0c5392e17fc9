"""Workarounds for defects of PyTorch, transformers, accelerate and optimum-habana, and nothing else.

Import this before anything that imports PyTorch.
"""

import logging
import os
import warnings


# PyTorch would load Habana's plugin itself: before PT_HPU_LAZY_MODE is settled, and with a traceback where it cannot.
# `why_no_gaudi` loads it. So nothing that the scripts import before this module may import PyTorch, or transformers.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# What libraries and these scripts warn of, all ranks do: rank 0 says it. Errors are told by every rank.
IS_RANK_0 = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0"

if not IS_RANK_0:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

import torch  # noqa: E402


del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]  # other processes may want it

import transformers.utils.import_utils  # noqa: E402


# transformers imports scikit-learn for one function of assisted generation, which nothing here uses: 1.5 s of CPU.
transformers.utils.import_utils._sklearn_available = False

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR  # noqa: E402


# What optimum-habana 1.21.2 leaves among the metrics: a time of day, and a duration (misspelt) that it means to leave out
# of the throughput but looks for under another name. `evaluation_speed` counts without that.
STRAY_METRICS = ("_end_time", "_graph_compliation_duration")


class ResumedEpochs:
    """Mixin for a trainer: also an epoch that a run resumes within takes its last update, of fewer batches than the others.

    transformers 4.55 and optimum-habana 1.21.2 look for a whole epoch's number of batches there, so the gradients stayed
    for the next epoch's first update. Before each batch both look whether `gradient_accumulation_steps` divides how many
    they have had: for these batches it is a number that divides but their last.
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


class BestCheckpoint:
    """Mixin for a trainer: with --save_strategy best, --load_best_model_at_end does load the best model.

    transformers 4.55.4 notes the best checkpoint with the strategies `steps` and `epoch` only, so the last model was saved
    as the best. tests/test_run_qa.py, test_save_strategy_best, reports when this can go.
    """

    def _determine_best_metric(self, metrics, trial):
        better = super()._determine_best_metric(metrics, trial)
        if better and self.args.save_strategy == "best":  # the checkpoint is written next
            self.state.best_global_step = self.state.global_step
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.state.best_model_checkpoint = os.path.join(self._get_output_dir(trial), name)
        return better


class GaudiCorrections:
    """What GaudiTrainer of optimum-habana 1.21.2 gets wrong, put right; tests/test_gaudi_trainer.py tells what can go."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """In training, the loss divided by the accumulated steps, as transformers' `training_step` divides it.

        GaudiTrainer's does so only in lazy mode with --pipelining_fwd_bwd, so that gradients grow with the steps.
        """
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        divided = self.args.use_lazy_mode and self.args.pipelining_fwd_bwd
        by_tokens = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        if not model.training or divided or by_tokens or self.compute_loss_func is not None:
            return computed
        steps = self.current_gradient_accumulation_steps
        return (computed[0] / steps, computed[1]) if return_outputs else computed / steps

    def get_batch_samples_transformers(self, epoch_iterator, num_batches, device):
        """transformers' own: GaudiTrainer's cannot count the labels of batches of different widths, and does not say so."""
        return self.get_batch_samples(epoch_iterator, num_batches, device)


def patch_bart() -> None:
    """Lets BART run on a Gaudi: optimum-habana 1.21.2's forwards expect an older BART than transformers 4.55.4 has.

    They serve for static shapes in generation, which transformers' own cannot, so they get back what has gone: splitting
    states into heads, attention over states that lie flat and are scaled already, a flag, and the reordering of cached
    states between beams. Every new object of training arguments puts optimum-habana's forwards into transformers again.
    tests/test_gaudi_models.py tells when this can go.
    """
    from optimum.habana.transformers.models.bart import modeling_bart as habana
    from transformers.models.bart import modeling_bart as bart

    bart.BartAttention._shape = split_heads
    habana.eager_attention_forward = attention_of_flat_heads
    bart.BartDecoder._use_sdpa = False
    bart.BartModel.forward = bart_forward
    bart.BartForConditionalGeneration._reorder_cache = staticmethod(reorder_beams)


def split_heads(attention, states: torch.Tensor, length: int, batch: int) -> torch.Tensor:
    """(batch, length, heads * size) -> (batch, heads, length, size)"""
    return states.view(batch, length, attention.num_heads, attention.head_dim).transpose(1, 2).contiguous()


def attention_of_flat_heads(attention, query, key, value, attention_mask, scaling=None, **settings):
    """transformers' attention of BART for states of (batch * heads, length, size); `scaling` is in the query already."""
    from transformers.models.bart.modeling_bart import eager_attention_forward

    states = [flat.unflatten(0, (-1, attention.num_heads)) for flat in (query, key, value)]
    return eager_attention_forward(attention, *states, attention_mask, scaling=1.0, **settings)


def bart_forward(model, *args, use_cache: bool | None = None, token_idx: torch.Tensor | None = None, **kwargs):
    """optimum-habana's forward of BartModel, which takes a cache's use for generation: there alone is a token_idx."""
    from optimum.habana.transformers.models.bart.modeling_bart import gaudi_BartModel_forward

    use_cache = use_cache if token_idx is not None else False
    return gaudi_BartModel_forward(model, *args, use_cache=use_cache, token_idx=token_idx, **kwargs)


def reorder_beams(past_key_values: tuple, beams: torch.Tensor) -> tuple:
    """The decoder's own states of the beams that go on; those of the encoder are the same for all beams of a text."""
    return tuple((*(states.index_select(0, beams) for states in layer[:2]), *layer[2:]) for layer in past_key_values)
