"""Scores by MLQA's rules against the plain oracle, and the detection of the seven languages."""

import oracle
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

import qa.metrics
import qa.mlqa
from qa.answers import Answers
from qa.mlqa import LANGUAGES, detect_language, normalize


WORDS = """der Rhein Die DAS ein einer derart Ägypten „Nil“ a an the Theben el La unos él ¿las? là của những Cái ال النيل بال
    نهر، नील। नदी 尼罗河 河Nile 2尼。 , — ' $5 €5 x_y the_a ein-e İstanbul \u00a0 \u200b ½""".split(" ")
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


@examples(150)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_scores_are_those_of_mlqas_evaluator(cases):
    predictions = {str(number): text for number, (text, _) in enumerate(cases)}
    golds = {str(number): gold for number, (_, gold) in enumerate(cases)}
    official = qa.metrics.score(Answers(predictions), golds, negatives=False)
    for language in LANGUAGES:
        scores = qa.metrics.score(Answers(predictions), golds, negatives=False, language=language)
        assert scores == pytest.approx(official | oracle.mlqa(predictions, golds, language), abs=1e-9)


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("de", "Der Nil, in „Ägypten“!", "nil in ägypten"),
        ("de", "derselbe Rhein", "derselbe rhein"),
        ("es", "¿El Nilo?", "nilo"),
        ("vi", "Những con sông của Ai Cập", "con sông ai cập"),
        ("ar", "نهر النيل،", "نهر نيل"),
        ("hi", "नील नदी।", "नील नदी"),
        ("zh", "尼罗河（Nile River）。", "尼 罗 河 nile river"),
        ("en", "The Nile — a river", "nile river"),
    ],
)
def test_normalization(language, text, expected):
    assert normalize(text, language) == oracle.normalize_mlqa(text, language) == expected


def test_questions_without_an_answer():
    """Only an empty answer is right, as in SQuAD 2.0."""
    answers = Answers({"a": "", "b": "der Nil"}, {"a": "Nil", "b": "der Nil"}, {"a": 1.0, "b": -1.0})
    for golds, expected in (({"a": [], "b": ["Nil"]}, 100), ({"a": [], "b": []}, 50), ({"a": ["Nil"], "b": ["x"]}, 0)):
        scores = qa.metrics.score(answers, golds, negatives=True, language="de")
        assert (scores["mlqa_exact_match"], scores["mlqa_f1"]) == (expected, expected)


TEXTS = {
    "en": "The Nile is a river in the north-east of Africa. It flows through eleven countries and is the main source of "
    "water of Egypt. Its delta was known to the Greeks.",
    "de": "Der Nil ist ein Strom in Afrika. Er entspringt in den Bergen von Ruanda und mündet im Norden von Ägypten in das "
    "Mittelmeer. Die Länge des Flusses beträgt über 6000 Kilometer.",
    "es": "El Nilo es el mayor río de África. Fluye en dirección norte por diez países y desemboca en el mar Mediterráneo, "
    "donde forma un gran delta. Los egipcios y las tierras de su valle vivían de las crecidas.",
    "vi": "Sông Nin là dòng sông thuộc châu Phi, là một trong hai con sông dài nhất thế giới. Sông có các nhánh được gọi là "
    "Nin Trắng và Nin Xanh. Những người Ai Cập sống nhờ nước của sông.",
    "hi": "नील नदी अफ्रीका की सबसे बड़ी नदी है। यह विक्टोरिया झील से निकलकर सहारा के मरुस्थल के पूर्वी भाग को पार करती हुई उत्तर में "
    "भूमध्य सागर में गिरती है और इसका पानी मिस्र का जीवन है।",
    "ar": "نهر النيل هو أطول أنهار الكرة الأرضية، يقع في الجزء الشمال الشرقي من قارة أفريقيا، وينساب إلى جهة الشمال ليصب في "
    "البحر الأبيض المتوسط. للنيل رافدان رئيسيان: النيل الأبيض والنيل الأزرق.",
    "zh": "尼罗河是一条流经非洲东部与北部的河流，自南向北注入地中海。尼罗河有两条主要的支流，白尼罗河和青尼罗河。埃及的人口大多居住在尼罗河的两岸。",
}
OTHERS = [
    "Le Nil est un fleuve d'Afrique. Avec une longueur de 6 700 kilomètres, c'est avec le fleuve Amazone le plus long fleuve "
    "du monde. Il est issu de la rencontre du Nil Blanc et du Nil Bleu, et des crues annuelles.",
    "Il Nilo è un fiume africano lungo 6 852 chilometri. Tradizionalmente considerato il fiume più lungo del mondo, ha due "
    "grandi affluenti, il Nilo Bianco e il Nilo Azzurro, e una foce con un delta.",
    "O rio Nilo é um extenso rio africano que deságua no mar Mediterrâneo. A bacia do Nilo, que ocupa uma área de 3 milhões "
    "de quilómetros quadrados, abrange dez países e é banhada por águas que vêm do sul.",
    "De Nijl is een rivier in Afrika die in noordelijke richting stroomt. De rivier is een van de langste ter wereld en was "
    "de bron van het leven in Egypte, dat een geschenk van de Nijl werd genoemd.",
    "ナイル川は、アフリカ大陸東北部を流れ地中海に注ぐ世界最長級の河川である。長さは六千キロメートルで、白ナイルと青ナイルが合流する。",
    "نیل رودی است در شمال شرقی آفریقا که به دریای مدیترانه می‌ریزد. این رود از دو شاخه اصلی تشکیل شده است و طولانی‌ترین رود جهان است.",
    "Нил — река в Африке, одна из двух самых протяжённых в мире речных систем. Впадает в Средиземное море.",
    "",
]


def test_the_language_is_found():
    assert {detect_language([text]) for text in OTHERS} == {None}
    assert {name: detect_language([text]) for name, text in TEXTS.items()} == {name: name for name in LANGUAGES}
    assert detect_language([TEXTS["de"], *[TEXTS["es"]] * 3, OTHERS[0]]) == "es"
