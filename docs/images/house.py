"""Draws the house, docs/images/house.svg, from the imports of the package: `make house`.

The rooms and their layers are those of the contract at the end of pyproject.toml, the sentences the first lines of the
rooms, the lines what grimp finds imported, within functions too. Equal imports give equal bytes.
"""

import ast
import sys
import tomllib
from pathlib import Path
from textwrap import wrap
from xml.sax.saxutils import escape

import grimp

REPO = Path(__file__).resolve().parents[2]
PICTURE = REPO / "docs/images/house.svg"

# Pixels.
STEP, ROW, BOX_WIDTH, BOX_HEIGHT = 36, 48, 132, 34
LEFT, TOP, WIDTH, BOTTOM = 24, 74, 1090, 16
STEM = 18
"""How far from its left edge a room's line leaves its box."""
LETTER = 7.3
"""How wide a letter of a sentence may be in the mean."""

COLOURS = {
    "#4D4D4D": ("worker", "commands"),
    "#0072B2": ("formats", "monitor", "report"),
    "#00664B": ("stages", "workspace", "experiment"),
    "#A84300": ("model", "agent", "environments"),
    "#7A2A5C": ("artifacts", "numerics", "errors"),
}
"""What a user types · what is read and shown · how a run goes · what the poster says · what all stand on"""


def layers() -> list[list[str]]:
    """The layers of the contract from top to bottom, each with its rooms."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    graph = grimp.build_graph("usbpo", cache_dir=None)
    pairs = {
        (module.split(".")[1], imported.split(".")[1])
        for module in graph.modules - {"usbpo"}
        for imported in graph.find_modules_directly_imported_by(module) - {"usbpo"}
    }
    return {(room, imported) for room, imported in pairs if room != imported}


def sentence(room: str) -> str:
    """What a room says of itself: the first line of its docstring."""
    folder = REPO / "usbpo" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said, f"{path} has no docstring"
    return said.splitlines()[0]


def picture() -> str:
    """The SVG: rooms as the steps of a staircase, and below each a line with a dot for every room that it imports."""
    floors, pairs = layers(), arrows()
    rooms = [room for floor in floors for room in floor]
    colour = {room: colour for colour, of in COLOURS.items() for room in of}
    place = {room: (LEFT + STEP * number, TOP + ROW * number) for number, room in enumerate(rooms)}
    height = TOP + ROW * len(rooms) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="30" font-size="19" font-weight="bold" fill="#222222">The rooms of usbpo</text>',
        f'<text x="{LEFT}" y="53" font-size="14" fill="#666666">{len(rooms) - 1} rooms and their errors, '
        f"{len(pairs)} arrows: a line runs down from a room, with a dot for each room to the right that it imports. "
        "None runs up.</text>",
    ]
    y = TOP
    for number, floor in enumerate(floors):
        shade = "#F4F4F4" if number % 2 == 0 else "#FFFFFF"
        lines.append(f'<rect x="0" y="{y}" width="{WIDTH}" height="{ROW * len(floor)}" fill="{shade}"/>')
        y += ROW * len(floor)
    lines += [line for room in rooms for line in _way_in(room, rooms, pairs, place)]
    lines += [line for room in rooms for line in _way_down(room, rooms, pairs, place, colour[room])]
    lines += [line for room in rooms for line in _room(room, place[room], colour[room])]
    return "\n".join([*lines, "</svg>"]) + "\n"


Places = dict[str, tuple[int, int]]


def _way_in(room: str, rooms: list[str], pairs: set[tuple[str, str]], place: Places) -> list[str]:
    """The line into a room, from the leftmost that imports it."""
    above = [other for other in rooms if (other, room) in pairs]
    if not above:
        return []
    x, y = place[room][0], place[room][1] + ROW // 2
    start = place[above[0]][0] + STEM
    return [
        f'<path d="M{start} {y}H{x - 7}" stroke="#BBBBBB" stroke-width="1.6" fill="none"/>',
        f'<path d="M{x - 9} {y - 4}L{x - 1} {y}L{x - 9} {y + 4}Z" fill="#999999"/>',
    ]


def _way_down(room: str, rooms: list[str], pairs: set[tuple[str, str]], place: Places, colour: str) -> list[str]:
    """The line down from a room, as far as the last that it imports, and a dot at each."""
    below = [place[other][1] + ROW // 2 for other in rooms if (room, other) in pairs]
    if not below:
        return []
    x, y = place[room][0] + STEM, place[room][1] + ROW // 2
    dots = [f'<circle cx="{x}" cy="{at}" r="4.6" fill="{colour}"/>' for at in below]
    return [f'<path d="M{x} {y}V{below[-1]}" stroke="{colour}" stroke-width="1.8" fill="none"/>', *dots]


def _room(room: str, at: tuple[int, int], colour: str) -> list[str]:
    """A room's box, and what it says of itself to the right of it."""
    x, y = at[0], at[1] + (ROW - BOX_HEIGHT) // 2
    said = wrap(sentence(room), int((WIDTH - x - BOX_WIDTH - 14) / LETTER))
    assert len(said) <= 2, f"the first line of {room} is too long to be drawn: {sentence(room)}"
    first = at[1] + ROW // 2 + (5 if len(said) == 1 else -3)
    return [
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{colour}"/>',
        f'<text x="{x + BOX_WIDTH // 2}" y="{y + 22}" text-anchor="middle" font-size="15" font-weight="bold" '
        f'fill="white">{room}</text>',
        *(
            f'<text x="{x + BOX_WIDTH + 14}" y="{first + 17 * number}" font-size="13" fill="#222222">'
            f"{escape(text)}</text>"
            for number, text in enumerate(said)
        ),
    ]


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(REPO)}\n")
