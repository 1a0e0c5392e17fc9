"""The plots of a report, as SVG for a page: their colours are the page's, in the light and in the dark; and for trackers.

Matplotlib is imported here alone, by the first plot.
"""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from markupsafe import Markup

from qa.curves import LOGGED


logger = logging.getLogger(__name__)

REFERENCE = re.compile(r'((?:url\(|href=")#)(\w+)')  # to an element of the same file, with its id

FEWEST_POINTS = 5  # of a curve over the steps of a training
SIZE = (4.4, 3.1)  # inches; shown at this size on a phone, so that its texts can be read
# Colours that stand for those of the page, which matplotlib does not know.
PAGE = {f"#fe{place:02x}01": name for place, name in enumerate(("ink", "muted", "grid", "first", "second", "third"))}
INK, MUTED, GRID, *SERIES = PAGE
FIRST, SECOND, THIRD = "C0", "C1", "C2"  # the first colours of a figure's own cycle
STYLE = {
    "svg.fonttype": "none",  # texts stay texts, in the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
COLOURS = {
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.prop_cycle": f"cycler('color', {SERIES})",
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.labelcolor": INK,
}


def draw_plots(report: dict) -> dict[str, Markup]:
    """Return the plots of a report by name, as SVG elements; none where matplotlib is not installed or nothing is to plot."""
    wanted = {}
    if report["no_answer"]:
        wanted["threshold"] = (draw_threshold, report["no_answer"])
        wanted["odds"] = (draw_odds, report["no_answer"])
        wanted["precision_recall"] = (draw_precision_recall, report["no_answer"])
    if report["calibration"]:
        wanted["reliability"] = (draw_reliability, report["calibration"])
    for name, curves in curve_groups(report["training"]).items():
        wanted[f"training_{name}"] = (draw_curves, curves)
    try:
        return {name: to_svg(name, draw, data) for name, (draw, data) in wanted.items()}
    except ImportError as error:
        logger.warning(f"The report has no plots: {error}; run `pip install matplotlib`")
        return {}


def to_svg(name: str, draw, data) -> Markup:
    """Return a plot as an SVG element that takes colours and font from the page around it."""
    file = io.StringIO()
    with figure_of(draw, data, COLOURS) as figure:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Markup(for_page(file.getvalue(), name))


@contextmanager
def figure_of(draw, data, colours: dict | None = None) -> Iterator:
    """Yield matplotlib's figure of a plot, to be rendered within; by default in matplotlib's colours."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports that it looks for fonts, which the page has
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | (colours or {"figure.dpi": 150})):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots(), data)
        yield figure


def for_page(svg: str, name: str) -> str:
    """Return the root element of an SVG file without its size, font, metadata and unused ids, which a page does not need.

    The ids that it uses get the plot's name and a number, since matplotlib's are others in each process.
    """
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    root, rest = svg.split(">", 1)
    root = re.sub(r' (width|height|version)="[^"]*"', "", root)
    number = {
        used: f"{name}-{place}"
        for place, used in enumerate(dict.fromkeys(used for _, used in REFERENCE.findall(rest)))
    }
    rest = re.sub(r' id="(\w+)"', lambda match: f' id="{number[match[1]]}"' if match[1] in number else "", rest)
    rest = REFERENCE.sub(lambda match: match[1] + number[match[2]], rest)
    rest = re.sub(r'font-family: [^;"]*;? ?', "", rest)
    return re.sub("|".join(PAGE), lambda match: f"var(--{PAGE[match[0]]})", f"{root}>{rest}")


def draw_threshold(axes, data: dict) -> None:
    """Plot EM and F1 against the threshold on the null odds, with the chosen and the best one of F1."""
    curves = data["curves"]
    threshold = np.array(curves["threshold"])
    for name, label, colour in (("f1", "F1", FIRST), ("exact_match", "EM", SECOND)):
        axes.plot(threshold, curves[name], color=colour, label=label)
    low, high = np.quantile(threshold, (0.02, 0.98))
    points = [data["thresholds"][0], data["thresholds"][-1]]
    margin = 0.05 * (high - low) or 1.0
    low = min([low, *(point["threshold"] for point in points)]) - margin
    high = max([high, *(point["threshold"] for point in points)]) + margin
    for point, marker in zip(points, ("o", "D")):
        label = f"{point['name']}: {point['f1']:.1f}"
        axes.plot(point["threshold"], point["f1"], marker, color=THIRD, label=label, zorder=3)
    axes.set(xlim=(low, high), xlabel="--null_score_diff_threshold, logits", ylabel="percent")
    axes.legend()


def draw_odds(axes, data: dict) -> None:
    """Plot the shares of the null odds of questions with and without an answer, and the chosen threshold."""
    odds, threshold = data["odds"], data["thresholds"][0]["threshold"]
    for name, colour in (("with an answer", FIRST), ("without an answer", SECOND)):
        axes.stairs(odds[name], odds["edges"], color=colour, label=name, linewidth=1.6)
    if odds["edges"][0] < threshold < odds["edges"][-1]:
        axes.axvline(threshold, color=THIRD, linestyle="--", linewidth=1, label="chosen threshold")
    axes.set(xlabel="null odds, logits", ylabel="percent of the questions")
    axes.legend()


def draw_precision_recall(axes, data: dict) -> None:
    """Plot precision against recall by EM and by F1."""
    for name, label, colour in (("f1", "F1", FIRST), ("exact_match", "EM", SECOND)):
        curve = data["precision_recall"][name]
        label = f"{label}: average {curve['average_precision']:.1f}"
        axes.plot(curve["recall"][1:], curve["precision"][1:], color=colour, label=label)  # the first is by definition
    axes.set(xlim=(0, 100), ylim=(0, 101), xlabel="recall, percent", ylabel="precision, percent")
    axes.legend()


def draw_reliability(axes, data: dict) -> None:
    """Plot the share of right answers against their probability, and the share of the answers that have it."""
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
    starts, ends, numbers = (np.array([part[name] for part in data["bins"]]) for name in ("from", "to", "questions"))
    shares = numbers / numbers.sum()
    axes.bar(starts, shares, ends - starts, align="edge", color=GRID, label="share of the answers")
    series = [("bins", "as they are", FIRST, "o-")]
    if data["temperature"] and f"{data['temperature']:.1f}" != "1.0":
        series.append(("bins_at_temperature", f"temperature {data['temperature']:.2f}", SECOND, "D--"))
    for name, label, colour, style in series:
        points = [(part["probability"], part["right"]) for part in data[name]]
        axes.plot(*zip(*points), style, color=colour, markersize=4, label=label, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", ylabel="share of right answers")
    axes.legend(loc="upper left")


def draw_curves(axes, curves: dict) -> None:
    """Plot what a training has logged against its steps."""
    for (name, points), colour in zip(curves.items(), (FIRST, SECOND, THIRD)):
        steps, values = zip(*points)
        line = "-" if len(points) > FEWEST_POINTS * 4 else "o-"
        axes.plot(steps, values, line, markersize=3, color=colour, label=LOGGED[name])
    axes.set(xlabel="step")
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    if len(curves) > 1:
        axes.legend()


def curve_groups(training: dict) -> dict[str, dict]:
    """Return the curves to plot together, by the name of the plot; a curve of a few points is in the table alone."""
    groups = {
        "loss": ("loss", "eval_loss"),
        "scores": ("eval_exact_match", "eval_exact", "eval_f1"),
        "learning_rate": ("learning_rate",),
        "grad_norm": ("grad_norm",),
    }
    found = {
        title: {name: training[name] for name in names if len(training.get(name, ())) >= FEWEST_POINTS}
        for title, names in groups.items()
    }
    return {title: curves for title, curves in found.items() if curves}
