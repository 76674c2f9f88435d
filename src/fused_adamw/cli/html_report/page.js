"use strict";
// Draws the figures, follows the color scheme of the reader, and lets the slider and the list choose.
const data = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const element = (name) => document.getElementById("figure-" + name);

function colors() {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text").trim();
  const line = style.getPropertyValue("--line").trim();
  return { text, line };
}

function withColors(layout) {
  const { text, line } = colors();
  const changes = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": text };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis/.test(key)) {
      changes[key + ".gridcolor"] = line;
      changes[key + ".linecolor"] = line;
      changes[key + ".zerolinecolor"] = line;
    }
  }
  return changes;
}

async function draw() {
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  for (const [name, figure] of Object.entries(data.figures)) {
    await Plotly.newPlot(element(name), figure.data, figure.layout, options);
    await Plotly.relayout(element(name), withColors(figure.layout));
  }
}

function showAttention(index) {
  const { step, heads } = data.attention[index];
  document.getElementById("step-shown").textContent = step.toLocaleString("en");
  const traces = heads.map((_, head) => 2 * head + 1); // the right one of each pair
  return Plotly.restyle(element("attention"), { z: heads }, traces);
}

function showCurves(name) {
  const [steps, values, m, v] = data.curves[name];
  return Plotly.restyle(element("moments"), { x: [steps, steps, steps], y: [values, m, v] }, [0, 1, 2]);
}

async function start() {
  await draw();
  const slider = document.getElementById("step");
  slider.max = data.attention.length - 1;
  slider.value = slider.max;
  slider.addEventListener("input", () => showAttention(Number(slider.value)));
  await showAttention(Number(slider.value));
  const list = document.getElementById("parameter");
  for (const name of Object.keys(data.curves)) list.add(new Option(name, name));
  list.addEventListener("change", () => showCurves(list.value));
  dark.addEventListener("change", () => {
    for (const [name, figure] of Object.entries(data.figures))
      Plotly.relayout(element(name), withColors(figure.layout));
  });
  document.body.dataset.ready = "true";
}

start();
