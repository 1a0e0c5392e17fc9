"""The metrics of SQuAD as objects of the library `evaluate`; see `qa.metrics.load_metric`."""

import datasets
import evaluate

from qa.metrics import squad_scores, squad_v2_scores


class SquadMetric(evaluate.Metric):
    """EM and F1 of SQuAD 1.1 (configuration `squad`) or 2.0 (`squad_v2`); see `load_metric`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        prediction = {"id": text, "prediction_text": text}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = datasets.Value("float64")
        answers = datasets.features.Sequence({"text": text, "answer_start": datasets.Value("int32")})
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rajpurkar et al.: SQuAD: 100,000+ Questions for Machine Comprehension of Text. EMNLP 2016.",
            inputs_description="predictions: id, prediction_text, no_answer_probability (2.0); references: id, answers",
            features=datasets.Features({"predictions": prediction, "references": {"id": text, "answers": answers}}),
        )

    def compute(self, *, predictions=None, references=None, **options) -> dict[str, float]:
        """Return what `evaluate.Metric.compute` does; score predictions passed in one call without an Arrow file."""
        if predictions is None or references is None:
            return super().compute(predictions=predictions, references=references, **options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, no_answer_threshold: float = 1.0) -> dict[str, float]:
        texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
        golds = {reference["id"]: list(reference["answers"]["text"]) for reference in references}
        if self.config_name == "squad":
            return squad_scores(texts, golds)
        probabilities = {prediction["id"]: prediction.get("no_answer_probability", 0.0) for prediction in predictions}
        return squad_v2_scores(texts, golds, probabilities, no_answer_threshold)
