"""`fused-adamw train --report`: what the page contains, and that a browser shows it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_process import SMALL, in_a_process

from fused_adamw import AdamW
from fused_adamw.tiny import sentence_task
from fused_adamw.tiny.model import TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.recording import Recorder

BLUE, ORANGE = "#2f81f7", "#d9730d"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def data_of(path):
    page = Path(path).read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))


def attention_by_hand(model):
    """softmax(Q K^T / sqrt(d)) of the sentence, below the diagonal."""
    p = model.parameters
    X = p["E_token"][list(TOKENS)] + p["E_pos"][: len(TOKENS)]
    maps = []
    for W_Q, W_K in zip(p["W_Q"], p["W_K"], strict=True):
        scores = (X @ W_Q) @ (X @ W_K).T / np.sqrt(W_Q.shape[1])
        weights = np.tril(np.exp(scores))
        maps.append(weights / weights.sum(axis=1, keepdims=True))
    return np.array(maps)


@pytest.mark.slow
def test_the_page_has_what_the_model_was_and_became(run):
    status, _, err = run("train", "--steps", 12, "--report", "run.html")
    assert (status, err) == (0, "")
    data = data_of("run.html")
    steps = [snapshot["step"] for snapshot in data["attention"]]
    assert steps == list(range(13))

    model = TinyTransformer()
    optimizer = AdamW(model.parameters)
    rates, updates = {}, {}
    for step in range(13):
        shown = np.array(data["attention"][step]["heads"])
        np.testing.assert_allclose(shown, attention_by_hand(model), atol=1e-4)
        if step == 12:
            break
        _, grads = model.loss_and_gradients(TOKENS, TARGETS)
        before = {name: p.copy() for name, p in model.parameters.items()}
        optimizer.step(grads)
        if step == 0:
            for name, g in grads.items():  # v_hat is g^2 after one update
                rates[name] = np.median(0.001 / (np.abs(g[g != 0]) + 1e-8))
                change = model.parameters[name] - before[name]
                updates[name] = np.linalg.norm(change) / np.linalg.norm(model.parameters[name])

    for figure, expected in (("rates", rates), ("updates", updates)):
        (heat_map,) = data["figures"][figure]["data"]
        assert heat_map["y"] == list(expected)
        first = [10 ** row[0] for row in heat_map["z"]]
        np.testing.assert_allclose(first, list(expected.values()), rtol=1e-5)

    titles = [note["text"] for note in data["figures"]["attention"]["layout"]["annotations"]]
    assert titles == ["head 0, start", "head 0, now", "head 1, start", "head 1, now"]

    curve = next(c for name, c in data["curves"].items() if name.startswith("b_2["))
    assert curve[0] == list(range(1, 13))
    name = next(name for name in data["curves"] if name.startswith("b_2["))
    element = json.loads(name.removeprefix("b_2"))
    final = [optimizer.m["b_2"], optimizer.v["b_2"]]
    assert curve[1][-1] == model.parameters["b_2"][tuple(element)]
    assert [curve[2][-1], curve[3][-1]] == [moment[tuple(element)] for moment in final]


@pytest.mark.slow
def test_the_page_of_a_training_that_was_resumed(run):
    """It begins where the training was resumed: the model before training is not known."""
    resumed = "after 3 steps, where it was resumed"
    assert run("train", "--steps", 3, "--checkpoint", "run.st", "--report", "run.html")[0] == 0
    page = " ".join(Path("run.html").read_text(encoding="utf-8").split())
    assert page.count("before training") == 2
    assert "the largest gradient at the first update" in page
    assert "resumed" not in page.partition("<script>")[0]

    options = ("--checkpoint", "run.st", "--resume", "--report", "run.html")
    assert run("train", "--steps", 6, *options)[0] == 0
    page = " ".join(Path("run.html").read_text(encoding="utf-8").split())
    assert f"tokens of each position, {resumed}, and at the end." in page
    assert f"Left: {resumed}. Right:" in page
    assert "before training" not in page.partition("<script>")[0]
    assert [snapshot["step"] for snapshot in data_of("run.html")["attention"]] == [3, 4, 5, 6]


@pytest.mark.slow
def test_every_section_has_a_link(run):
    assert run("train", "--steps", 2, "--report", "run.html")[0] == 0
    page = Path("run.html").read_text(encoding="utf-8")
    links = re.search(r"<nav>(.*?)</nav>", page, re.DOTALL)[1]
    linked = re.findall(r'<a href="#([\w-]+)">', links)
    assert linked == re.findall(r'<section id="([\w-]+)">', page)
    assert linked[-1] == "config"


@pytest.mark.slow
def test_the_losses_of_a_text_the_rates_and_the_line_of_the_clipping(run, text):
    options = (*SMALL, "--steps", 40, "--warmup", 10, "--max-grad-norm", 0.5)
    status, out, _ = run("train", "--text", text, *options, "--report", "run.html", "--json")
    assert status == 0
    record, figures = json.loads(out), data_of("run.html")["figures"]
    training, held_out, rate = figures["loss"]["data"]
    assert training["y"] == record["losses"]
    assert held_out["y"][0] == record["initial_held_out_loss"]
    assert held_out["y"][-1] == record["final_held_out_loss"]
    assert rate["y"] == record["learning_rates"]
    page = Path("run.html").read_text(encoding="utf-8")  # has no legend
    for curve, name, color in ((training, "blue", BLUE), (held_out, "orange", ORANGE)):
        assert (f"({name})" in page, curve["line"]["color"]) == (True, color)
    assert figures["norm"]["data"][0]["y"] == record["gradient_norms"]
    (line,) = figures["norm"]["layout"]["shapes"]
    assert line["y0"] == line["y1"] == 0.5


@pytest.mark.slow
def test_the_page_needs_no_network_and_shows_any_text(run):
    Path("text").write_text("</script><b>&amp;\n" * 30, encoding="utf-8")
    run("train", "--text", "text", "--steps", 3, *SMALL, "--report", "run.html")
    page = Path("run.html").read_text(encoding="utf-8")
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"https?:", without_scripts)
    assert not re.search(r"<script[^>]* src", page)
    assert "<b>" not in without_scripts
    assert data_of("run.html")["figures"]


@pytest.mark.slow
def test_a_diverging_and_an_endless_training_have_a_page(run):
    status, _, _ = run("train", "--steps", 9, "--lr", 1e200, "--report", "run.html")
    page = Path("run.html").read_text(encoding="utf-8")
    assert page.count("<td>none: the scores are not finite</td>") == len(TARGETS)
    assert "nan%" not in page
    assert status == 0
    assert data_of("run.html")["figures"]["loss"]["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--report", "run.txt"), "--report must name an .html file; got run.txt"),
        (("--report", "run.html", "--compare"), "--compare cannot be combined with --report"),
        (("--report", "run.html", "--mpi"), "--mpi cannot be combined with --report"),
        (("--report", "missing/run.html"), "missing does not exist; create it first"),
        (("--report", "a.html", "--log", "a.html"), "--log and --report must be different"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_training(run, arguments, message):
    if "--mpi" in arguments:
        pytest.importorskip("mpi4py")
    status, out, err = run("train", *arguments)
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())


@pytest.mark.slow
def test_without_plotly_the_extra_is_named(tmp_path):
    code = "import sys; sys.modules['plotly'] = None\nfrom fused_adamw.cli import main; main()"
    result = in_a_process(code, "train", "--steps", 1, "--report", tmp_path / "run.html")
    assert result.returncode == 2
    assert 'pip install "fused-adamw[report]"' in result.stderr
    assert not (tmp_path / "run.html").exists()


PROBE = """
<script>
async function probe() {
  while (document.body.dataset.ready !== "true") await new Promise((done) => setTimeout(done, 50));
  const slider = document.getElementById("step"), map = document.getElementById("figure-attention");
  const last = JSON.stringify(map.data[1].z);
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  await new Promise((done) => setTimeout(done, 300));
  const list = document.getElementById("parameter");
  list.value = list.options[3].value;
  list.dispatchEvent(new Event("change"));
  await new Promise((done) => setTimeout(done, 300));
  parent.postMessage(JSON.stringify({
    figures: [...document.querySelectorAll(".figure svg.main-svg")].length,
    moved: JSON.stringify(map.data[1].z) !== last,
    back: JSON.stringify(map.data[1].z) === JSON.stringify(map.data[0].z),
    step: document.getElementById("step-shown").textContent,
    curve: document.getElementById("figure-moments").data[0].y.length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
  }), "*");
}
probe();
</script>
"""

FRAME = """
<iframe src="probed.html" width="{width}" height="900"></iframe>
<script>
addEventListener("message", (event) => {{
  document.body.insertAdjacentHTML("beforeend", "<pre id=probe>" + event.data + "</pre>");
}});
</script>
"""  # since no window of Chromium is as narrow as a phone


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("width", "more", "background"),
    [
        (1100, (), "rgb(255, 255, 255)"),
        (360, (), "rgb(255, 255, 255)"),
        (1100, ("--blink-settings=preferredColorScheme=0",), "rgb(13, 17, 23)"),
    ],
)
def test_a_browser_draws_the_page_and_moves_the_slider(run, tmp_path, width, more, background):
    run("train", "--steps", 20, "--report", "run.html")
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(width=width), encoding="utf-8")
    html = Path("run.html").read_text(encoding="utf-8")
    probed = html.replace("</body>", PROBE + "</body>")
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    command = [CHROMIUM, *fixed, *more, "--window-size=1200,1000", "--virtual-time-budget=30000"]
    result = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=True,
    )
    assert "CONSOLE" not in result.stderr
    found = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', result.stdout).group(1))
    assert found["figures"] >= 7
    assert found["moved"]
    assert found["back"]
    assert found["step"] == "0"
    assert found["curve"] == 20
    assert found["wide"] <= 0
    assert found["background"] == background


@pytest.mark.parametrize("steps", [0, 1, 10**19, 10**20, 10**400])
def test_any_number_of_steps_can_be_recorded(steps):
    """More than an integer of NumPy has, and than float64."""
    model = TinyTransformer()
    recorder = Recorder(model, AdamW(model.parameters), sentence_task(), steps, lambda t: 0.1)
    found = recorder._snapshot_steps
    assert {0, steps} <= found
    assert min(found) == 0
    assert max(found) <= max(steps, 1)
