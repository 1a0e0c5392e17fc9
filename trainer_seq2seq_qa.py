"""The trainer of encoder-decoders: writes an answer for every window, and says how sure it is of it."""

import inspect
import time
from functools import partial

import torch
from transformers.modeling_outputs import BaseModelOutput

from qa.device import trainer_class
from qa.generation import end_tokens, shift_right
from qa.speed import TrainingSpeed
from qa.upstream import BestCheckpoint, JoinedSaves, ResumedEpochs
from trainer_qa import AnswerEvaluation


class QuestionAnsweringSeq2SeqTrainer(
    ResumedEpochs, BestCheckpoint, TrainingSpeed, AnswerEvaluation, JoinedSaves, trainer_class(True)
):
    """Trains and evaluates models that write the answer: GaudiSeq2SeqTrainer's or Seq2SeqTrainer's subclass.

    Args (beyond those of `AnswerEvaluation` and the base):
        empty_answer: with negatives, the tokens that stand for "no answer" as a label. The model then writes its best
            text that is not empty, and the empty answer is scored beside it.

    `post_process_function` gets a list: the tokens written for each feature, (features, length), their log-probability,
    (features,), and with an `empty_answer` its log-probability, (features,).

    `args.generation_max_length` and `args.generation_num_beams` hold for evaluation and prediction alike.
    """

    def __init__(self, *args, empty_answer: list[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.empty_answer = empty_answer
        self.compute_loss_func = self.token_loss

    def token_loss(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        """The mean loss of the labels' tokens; in training that over all ranks and accumulated steps, by their number.

        The models' own loss is a mean over one batch of one rank: batches of short answers would count as much as those
        of long ones. transformers 4.55 multiplies what this returns by the number of ranks, as it should; the loss of
        T5 itself, which optimum-habana 1.21.2 lets through as if it were of this kind, comes out that many times too
        large.
        """
        if self.label_smoother is not None:
            mean = self.label_smoother(outputs, labels)
        else:
            mean = torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten())
        mean = mean + router_loss(outputs, self.model.config)
        return mean if num_items_in_batch is None else mean * labels.ne(-100).sum() / num_items_in_batch

    def compute_loss(self, model, inputs, *args, **kwargs):
        """As the base's. Without a cache, which keeps states that nothing reads, and FSMT from all but the last logits."""
        return super().compute_loss(model, inputs | accepted(self.model, use_cache=False), *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss, that of training; with --predict_with_generate keep what answers need of every window.

        That is what the model writes, (batch, length), the log-probability of it, (batch,), and with negatives that of the
        empty answer, (batch,).
        """
        inputs = self._prepare_inputs(inputs)
        if prediction_loss_only or not self.args.predict_with_generate:
            return self.loss_alone(model, inputs, ignore_keys), None, None
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        _, tokens, _ = super().prediction_step(model, read, False, ignore_keys, **self.generation_settings())
        most = self.args.generation_max_length
        # The libraries pad to the checkpoint's own length, which may be 200; the start token is no part of an answer.
        tokens = tokens[:, 1:most]
        if self.args.use_habana:  # one shape; the beams of optimum-habana 1.21.2 come back on the host
            tokens = self._pad_tensors_to_max_len(tokens.to(self.args.device), most - 1)
        written = self.written(tokens)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach() if "labels" in inputs else None
            scores = self.scores(model, read, tokens, written)
        # With --ignore_eos, the default on a Gaudi, the model writes on behind the end of its answer.
        answers = tokens.masked_fill(~written, self.processing_class.pad_token_id)
        self.keep(self._pad_tensors_to_max_len(answers, most), *scores)  # one width for all batches
        return loss, None, None

    def loss_alone(self, model, inputs, ignore_keys) -> torch.Tensor | None:
        """Return the loss of a batch; None where it has no labels, without which not every model runs."""
        if "labels" in inputs:
            return super().prediction_step(model, inputs, True, ignore_keys)[0]
        self.begun.append(time.time())
        return None

    def scores(self, model, read: dict, tokens: torch.Tensor, written: torch.Tensor) -> list[torch.Tensor]:
        """Return the log-probability of what is `written` of `tokens`, with negatives also that of the empty answer.

        Models with experts would also return what their routers decide, which no answer needs; Switch would look for it
        in states of the encoder that it did not compute itself. FSMT looks ahead where it gets no `input_ids`.
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
        settings["max_new_tokens"] = None  # where a checkpoint has one, it would count instead of the length
        if self.empty_answer is not None:
            # One more for the start token. With `min_new_tokens` optimum-habana 1.21.2 counts from the longest answer's end.
            settings["min_length"] = len(self.empty_answer) + 1
        return settings

    def written(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, length) whether a token belongs to the answer: up to its end token, and not the padding behind it."""
        ends = torch.tensor(end_tokens(self.model.generation_config), device=tokens.device)
        end = torch.isin(tokens, ends)
        behind = end.cumsum(1) - end.long() > 0
        return ~behind & (end | (tokens != self.processing_class.pad_token_id))


def accepted(model, **arguments) -> dict:
    """Return those arguments that the model's forward pass knows."""
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
    """(batch,) log-probability of `tokens` (batch, length) under `logits` (batch, length, vocabulary), of those `counted`."""
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return -torch.where(counted.bool(), losses, 0.0).sum(1)
