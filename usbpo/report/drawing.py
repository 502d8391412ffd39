"""How figures are drawn: the house style, colours, lines over seeds, axes and legends.

What only one figure draws stands with it.
Drawn with matplotlib's own fonts and with no global state, so that equal data gives equal bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from usbpo.artifacts.files import writing

Array = NDArray[np.float64]

# Okabe and Ito's colours, which all kinds of colour vision tell apart, without yellow; dark grey for black, and Tol's
# wine. Beyond eight methods colours come again, with another marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
NAMES = {
    "usbpo": "USB-PO",
    "mbpo": "MBPO",
    "cmlo": "CMLO",
    "sac": "SAC",
    "usbpo-moving": "USB-PO, moving M*",
    "usbpo-samples": "USB-PO, samples of M*",
    "usbpo-shift": "USB-PO, shift only",
    "usbpo-bias": "USB-PO, bias only",
    "usbpo-as-released": "USB-PO as released",
    "mbpo-lr1e-4": "MBPO, lr 1e-4",
    "cmlo-1.0": "CMLO, α = 1.0",
    "cmlo-3.0": "CMLO, α = 3.0",
    "cmlo-5.0": "CMLO, α = 5.0",
}
"""How the field writes the methods that it knows; others stand as their files are named."""

INK, QUIET, GRID = "#222222", "#666666", "#E6E6E6"
POINTS = 200
"""Most points of a line; longer histories are drawn as means of equally many consecutive points."""
MARKED = 15
"""Lines of up to this many points show each of them."""
Dashes = tuple[float, tuple[float, ...]]
DASHES: Dashes = (0, (3, 1.6))

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 14,
    "axes.linewidth": 0.9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 15,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 13,
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "legend.frameon": False,
    "legend.fontsize": 14,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 200,
    # Text as paths: the picture looks the same wherever it is opened, whatever fonts there are.
    "svg.fonttype": "path",
    "svg.hashsalt": "usbpo",
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def save(draw: Callable[[], Figure], stem: Path) -> None:
    """Draw a figure in the house style and write it as `stem`.svg and `stem`.png, the same bytes every time."""
    with _style():
        figure = draw()
        _lay_out(figure)
        for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            with writing(stem.with_name(f"{stem.name}.{suffix}")) as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)


def _lay_out(figure: Figure) -> None:
    """Place panels, labels and legend for good: the engine would do it anew, with a draw more, for each saved file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.set_dpi(matplotlib.rcParams["savefig.dpi"])  # in whose pixels letters are measured
        engine.execute(figure)
        figure.set_layout_engine(None)


def _style() -> AbstractContextManager[None]:
    """matplotlib's defaults, not the user's matplotlibrc, with `STYLE` laid over them."""
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
    return matplotlib.rc_context({name: value for name, value in style.items() if not name.startswith("backend")})


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure of an experiment."""

    label: str
    colour: str
    marker: str
    rank: int
    """Order among the methods; the first lies on top."""

    @property
    def tint(self) -> str:
        """The colour mixed with white, for lines that stay behind: however many, they never look like the bold one."""
        return self._with_white(0.58)

    @property
    def faded(self) -> str:
        """The colour mixed with some white, for published curves."""
        return self._with_white(0.25)

    def _with_white(self, share: float) -> str:
        red, green, blue = ((1 - share) * part + share for part in to_rgb(self.colour))
        return to_hex((red, green, blue))


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each of the `methods`, in their order."""
    return {
        method: Look(NAMES.get(method, method), COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], i)
        for i, method in enumerate(dict.fromkeys(methods))
    }


def binned(x: Array, values: Array) -> tuple[Array, Array]:
    """At most `POINTS` points (lines, points): means over groups of consecutive points, equally many in each."""
    size = ceil(len(x) / POINTS)
    if size <= 1:
        return x, values
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(values, starts, axis=-1) / counts


# Lines


def mean_line(axes: Axes, x: Array, values: Array, look: Look, *, dashed: bool = False, shaded: bool = True) -> float:
    """Draw the mean of `values` (seeds, points) over seeds, their range shaded.

    Returns:
        The mean's last value.
    """
    x, values = binned(x, values)
    if len(values) > 1 and shaded:
        band(axes, x, np.array([values.min(axis=0), values.max(axis=0)]), look)
    return line(axes, x, values.mean(axis=0), look, dashed=dashed)


def line(axes: Axes, x: Array, y: Array, look: Look, *, dashed: bool = False) -> float:
    """Draw a method's line; a long one has few marks, for each method elsewhere.

    Returns:
        Its last value.
    """
    x, y = binned(x, y)
    few = len(x) <= MARKED
    axes.plot(
        x,
        y,
        color=look.colour,
        linewidth=1.8 if dashed else 3.0 if few else 2.4,
        linestyle=DASHES if dashed else "solid",
        marker=look.marker if few or not dashed else None,
        markevery=None if few else ((0.02 + 0.023 * (look.rank % 8)), 0.19),
        markersize=4.5 if dashed else 7,
        markerfacecolor="white" if dashed else look.colour,
        markeredgecolor=look.colour if dashed else "white",
        markeredgewidth=1.2 if dashed else 1.0,
        zorder=3 - look.rank / 100,
    )
    return float(y[-1])


def thin_lines(axes: Axes, x: Array, values: Array, look: Look) -> None:
    """A thin line for each row of `values` (lines, points)."""
    x, values = binned(x, values)
    for line in values:
        axes.plot(
            x,
            line,
            color=look.tint,
            linewidth=1.0,
            zorder=2 - look.rank / 100,
            marker="." if len(x) == 1 else None,
            markersize=9,
            markeredgewidth=0,
        )


def band(axes: Axes, x: Array, bounds: Array, look: Look) -> None:
    """Shade between two lines, `bounds` (2, points); for a single point, a bar."""
    x, (low, high) = binned(x, bounds)
    if len(x) == 1:
        axes.vlines(x, low, high, color=look.colour, alpha=0.35, linewidth=6, zorder=1)
    else:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.14, linewidth=0, zorder=1)


# Axes


class _Compact(ticker.Formatter):
    """2,500 · 12.5k · 1.2M, with one unit on all of an axis."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        assert self.axis is not None
        top = max(abs(bound) for bound in self.axis.get_view_interval())
        divisor, unit = (1e6, "M") if top >= 1e6 else (1e3, "k") if top >= 1e4 else (1.0, "")
        text = f"{value / divisor:,.6g}" + (unit if value else "")
        return text.replace("-", "\N{MINUS SIGN}")


def x_axis(axes: Axes, ticks: int = 5) -> None:
    """Ticks where the points are if these are few, else about `ticks` round ones, and a little air at the sides.

    Ticks are whole numbers, as steps, updates and depths are.
    """
    axes.margins(x=0.03)
    places = sorted({float(x) for line in axes.lines for x in np.asarray(line.get_xdata())})
    few = len(places) <= ticks - 1
    axes.xaxis.set_major_locator(ticker.FixedLocator(places) if few else _round_ticks(ticks, whole=True))
    axes.xaxis.set_major_formatter(_Compact())


def y_axis(axes: Axes, ticks: int = 5) -> None:
    """About `ticks` round ticks."""
    axes.yaxis.set_major_locator(_round_ticks(ticks))
    axes.yaxis.set_major_formatter(_Compact())


def value_axis(axes: Axes, ticks: int = 4) -> None:
    """About `ticks` round ticks on the x axis, where it holds values and no steps."""
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(_round_ticks(ticks))
    axes.xaxis.set_major_formatter(_Compact())


def _round_ticks(ticks: int, *, whole: bool = False) -> ticker.Locator:
    return ticker.MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10], integer=whole)


def log_axis(row: Iterable[Axes]) -> None:
    """A logarithmic y axis with round ends and ticks, the same for all `row`."""
    row = list(row)
    low, high = _positive_range(row)
    if low > high:
        return
    low, high = _round_log(low, floor), _round_log(high, ceil)
    if low == high:
        low, high = _round_log(low * 0.9, floor), _round_log(high * 1.1, ceil)
    subs = (1.0, 2.0, 5.0) if high <= 110 * low else (1.0,)
    plain = low >= 1e-3 and high <= 1e4
    air = (high / low) ** 0.03
    for axes in row:
        axes.set_yscale("log")
        axes.set_ylim(low / air, high * air)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(
            ticker.FuncFormatter(lambda value, _: f"{value:,g}") if plain else ticker.LogFormatterSciNotation()
        )


def log_axis_or_from_zero(row: Iterable[Axes]) -> None:
    """A linear y axis from zero; a logarithmic one if the values span more than a factor of 30."""
    row = list(row)
    low, high = _positive_range(row)
    if high > 30 * low:
        log_axis(row)
        return
    for axes in row:
        y_axis(axes)
        axes.set_ylim(bottom=0)


def _positive_range(row: Iterable[Axes]) -> tuple[float, float]:
    """The smallest and the largest positive value that is drawn in `row`; the first is larger if there is none."""
    limits = [axes.dataLim for axes in row]
    return min(limit.minposy for limit in limits), max(limit.y1 for limit in limits)


def _round_log(value: float, direction: Callable[[float], int]) -> float:
    """The next of …, 0.1, 0.2, 0.5, 1, 2, 5, … below (`floor`) or above (`ceil`)."""
    value = max(value, 1e-200)  # far below, powers of ten lose their digits
    decade = 10.0 ** floor(log10(value))
    steps = [decade, 2 * decade, 5 * decade, 10 * decade]
    if direction is floor:
        return max(step for step in steps if step <= value * (1 + 1e-9))
    return min(step for step in steps if step >= value * (1 - 1e-9))


# Figures


def panels(
    rows: int, columns: int, size: tuple[float, float], *, sharey: Literal["none", "row"] = "none"
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its `rows` × `columns` panels of `size` (inches)."""
    figure = Figure(
        figsize=(size[0] * columns, size[1] * rows + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    )
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey).tolist()


def grid(number: int, size: tuple[float, float], widest: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure with `number` panels of `size` (inches) in a grid of at most `widest` columns, in reading order."""
    columns = min(widest, {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 9: 3}.get(number, 4))
    figure, rows = panels(ceil(number / columns), columns, size)
    every = [axes for row in rows for axes in row]
    for axes in every[number:]:
        axes.remove()
    return figure, every[:number]


def label_first_column(grid: Sequence[Axes], text: str) -> None:
    """Name the y axes of the panels at the left of a grid."""
    for axes in grid:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(text)


def legend(figure: Figure, shown: Iterable[Look], further: Sequence[Line2D] = (), title: str | None = None) -> None:
    """One legend above all panels, under a `title`: the methods, and `further` lines."""
    marked = any(line.get_marker() in MARKERS for axes in figure.axes for line in axes.lines)
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            linewidth=3.0,
            label=look.label,
            marker=look.marker if marked else None,
            markersize=8,
            markeredgecolor="white",
        )
        for look in shown
    ]
    every = handles + list(further)
    figure.legend(
        handles=every,
        loc="outside upper left",
        ncols=_columns(figure, [str(handle.get_label()) for handle in every]),
        handlelength=2.2,
        columnspacing=1.8,
        borderpad=0.2,
        title=title,
        title_fontproperties={"size": 16, "weight": "bold"},
        alignment="left",
    )


def _columns(figure: Figure, labels: Sequence[str]) -> int:
    """How many entries of a legend stand side by side without leaving the figure, in rows about equally full."""
    inches = 0.95 + 0.118 * max(map(len, labels))
    fitting = max(1, int((figure.get_figwidth() - 0.3) / inches))
    return ceil(len(labels) / ceil(len(labels) / fitting))


def line_kinds(solid: str, dashed: str) -> list[Line2D]:
    """Legend entries that tell solid from dashed lines, whatever their colour."""
    return [
        Line2D([], [], color=QUIET, linewidth=1.8, linestyle=DASHES, label=dashed),
        Line2D([], [], color=QUIET, linewidth=3.0, label=solid),
    ]


def name_rows(panels: Sequence[Sequence[Axes]], tasks: Sequence[str]) -> None:
    """Write the tasks, if there are several, left of the rows of panels."""
    if len(tasks) == 1:
        return
    for row, task in zip(panels, tasks, strict=True):
        row[0].annotate(
            task,
            (0, 0.5),
            xycoords="axes fraction",
            xytext=(-82, 0),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="center",
            fontsize=13,
            fontweight="bold",
        )


def note(figure: Figure, text: str) -> None:
    """What lines and bands are, small, below everything."""
    letters = int((figure.get_figwidth() - 0.3) / 0.088)
    figure.supxlabel("\n".join(wrap(text, letters)), x=0.012, ha="left", fontsize=11, color=QUIET)


def message(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = Figure(figsize=(9.4, 2.4))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=16, color=QUIET)
    return figure
