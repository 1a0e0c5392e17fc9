"""The trainer of encoder-decoders: an answer is written for every window, and scored by its log-probability."""

import inspect
import time
from contextlib import nullcontext
from functools import partial

import torch
from transformers.modeling_outputs import BaseModelOutput

from qa.device import trainer_class
from qa.generation import end_tokens, shift_right
from qa.graphs import CompiledCalls
from qa.lora import has_adapters
from trainer_qa import WholeTraining


class QuestionAnsweringSeq2SeqTrainer(WholeTraining, trainer_class(True)):
    """Train and evaluate models that write the answer: a subclass of GaudiSeq2SeqTrainer or Seq2SeqTrainer.

    Args (beyond those of `AnswerEvaluation` and the base):
        empty_answer: with negatives, the tokens of "no answer" as a label. The model then writes its best text that is
            not empty, and the empty answer is scored as well.

    `post_process_function` takes a list: the tokens written for each feature, (features, length), their
    log-probability, (features,), and with an `empty_answer` its log-probability, (features,).

    `args.generation_max_length` and `args.generation_num_beams` apply to evaluation and to prediction.
    """

    def __init__(self, *args, empty_answer: list[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.empty_answer, self.generation = empty_answer, None
        self.compute_loss_func = self.token_loss

    def token_loss(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        """Return the mean loss of the labels' tokens, in training over those of all ranks and accumulated steps.

        The models' own loss is a mean over one batch of one rank, in which a batch of short answers counts as much as
        one of long answers. transformers 4.55 multiplies the loss by the number of ranks, which is right for this one.
        The loss of T5, which optimum-habana 1.21.2 treats in the same way, becomes too large by that factor.
        """
        if self.label_smoother is not None:
            mean = self.label_smoother(outputs, labels)
        else:
            mean = torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten())
        mean = mean + router_loss(outputs, self.model.config)
        return mean if num_items_in_batch is None else mean * labels.ne(-100).sum() / num_items_in_batch

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Return what the base does, without a cache: nothing reads it, and FSMT would return only the last logits."""
        return super().compute_loss(model, inputs | accepted(self.model, use_cache=False), *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss as in training; with --predict_with_generate keep what answers need of every window.

        These are the tokens that the model writes, (batch, length), their log-probability, (batch,), and with
        negatives the log-probability of the empty answer, (batch,).
        """
        inputs = self._prepare_inputs(inputs)
        if "labels" in inputs:
            first = self.first_rows(inputs["labels"])
            inputs = inputs | {"labels": inputs["labels"].masked_fill(~first[:, None], -100)}
        if prediction_loss_only or not self.args.predict_with_generate:
            return self.loss_alone(model, inputs, ignore_keys), None, None
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with self.compiled_generation():
            _, tokens, _ = super().prediction_step(
                model, read, prediction_loss_only=False, ignore_keys=ignore_keys, **self.generation_settings()
            )
        most = self.args.generation_max_length
        # The libraries pad to the checkpoint's length, which may be 200. The start token is not part of an answer.
        tokens = tokens[:, 1:most]
        if self.args.use_habana:  # one shape for all batches; optimum-habana 1.21.2 returns beams on the host
            tokens = self._pad_tensors_to_max_len(tokens.to(self.args.device), most - 1)
        written = self.written(tokens)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach() if "labels" in inputs else None
            scores = self.scores(model, read, tokens=tokens, written=written)
        # With --ignore_eos, the default on a Gaudi, the model goes on after the end of its answer.
        answers = tokens.masked_fill(~written, self.processing_class.pad_token_id)
        self.keep(self._pad_tensors_to_max_len(answers, most), *scores)  # one width for all batches
        return loss, None, None

    def compiled_generation(self):
        """Return a context in which the model writes with compiled graphs, where flags compile for a Gaudi."""
        if not (self.args.use_habana and self.args.torch_compile):
            return nullcontext()
        if self.generation is None:
            settings = self.accelerator.state.dynamo_plugin.to_kwargs()
            self.generation = CompiledCalls(self.model, self.model.get_encoder(), **settings)
        return self.generation

    def loss_alone(self, model, inputs, ignore_keys) -> torch.Tensor | None:
        """Return the loss of a batch; None without labels, which some models need to run at all."""
        if "labels" in inputs:
            loss, _, _ = super().prediction_step(model, inputs, prediction_loss_only=True, ignore_keys=ignore_keys)
            return loss
        self.begun.append(time.time())
        return None

    def scores(self, model, read: dict, tokens: torch.Tensor, written: torch.Tensor) -> list[torch.Tensor]:
        """Return the log-probability of the `written` ones of `tokens`, with negatives also that of the empty answer.

        Router logits are not asked for: no answer needs them, and Switch would look for them in encoder states that
        are passed to it. `input_ids` are always passed, since FSMT looks ahead without them.
        """
        read = read | accepted(self.model, use_cache=False, output_router_logits=False)
        shifted = partial(shift_right, start=self.model.generation_config.decoder_start_token_id, padding=0)
        output = model(**read, decoder_input_ids=shifted(tokens))
        found = [log_probability(output.logits, tokens, written)]
        if self.empty_answer is not None:
            empty = torch.tensor(self.empty_answer, device=tokens.device).expand(len(tokens), -1)
            encoded = BaseModelOutput(output.encoder_last_hidden_state)  # ProphetNet takes no tuple
            output = model(**read, encoder_outputs=encoded, decoder_input_ids=shifted(empty))
            found.append(log_probability(output.logits, empty, torch.ones_like(empty)))
        return found

    def generation_settings(self) -> dict:
        settings = {"max_length": self.args.generation_max_length, "num_beams": self.args.generation_num_beams}
        settings["max_new_tokens"] = None  # a checkpoint's value would override the length
        if self.empty_answer is not None:
            # The start token counts too. optimum-habana 1.21.2 counts `min_new_tokens` from the longest answer's end.
            settings["min_length"] = len(self.empty_answer) + 1
        return settings

    def written(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (batch, length) whether a token belongs to the answer: up to its end token, without the padding."""
        ends = torch.tensor(end_tokens(self.model.generation_config), device=tokens.device)
        end = torch.isin(tokens, ends)
        after_end = end.cumsum(1) - end.long() > 0
        return ~after_end & (end | (tokens != self.processing_class.pad_token_id))


def accepted(model, **arguments) -> dict:
    """Return those arguments that the model's forward pass knows."""
    model = model.get_base_model() if has_adapters(model) else model
    known = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def router_loss(outputs, config) -> torch.Tensor | float:
    """Return the loss of routers that choose among experts, as the models that return one add it to their own loss."""
    losses = {"z_loss": "router_z_loss_coef", "aux_loss": "router_aux_loss_coef"}
    terms = [
        getattr(config, weight) * outputs[f"{part}_{name}"]
        for name, weight in losses.items()
        for part in ("encoder", "decoder")
        if outputs.get(f"{part}_{name}") is not None
    ]
    return sum(terms)


def log_probability(logits: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the `counted` ones of `tokens`, both (batch, length); (batch,).

    Args:
        logits: (batch, length, vocabulary).
    """
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return -torch.where(counted.bool(), losses, 0.0).sum(1)
