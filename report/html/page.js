// The interactive parts of report.html: sorting, filtering, curves, parallel coordinates, the comparison of two runs.
// The tables are part of the page, so they can be read without this script and without plotly.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly interprets tags
  const words = (name) => name.replaceAll("_", " ");
  const config = { displaylogo: false, displayModeBar: false, responsive: true };
  const isThere = typeof Plotly !== "undefined";
  const missing = "The interactive curves need plotly.min.js, which is not here. To write it: python plot_results.py FOLDER";
  if (!isThere) all(".plot").forEach((box, k) => k ? box.remove() : box.replaceWith(missing));

  function layout(xaxis = {}, yaxis = {}, more = {}) {
    const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", showlegend: false,
      font: { family: css("--sans"), size: 13, color: css("--ink") }, margin: { l: 50, r: 14, t: 30, b: 40 },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: -1 },
      xaxis: { ...axis, title: { text: "epoch" }, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...more,
    };
  }

  // --- one experiment: a panel for each metric ---------------------------------------------------------

  function drawExperiment() {
    for (const box of all(".few .plot")) {
      const lines = data.series[box.dataset.name];
      const places = { training: 0, validation: 1 };
      const traces = Object.entries(lines).map(([name, values], k) => ({
        x: data.epochs, y: values, name: plain(name), mode: data.epochs.length > 40 ? "lines" : "lines+markers",
        line: { color: data.palette[(places[name] ?? k) % data.palette.length], width: 2 }, marker: { size: 5 },
        hovertemplate: "epoch %{x}: %{y:.5g}<extra>%{fullData.name}</extra>",
      }));
      const mark = { type: "line", x0: data.best_epoch, x1: data.best_epoch, yref: "paper", y0: 0, y1: 1 };
      const shapes = data.best_epoch === null ? [] : [{ ...mark, line: { color: css("--done"), width: 1, dash: "dash" } }];
      const title = { text: plain(words(box.dataset.name)), x: 0, xref: "paper", y: 0.97, yanchor: "top", font: { size: 14 } };
      const legend = { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom" };
      const margin = { l: 50, r: 14, t: 56, b: 40 };
      const showlegend = box.dataset.name !== "learning_rate" || traces.length > 1;
      Plotly.react(box, traces, layout({}, {}, { shapes, title, legend, margin, showlegend }), config);
    }
  }

  // --- several runs ------------------------------------------------------------------------------------

  const runs = data.runs || [];
  const state = { metric: data.metric, train: runs.length <= 12, mean: true, log: false, chosen: new Set(), brush: [] };
  let passing = runs.map((_, i) => i); // the runs that match the filter box
  let shown = passing; // those that also lie in the ranges chosen on the axes

  function columnOf(name) {
    const names = data.columns.map((column) => column.name);
    return [name, `val_${name}`].map((candidate) => names.indexOf(candidate)).find((place) => place >= 0) ?? -1;
  }

  function makeTest(word) {
    const parts = word.match(/^([^<>=!]+)(>=|<=|!=|>|<|=)(.*)$/);
    if (!parts) return (run) => run.text.includes(word.toLowerCase());
    const [, name, sign, wanted] = parts, place = columnOf(name);
    if (place < 0) throw new Error(`no column ${name}; there are ${data.columns.map((column) => column.name).join(", ")}`);
    if (wanted === "") throw new Error(`${name}${sign}: a value is expected`);
    const number = Number(wanted);
    return (run) => {
      const value = run.cells[place];
      if (sign === "=" || sign === "!=") {
        const equal = typeof value === "number" ? value === number : String(value ?? "").toLowerCase() === wanted.toLowerCase();
        return equal === (sign === "=");
      }
      if (typeof value !== "number" || Number.isNaN(number)) return false;
      return sign === ">" ? value > number : sign === "<" ? value < number : sign === ">=" ? value >= number : value <= number;
    };
  }

  function filter() {
    const message = one("#count");
    message.classList.remove("wrong");
    try {
      const text = one("#filter").value.replace(/\s*(>=|<=|!=|>|<|=)\s*/g, "$1").trim();
      const tests = text ? text.split(/\s+/).map(makeTest) : [];
      passing = runs.map((_, i) => i).filter((i) => tests.every((test) => test(runs[i])));
    } catch (error) {
      message.classList.add("wrong");
      message.textContent = error.message;
      return;
    }
    drawAxes();
    show();
  }

  function show() {
    shown = passing.filter((i) => state.brush.every(({ values, ranges }) => {
      return !ranges || ranges.some(([low, high]) => values[i] >= low && values[i] <= high);
    }));
    const visible = new Set(shown);
    all("#runs tbody tr").forEach((row) => { row.hidden = !visible.has(Number(row.dataset.i)); });
    one("#count").textContent = shown.length === runs.length ? `${runs.length} runs` : `${shown.length} of ${runs.length} runs`;
    drawCurves();
  }

  function sort(header) {
    const place = Number(header.dataset.place), column = data.columns[place];
    const before = header.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : column.ascending;
    all("#runs th").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const collator = new Intl.Collator(undefined, { numeric: true });
    const missing = (value) => value === null || value === undefined || value === "";
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)));
    const body = one("#runs tbody");
    const rows = all("tr", body).sort((left, right) => {
      const a = runs[left.dataset.i].cells[place], b = runs[right.dataset.i].cells[place];
      if (missing(a) || missing(b)) return missing(a) - missing(b); // missing values come last in either direction
      return ascending ? compare(a, b) : compare(b, a);
    });
    body.append(...rows);
  }

  const colour = (run) => (run.rank < data.num_named ? data.palette[run.rank % data.palette.length] : css("--faint"));

  function styleOf(members) {
    const run = runs[members[0]], named = run.rank < data.num_named;
    const strong = members.some((i) => state.chosen.has(i)), faded = state.chosen.size > 0 && !strong;
    return {
      color: strong && !named ? css("--ink") : colour(run), width: strong ? 4 : named ? 1.9 : 1.1,
      opacity: faded ? 0.22 : 1, level: strong ? 2e6 : named ? 1e6 - run.rank : 0,
    };
  }

  // The runs of a setting as one line: the mean over the epochs that all of them have.
  function meanOf(members, key) {
    const lines = members.map((i) => runs[i]).filter((run) => run.series[key]);
    if (lines.length < 2) return lines.length ? { x: lines[0].epochs, y: lines[0].series[key] } : null;
    const tables = lines.map((run) => new Map(run.epochs.map((epoch, k) => [epoch, run.series[key][k]])));
    const x = lines[0].epochs.filter((epoch) => tables.every((table) => typeof table.get(epoch) === "number"));
    return { x, y: x.map((epoch) => tables.reduce((sum, table) => sum + table.get(epoch), 0) / tables.length) };
  }

  function lines() {
    if (!state.mean) return shown.map((i) => ({ members: [i], name: runs[i].name }));
    const settings = new Map();
    shown.forEach((i) => settings.set(runs[i].rank, [...(settings.get(runs[i].rank) || []), i]));
    return [...settings.values()].map((members) => {
      const [first] = members, mean = `${data.labels[runs[first].rank]}: mean of ${members.length}`;
      return { members, name: members.length > 1 ? mean : runs[first].name };
    });
  }

  function drawCurves() {
    if (!isThere) return;
    const styled = lines().map((line) => ({ ...line, ...styleOf(line.members) })).sort((a, b) => a.level - b.level);
    const traces = [];
    for (const split of state.train ? ["train", "val"] : ["val"]) {
      for (const { members, name, color, width, opacity } of styled) {
        const points = meanOf(members, `${split}_${state.metric}`);
        if (!points) continue;
        const what = `${split === "train" ? "training" : "validation"} ${plain(words(state.metric))}`;
        traces.push({
          ...points, name: plain(name), meta: members, opacity, marker: { size: 5 },
          mode: points.x.length === 1 || (styled.length <= 20 && points.x.length <= 20) ? "lines+markers" : "lines",
          line: { color, width, dash: split === "train" ? "dot" : "solid" },
          hovertemplate: `<b>%{fullData.name}</b><br>${what} %{y:.5g}, epoch %{x}<extra></extra>`,
        });
      }
    }
    const title = { text: plain(words(state.metric)) };
    Plotly.react("curves", traces, layout({}, { title, type: state.log ? "log" : "linear" }), config);
  }

  function decades(numbers) {
    const low = Math.ceil(Math.log10(Math.min(...numbers))), high = Math.floor(Math.log10(Math.max(...numbers)));
    return Array.from({ length: Math.max(0, high - low + 1) }, (_, k) => 10 ** (low + k));
  }

  // Parallel coordinates: one axis for each parameter, and one for the metric.
  function axisOf({ name, place, log }) {
    const cells = runs.map((run) => run.cells[place]);
    const label = plain(name.length > 22 ? `${name.slice(0, 20)}…` : name);
    const numbers = cells.filter((value) => typeof value === "number");
    const distinct = [...new Set(cells.filter((value) => value !== null))];
    if (numbers.length && cells.every((value) => typeof value === "number" || value === null)) {
      const scale = log ? Math.log10 : (value) => value;
      const values = cells.map((value) => (value === null ? NaN : scale(value)));
      const axis = { label, values };
      if (log || distinct.length <= 6) {
        const ticks = distinct.length <= 6 ? distinct : decades(numbers);
        Object.assign(axis, { tickvals: ticks.map(scale), ticktext: ticks.map((value) => String(Number(value.toPrecision(3)))) });
      }
      return axis;
    }
    const names = [...new Set(cells.map((value) => String(value ?? "none")))].sort(new Intl.Collator(undefined, { numeric: true }).compare);
    const values = cells.map((value) => names.indexOf(String(value ?? "none")));
    const short = names.map((text) => plain(text.length > 16 ? `${text.slice(0, 15)}…` : text));
    return { label, values, tickvals: names.map((_, k) => k), ticktext: short, range: [-0.2, names.length - 0.8] };
  }

  const axes = (data.axes || []).map(axisOf);

  function drawAxes() {
    const box = one("#axes");
    if (!box || !isThere) return;
    const whole = passing.filter((i) => axes.every((axis) => Number.isFinite(axis.values[i])));
    const dimensions = axes.map((axis, k) => {
      const ranges = state.brush[k]?.ranges;
      const constraint = ranges ? { constraintrange: ranges.length === 1 ? ranges[0] : ranges } : {};
      return { ...axis, values: whole.map((i) => axis.values[i]), ...constraint };
    });
    const color = whole.map((i) => axes[axes.length - 1].values[i]);
    const colorscale = [[0, css("--faint")], [0.5, "#7a63a8"], [1, "#e4572e"]];
    const line = { color, colorscale, reversescale: data.minimize, showscale: false };
    const font = { color: css("--ink"), size: 12 };
    const trace = { type: "parcoords", dimensions, line, labelfont: font, tickfont: font, rangefont: { ...font, color: css("--soft") } };
    trace.unselected = { line: { color: css("--faint"), opacity: 0.15 } };
    Plotly.react(box, [trace], layout({}, {}, { margin: { l: 110, r: 60, t: 50, b: 24 } }), config);
  }

  function brushed() {
    state.brush = one("#axes").data[0].dimensions.map((dimension, k) => {
      const range = dimension.constraintrange;
      return { values: axes[k].values, ranges: range ? (Array.isArray(range[0]) ? range : [range]) : null };
    });
    show();
  }

  // Two runs side by side.
  const ticked = [];

  function tick(box) {
    const i = Number(box.closest("tr").dataset.i);
    if (box.checked) ticked.push(i);
    else ticked.splice(ticked.indexOf(i), 1);
    if (ticked.length > 2) one(`#runs tr[data-i="${ticked.shift()}"] input`).checked = false;
    const target = one("#difference");
    target.replaceChildren();
    if (ticked.length < 2) return;
    const [a, b] = ticked.map((k) => runs[k]);
    const table = document.createElement("table");
    const line = (cells, kind) => {
      const row = table.insertRow();
      for (const text of cells) row.appendChild(document.createElement(kind)).textContent = text;
    };
    line(["", a.name, b.name, "difference"], "th");
    let count = 0;
    data.columns.forEach((column, place) => {
      const [left, right] = [a.cells[place], b.cells[place]];
      if (column.kind === "name" || left === right) return;
      count += column.kind === "parameter";
      const both = typeof left === "number" && typeof right === "number" && column.kind !== "parameter";
      const by = both ? Number((right - left).toPrecision(4)) : "";
      const brief = (value) => (both ? String(Number(value.toPrecision(6))) : value ?? "");
      line([column.name, brief(left), brief(right), by > 0 ? `+${by}` : String(by)], "td");
    });
    const caption = document.createElement("p");
    caption.textContent = count === 1 ? "1 parameter differs." : `${count} parameters differ.`;
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.append(table);
    target.append(caption, scroll);
  }

  function hover(members) {
    all("#runs tr.hovered").forEach((row) => row.classList.remove("hovered"));
    members.forEach((i) => one(`#runs tr[data-i="${i}"]`).classList.add("hovered"));
  }

  function choose(members) {
    const on = !members.every((i) => state.chosen.has(i));
    members.forEach((i) => {
      if (on) state.chosen.add(i); else state.chosen.delete(i);
      one(`#runs tr[data-i="${i}"]`).classList.toggle("chosen", on);
    });
    drawCurves();
  }

  function listen() {
    const body = one("#runs tbody");
    all("#runs th[data-place]").forEach((header) => one("button", header).addEventListener("click", () => sort(header)));
    body.addEventListener("click", (event) => {
      if (event.target.matches("input")) tick(event.target);
      else if (!event.target.closest("a")) choose([Number(event.target.closest("tr").dataset.i)]);
    });
    let waiting = 0;
    one("#filter").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(filter, runs.length > 60 ? 200 : 0);
    });
    one("#metric").addEventListener("change", (event) => { state.metric = event.target.value; drawCurves(); });
    for (const name of ["train", "mean", "log"]) {
      const box = one(`#${name}`); // "mean" only where runs can be averaged
      if (box) box.checked = state[name];
      box?.addEventListener("change", () => { state[name] = box.checked; drawCurves(); });
    }
    one("#none").addEventListener("click", () => {
      state.chosen.clear();
      all("#runs tr.chosen").forEach((row) => row.classList.remove("chosen"));
      drawCurves();
    });
  }

  function listenToPlots() {
    const curves = one("#curves");
    curves.on("plotly_hover", (event) => hover(event.points[0].data.meta));
    curves.on("plotly_unhover", () => hover([]));
    curves.on("plotly_click", (event) => choose(event.points[0].data.meta));
    one("#axes")?.on("plotly_restyle", brushed);
  }

  function drawRuns() {
    all("#runs tbody tr").forEach((row) => { one(".swatch", row).style.background = colour(runs[row.dataset.i]); });
    drawAxes();
    show();
  }

  if (runs.length) {
    runs.forEach((run) => { run.text = run.cells.map((value) => String(value ?? "")).join(" ").toLowerCase(); });
    listen();
    drawRuns();
    if (isThere) listenToPlots();
  }
  if (data.series && isThere) drawExperiment();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (runs.length) drawRuns();
    if (data.series && isThere) drawExperiment();
  });
  document.documentElement.dataset.ready = "1";
});
