"""The page of a run of a hundred rounds in a browser: on a phone, by keyboard, without a network."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, needs_chromium
from flwr.app import MetricRecord

from flower_bfl import ConsensusBFL, EvmLedger, Mining
from flower_bfl.attacks import GaussianNoise
from flower_bfl.defences import Replay
from flower_bfl.network import NetworkConfig, NetworkProcess
from flower_bfl.report_page import write_page
from flower_bfl.report_page._map import read_positions

ROUNDS, DEVICES, SERVERS, STEPS = 100, 10, 3, 5
ATTACKED = 4  # round


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run in which edge server 1 lies once, of ten devices, some of which offload, with its page."""
    folder = tmp_path_factory.mktemp("runs") / "a hundred"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "strategies")
        import field

        app = field.least_squares_app(field.own_points, report=field.numbered)
        strategy = ConsensusBFL(
            edge_servers=SERVERS, p2p_rounds=STEPS, graph="ring", ledger=EvmLedger(folder / "chain"),
            run_folder=folder, mining=Mining(difficulty_bits=1), wait_for_nodes_s=0.1, fraction_evaluate=0.0,
            attacks=[GaussianNoise(server=1, rounds=[ATTACKED], p2p_step=3)], defence=Replay(),
            controller=field.Sending(field.roomy(DEVICES, SERVERS), {0: 0, 1: 2, 2: 2}),
        )  # fmt: skip
        strategy.start(
            field.Field([app] * (DEVICES + SERVERS)), field.start_weights(), ROUNDS,
            evaluate_fn=lambda k, arrays: MetricRecord({"accuracy": 1 - 1 / (k + 2), "loss": 1 / (k + 1)}),
        )  # fmt: skip
    _, verdict = write_page(folder)
    assert verdict.state == "holds"
    yield folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(chromium: Chromium, folder: Path) -> Chromium:
    """The page on a wide screen; nothing was asked of a network, and nothing went wrong."""
    chromium.open(folder / "report.html")
    yield chromium
    assert chromium.requests == [(folder / "report.html").as_uri()]
    assert chromium.errors == []


def test_a_hundred_rounds_are_no_three_megabytes(folder: Path) -> None:
    size = (folder / "report.html").stat().st_size
    print(f"page of {ROUNDS} rounds: {size:,} bytes")  # noqa: T201
    assert 100_000 < size < 3_000_000


def test_the_network_is_part_of_the_run_folder(folder: Path) -> None:
    network = NetworkConfig(DEVICES, SERVERS, DEVICES)
    drawn = NetworkProcess(
        network, np.random.default_rng([0, 20])
    )  # the strategy's seed, and the plan's stream
    told = read_positions(folder)
    assert told is not None and told.area_m == network.radio.area_m
    np.testing.assert_allclose(told.devices_m, drawn.positions_m, atol=0.05)
    np.testing.assert_allclose(told.servers_m, network.places_m, atol=0.05)


# -- in the browser ------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_has_its_colours(chromium, folder, width, scheme) -> None:
    chromium.open(folder / "report.html", width=width, scheme=scheme)
    for tab in ("", "tab-by-clock", "tab-entries"):
        chromium.run(f"document.getElementById('{tab}')?.click()")
        assert chromium.run("document.documentElement.scrollWidth") == width
    for details in ("open", "closed"):
        chromium.run(
            f"document.querySelectorAll('details').forEach(e => e.open = {str(details == 'open').lower()})"
        )
        assert chromium.run("document.documentElement.scrollWidth") == width
    light = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(light) > 200) if scheme == "light" else (max(light) < 60)
    assert chromium.requests == [(folder / "report.html").as_uri()] and chromium.errors == []


CONTRAST = """
(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => x / 255).map(
      (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
  };
  const least = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (!element.checkVisibility() || element.closest(".map svg, .strip svg, :disabled")) continue;
    const style = getComputedStyle(element);
    const inSvg = element.ownerSVGElement;
    const [a, b] = [light(inSvg ? style.fill : style.color), light(ground(element))].sort((x, y) => x - y);
    least.push([(b + 0.05) / (a + 0.05), element.outerHTML.slice(0, 90)]);
  }
  return least.sort((x, y) => x[0] - y[0])[0];
})()
"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(chromium, folder, scheme) -> None:
    """WCAG's contrast, 4.5 to 1."""
    chromium.open(folder / "report.html", scheme=scheme)
    chromium.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    chromium.run("document.getElementById('tab-entries').click()")
    contrast, where = chromium.run(CONTRAST)
    assert contrast >= 4.5, where


@needs_chromium
def test_everything_can_be_reached_by_tab(page) -> None:
    reached = []
    for _ in range(80):
        page.press("Tab")
        at = "(e => e.id || e.className || e.getAttribute('aria-label') || e.tagName)(document.activeElement)"
        name = page.run(f"(e => typeof e === 'string' ? e : e.baseVal)({at})")
        outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
        reached.append(name)
        if name in ("BODY", ""):
            break
        assert outline != "none" or name == "BODY", name
        if name == "tab-blocks":
            page.press("ArrowRight")
    assert reached[0] == "skip"
    order = ["tab-by-round", "plot", "map-round", "tab-blocks", "f-round", "f-kind", "f-sender", "f-text"]
    places = [reached.index(name) for name in order]
    assert places == sorted(places)
    assert "tab-by-clock" not in reached  # the arrows lead there


@needs_chromium
def test_the_skip_link_leads_to_the_run(page) -> None:
    page.press("Tab")
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0
    page.press("Enter")
    assert page.run("document.activeElement.id") == "main"


@needs_chromium
def test_tabs_by_keyboard(page) -> None:
    page.run("document.getElementById('tab-by-round').focus()")
    shown = "['by-round', 'by-clock'].map(n => document.getElementById('panel-' + n).checkVisibility())"
    assert page.run(shown) == [True, False]
    page.press("ArrowRight")
    assert page.run(shown) == [False, True]
    assert page.run("document.activeElement.getAttribute('aria-selected')") == "true"
    page.press("Home")
    assert page.run(shown) == [True, False]


@needs_chromium
def test_the_values_of_a_chart_by_keyboard_and_by_pointer(page) -> None:
    page.run("document.querySelector('.plot').focus()")
    page.press("End")
    readout = "document.querySelector('.readout').textContent"
    assert page.run(readout) == f"round {ROUNDS}: accuracy {1 - 1 / (ROUNDS + 2):.2%}".replace("%", " %")
    page.press("ArrowLeft", 2)
    assert page.run(readout).startswith(f"round {ROUNDS - 2}: ")
    page.press("Escape")
    assert page.run(readout) == ""
    page.run("document.querySelector('.plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = page.run(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('.plot').getBoundingClientRect())"
    )
    x, y = box[0] + box[2] * 52.0 / 360, box[1] + box[3] / 2  # where round 0 is
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert page.run(readout) == "round 0: accuracy 50.00 %"


@needs_chromium
def test_the_map_of_another_round_by_keyboard(page) -> None:
    page.run("document.getElementById('map-round').focus()")
    barred = "[...document.querySelectorAll('[data-server].barred')].map(e => e.dataset.server)"
    assert page.run("document.getElementById('map-number').textContent") == str(ROUNDS)
    assert page.run("document.querySelectorAll('#map-lines .data').length") == 3
    page.press("Home")
    page.press("ArrowRight", ATTACKED - 1)
    assert page.run("document.getElementById('map-number').textContent") == str(ATTACKED)
    assert (
        page.run("document.getElementById('map-round').getAttribute('aria-valuetext')") == f"round {ATTACKED}"
    )
    assert page.run(barred) == ["1"]
    rows = page.run(
        "[...document.querySelectorAll('#map-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert rows[1] == ["1in quarantine", "", ""]
    assert rows[2][2] == "1, 2"


def found(page: Chromium) -> tuple[int, int]:
    """How many entries are found, of how many."""
    few, _, every, _ = page.run("document.getElementById('found').textContent").split()
    return int(few.replace(",", "")), int(every.replace(",", ""))


def shown(page: Chromium) -> list[list[str]]:
    rows = "[...document.querySelectorAll('#entries tr')]"
    return page.run(f"{rows}.map(r => [...r.cells].map(c => c.textContent))")


@needs_chromium
def test_entries_are_filtered_by_keyboard(page, folder) -> None:
    ledger = EvmLedger(folder / "chain", read_only=True)
    recorded = list(ledger.recorded())
    ledger.close()
    page.run("document.getElementById('tab-blocks').focus()")
    page.press("ArrowRight")
    assert found(page) == (len(recorded), len(recorded))
    assert len(shown(page)) == 50

    page.run("document.getElementById('f-round').focus()")
    page.press("ArrowDown", ATTACKED + 1)  # all, 0, 1, ...
    of_round = [at for at in recorded if at.entry.round == ATTACKED]
    assert found(page)[0] == len(of_round)
    page.press("Tab")
    page.press("v")  # as in vote
    votes = [at for at in of_round if at.entry.kind.name == "VOTE"]
    assert found(page)[0] == len(votes) == 2
    assert [row[8] for row in shown(page)] == [at.digest.hex()[:8] for at in votes]

    page.run("document.querySelector('.filters [type=reset]').focus()")
    page.press("Enter")
    page.run("new Promise(done => setTimeout(done, 20))")
    assert found(page)[0] == len(recorded)
    wanted = recorded[-1]
    page.run("document.getElementById('f-text').focus()")
    for letter in "0x" + recorded[-2].digest.hex()[:12]:
        page.press(letter)
    assert found(page)[0] == 1
    page.run("document.getElementById('f-text').value = ''")
    page.run("document.getElementById('f-sender').focus()")
    for letter in str(wanted.entry.sender):
        page.press(letter)
    theirs = [at for at in recorded if at.entry.sender == wanted.entry.sender]
    assert found(page)[0] == len(theirs)


@needs_chromium
def test_an_entry_opens_to_all_of_its_figures(page, folder) -> None:
    ledger = EvmLedger(folder / "chain", read_only=True)
    at = next(iter(ledger.recorded()))
    gas = ledger.gas_of(at.block)[at.transaction]
    ledger.close()
    page.run("document.getElementById('tab-entries').click()")
    page.run("document.querySelector('#entries button').focus()")
    page.press("Enter")
    told = page.run("document.querySelector('#entries .rest').textContent")
    for figure in (at.digest.hex(), at.transaction_hash.hex(), at.account.hex(), f"{gas:,}"):
        assert figure in told
    page.press("Enter")
    assert page.run("document.querySelector('#entries .rest')") is None
    page.run("document.getElementById('after').focus()")
    page.press("Enter")
    assert page.run("document.getElementById('at').textContent") == "51 to 100"


@needs_chromium
def test_the_printed_page_has_everything_on_white(page, folder) -> None:
    page.call("Emulation.setEmulatedMedia", media="print", features=[])
    hidden = page.run(
        "[...document.querySelectorAll('.panel')].filter(e => !e.checkVisibility()).map(e => e.id)"
    )
    controls = page.run(
        "[...document.querySelectorAll('nav, .tabs, form')].filter(e => e.checkVisibility()).length"
    )
    page.call("Emulation.setEmulatedMedia", media="", features=[])
    assert (hidden, controls) == ([], 0)


@needs_chromium
def test_the_page_can_be_read_without_its_script(chromium, folder) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(folder / "report.html")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
    panels = "[...document.querySelectorAll('.panel')].every(e => e.checkVisibility())"
    assert chromium.run(panels)
    assert chromium.run("document.querySelectorAll('.plot text').length") > 50
    assert (
        chromium.run(
            "[...document.querySelectorAll('.tabs, .slider, #explorer')].some(e => e.checkVisibility())"
        )
        is False
    )


@needs_chromium
def test_hostile_words_do_nothing(chromium, tmp_path) -> None:
    words = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    named = {"who": words, "reason": words}
    line = {
        "round": 1,
        "suspected": [named],
        "left_out": [named],
        "head": words,
        "evaluate": {"accuracy": 0.5},
    }
    (tmp_path / "rounds.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    path, _ = write_page(tmp_path)
    chromium.open(path)
    assert chromium.run("document.title").endswith("flower-bfl run")
    assert chromium.run("document.querySelectorAll('img').length") == 0
    assert words in chromium.run("document.body.textContent")
    assert chromium.requests == [path.as_uri()] and chromium.errors == []


@needs_chromium
def test_how_long_the_page_takes(page, folder) -> None:
    """No assertion on seconds: they are the machine's."""
    painted = """new Promise((done) => {
      new PerformanceObserver((list) => {
        for (const one of list.getEntriesByName("first-contentful-paint")) done(one.startTime);
      }).observe({ type: "paint", buffered: true });
      setTimeout(() => done(NaN), 20000);
    })"""
    times = []
    for _ in range(3):
        page.open(folder / "report.html", width=360, height=740)
        times.append((page.run(painted), page.run("performance.getEntriesByName('ready')[0].startTime")))
    told = ", ".join(f"{paint:.0f} ms / {ready:.0f} ms" for paint, ready in times)
    print(f"first paint / all is ready, {ROUNDS} rounds: {told}")  # noqa: T201
    assert all(paint and paint > 0 for paint, _ in times)
