"""The trainer of encoder-decoders: an answer is written for every window, and scored by its log-probability."""

from contextlib import contextmanager, nullcontext

import torch
from transformers.trainer_utils import PredictionOutput

from qa.device import trainer_class
from qa.graphs import CompiledCalls
from qa.kept_rows import StepOutputs
from qa.outputs import accepted, encoded, encoder_states, generation_settings, written_part, written_scores
from trainer_qa import WholeTraining


class QuestionAnsweringSeq2SeqTrainer(WholeTraining, trainer_class(True)):
    """Train and evaluate models that write the answer: a subclass of GaudiSeq2SeqTrainer or Seq2SeqTrainer.

    Args (beyond those of `AnswerEvaluation` and the base):
        empty_answer: with negatives, the tokens of "no answer" as a label. The model then writes its best text that is
            not empty, and the empty answer is scored as well.

    `post_process_function` takes a list: the tokens written for each feature, (features, length), their
    log-probability, (features,), and with an `empty_answer` its log-probability, (features,).

    `args.generation_max_length`, by default that of the model, and `args.generation_num_beams` apply to evaluation and to
    prediction. `max_length` and `num_beams` of a call come before them.
    """

    def __init__(self, *args, empty_answer: list[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.empty_answer, self.generation = empty_answer, None
        self.compute_loss_func = self.token_loss

    def evaluate(self, *args, max_length: int | None = None, num_beams: int | None = None, **kwargs) -> dict:
        with self.written_with(max_length, num_beams):
            return super().evaluate(*args, **kwargs)

    def predict(
        self, *args, max_length: int | None = None, num_beams: int | None = None, **kwargs
    ) -> PredictionOutput:
        with self.written_with(max_length, num_beams):
            return super().predict(*args, **kwargs)

    @contextmanager
    def written_with(self, max_length: int | None, num_beams: int | None):
        """Let answers have another length and number of beams within, where they are not None."""
        before = self.args.generation_max_length, self.args.generation_num_beams
        own = self.model.generation_config.max_length
        self.args.generation_max_length = max_length or before[0] or own
        self.args.generation_num_beams = num_beams or before[1]
        try:
            yield
        finally:
            self.args.generation_max_length, self.args.generation_num_beams = before

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

    def step_outputs(self, model, inputs, prediction_loss_only: bool, ignore_keys) -> StepOutputs:
        """Return the loss as in training; with --predict_with_generate also what answers need of every window.

        These are the tokens that the model writes, (batch, length), their log-probability, (batch,), and with
        negatives the log-probability of the empty answer, (batch,). The windows are encoded once for all of them.
        """
        inputs, counted = self._prepare_inputs(inputs), None
        if "labels" in inputs:
            first = self.first_rows(inputs["labels"])
            inputs = inputs | {"labels": inputs["labels"].masked_fill(~first[:, None], -100)}
            counted = (inputs["labels"] != -100).any(dim=1).sum()  # of none the loss is NaN
        if prediction_loss_only or not self.args.predict_with_generate:
            loss, _, _ = self.library_step(model, inputs, prediction_loss_only=True, ignore_keys=ignore_keys)
            return StepOutputs(loss, counted)
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, states = self.loss_and_states(model, inputs, read)
        tokens = self.write_tokens(model, read, states, ignore_keys)
        padding, most = self.processing_class.pad_token_id, self.args.generation_max_length
        written = written_part(tokens, self.model.generation_config, padding)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = written_scores(model, self.model, read, states, tokens, written, self.empty_answer)
        # With --ignore_eos, the default on a Gaudi, the model goes on after the end of its answer.
        answers = tokens.masked_fill(~written, padding)
        answers = self._pad_tensors_to_max_len(answers, most)  # one width for all batches
        return StepOutputs(loss, counted, (answers, *scores))

    def loss_and_states(self, model, inputs: dict, read: dict) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the loss of a batch, None without labels, and the encoder's states, (batch, length, width)."""
        if "labels" not in inputs:
            return None, encoder_states(model, self.model, read)
        loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss, outputs.encoder_last_hidden_state

    def write_tokens(self, model, read: dict, states: torch.Tensor, ignore_keys) -> torch.Tensor:
        """Return the tokens that the model writes for a batch, (batch, length), without the one that starts an answer."""
        most = self.args.generation_max_length
        settings = generation_settings(most, self.args.generation_num_beams, self.empty_answer)
        with self.compiled_generation():
            _, tokens, _ = self.library_step(
                model,
                read,
                prediction_loss_only=False,
                ignore_keys=ignore_keys,
                **settings,
                **encoded(self.model, states),
            )
        tokens = tokens[:, 1:most]  # the libraries pad to the checkpoint's length, which may be 200
        if self.args.use_habana:  # one shape for all batches; optimum-habana 1.21.2 returns beams on the host
            tokens = self._pad_tensors_to_max_len(tokens.to(self.args.device), most - 1)
        return tokens

    def compiled_generation(self):
        """Return a context in which the model writes with compiled graphs, where flags compile for a Gaudi."""
        if not (self.args.use_habana and self.args.torch_compile):
            return nullcontext()
        if self.generation is None:
            settings = self.accelerator.state.dynamo_plugin.to_kwargs()
            self.generation = CompiledCalls(self.model, **settings)
        return self.generation


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
