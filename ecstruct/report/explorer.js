"use strict";
// Draws what ecstruct/report/explorer.py put into the page: the scores of one prompt, or of a mean of
// prompts, layer by token, and the MLP and the heads of the cell that is chosen.

function explore(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const { scores, layers, heads, views } = data;
  const part = (selector) => root.querySelector(selector);
  const select = Object.fromEntries(
    [...root.querySelectorAll("[data-choose]")].map((node) => [node.dataset.choose, node]));
  const [map, bars] = [part(".map"), part(".drawing.heads")];
  const config = { displaylogo: false, responsive: false, modeBarButtons: [["toImage"]] };
  // Positions in `views`, `scores`, `layers` and among the tokens; `column` is 0 for MLPs, 1 for attention.
  const at = { view: 0, score: Math.max(0, scores.indexOf("informative")), layer: 0, token: 0, column: 0 };

  const view = () => views[at.view];
  const width = () => view().tokens.length;
  function unpacked() {
    const of = view();
    for (const name of ["mlp", "heads"]) {
      if (typeof of[name] === "string") {
        const bytes = Uint8Array.from(atob(of[name]), (character) => character.charCodeAt(0));
        of[name] = new Float32Array(bytes.buffer);
      }
    }
    return of;
  }
  const mlp = (score, layer, token) => unpacked().mlp[(score * layers.length + layer) * width() + token];
  const head = (score, layer, one, token) =>
    unpacked().heads[((score * layers.length + layer) * heads.length + one) * width() + token];
  const attention = (score, layer, token) =>
    heads.reduce((sum, _, one) => sum + head(score, layer, one, token), 0);
  const indices = (list) => list.map((_, i) => i);

  function signed(value, digits = 3) {
    const text = String(Number(value.toPrecision(digits)));
    return (value > 0 ? "+" + text : text).replaceAll("-", "−");
  }

  function fill(node, texts, chosen) {
    node.replaceChildren(...texts.map((text, i) => new Option(text, i)));
    node.value = chosen;
  }

  function fillViews() {
    const groups = new Map();
    views.forEach(({ group, label }, i) => {
      if (!groups.has(group)) {
        groups.set(group, document.createElement("optgroup"));
        groups.get(group).label = group;
      }
      groups.get(group).append(new Option(label, i));
    });
    select.view.replaceChildren(...groups.values());
  }

  function strongest() {
    let most = -1;
    for (const layer of indices(layers)) {
      for (const token of indices(view().tokens)) {
        const values = [mlp(at.score, layer, token), attention(at.score, layer, token)].map(Math.abs);
        if (Math.max(...values) > most) {
          most = Math.max(...values);
          Object.assign(at, { layer, token, column: values[0] < values[1] ? 1 : 0 });
        }
      }
    }
  }

  // Traces go down a column of panels first, as in ecstruct/plots/panels.py; plotly counts axes by rows.
  const axis = (column, score) => 2 * score + column + 1;

  function outlines() {
    return [0, 1].flatMap((column) =>
      [{ color: "#222222", width: 4 }, { color: "#ffffff", width: 1.5 }].map((line) => ({
        type: "rect",
        xref: "x" + axis(column, at.score),
        yref: "y" + axis(column, at.score),
        x0: at.token - 0.5,
        x1: at.token + 0.5,
        y0: layers[at.layer] - 0.5,
        y1: layers[at.layer] + 0.5,
        line,
      })));
  }

  function drawMap() {
    const { frame, labels } = view();
    const traces = data.frames[frame].data.map((trace, i) => {
      const [column, score] = [Math.floor(i / scores.length), i % scores.length];
      const value = column ? attention : mlp;
      const z = indices(layers).map((layer) => indices(labels).map((token) => value(score, layer, token)));
      const top = Math.max(...z.flat().map(Math.abs)) || 1;
      const bar = trace.colorbar;
      const texts = [-top, 0, top].map((tick) => signed(tick, 2));
      const inset = 0.52 * bar.tickfont.size * texts[2].length / bar.len; // numbers stay within the bar
      return {
        ...trace, z, x: indices(labels), y: layers, zmin: -top, zmax: top,
        text: layers.map(() => labels),
        hovertemplate: "layer %{y}, %{text}<br>" + data.unit + ": %{z:+.3g}<extra></extra>",
        colorbar: { ...bar, tickvals: [-1, 0, 1].map((end) => end * top * (1 - inset)), ticktext: texts },
      };
    });
    const layout = { ...data.frames[frame].layout, shapes: outlines() };
    for (const name of Object.keys(layout).filter((key) => key.startsWith("xaxis"))) {
      const ticks = { tickvals: indices(labels), ticktext: labels };
      layout[name] = { ...layout[name], ...ticks, range: [-0.5, labels.length - 0.5] };
    }
    part(".about").textContent = view().about;
    return Plotly.react(map, traces, layout, config);
  }

  function drawCell() {
    const { score, layer, token } = at;
    const places = indices(heads).map((one) => one + 2); // the MLP apart from the heads
    const names = ["MLP " + layers[layer], ...heads.map((one) => `head ${layers[layer]}.${one}`)];
    const all = (score) => [
      mlp(score, layer, token), ...indices(heads).map((one) => head(score, layer, one, token))];
    const values = all(score);
    // As wide as its bars want, or as its place on the page.
    const width = Math.max(Math.min(150 + 20 * heads.length, 900, bars.parentElement.clientWidth), 320);
    const apart = (width - 85) / (heads.length + 2.4); // bars, in pixels, of which a label takes 20
    const step = Math.ceil(20 / apart);
    const shown = indices(heads).filter((one) => one % step === 0 && (one + 2) * apart >= 20);
    const { template } = data.frames[view().frame].layout;
    Plotly.react(bars, [{
      type: "bar", x: [0, ...places], y: values, text: names, textposition: "none",
      marker: { color: values.map((value) => (value < 0 ? "#2166ac" : "#b2182b")) },
      hovertemplate: "%{text}: %{y:+.3g}<extra></extra>",
    }], {
      template, width, height: 250,
      margin: { l: 70, r: 15, t: 15, b: 52 }, plot_bgcolor: "#ffffff",
      xaxis: {
        range: [-0.7, heads.length + 1.7], title: { text: "MLP, and heads of layer " + layers[layer] },
        tickvals: [0, ...shown.map((one) => one + 2)], ticktext: ["MLP", ...shown.map((one) => heads[one])],
        tickangle: 0,
      },
      yaxis: { title: { text: data.unit }, zeroline: true, zerolinecolor: "#222222", zerolinewidth: 1 },
    }, config);

    const order = indices(heads).sort((a, b) => Math.abs(values[b + 1]) - Math.abs(values[a + 1]));
    const most = order.slice(0, 3).map((one) => `${layers[layer]}.${heads[one]} (${signed(values[one + 1])})`);
    part(".said").textContent =
      `${scores[score]}, layer ${layers[layer]}, “${view().tokens[token]}”: MLP ${signed(values[0])}, ` +
      `attention ${signed(attention(score, layer, token))}; strongest heads ${most.join(", ")}.`;
    const columns = indices(scores).map(all);
    const row = (tag, texts) => {
      const cells = texts.map((text, i) => {
        const cell = document.createElement(i && tag === "tr" ? "td" : "th");
        cell.textContent = text;
        if (cell.tagName === "TH") cell.scope = tag === "tr" ? "row" : "col";
        if (i) cell.className = "number";
        return cell;
      });
      const line = document.createElement("tr");
      line.append(...cells);
      return line;
    };
    part("thead").replaceChildren(row("thead", ["component", ...scores]));
    part("tbody").replaceChildren(...names.map((name, i) =>
      row("tr", [name, ...columns.map((column) => signed(column[i], 4))])));
  }

  function reveal() {
    const scroller = map.parentElement;
    const { width: wide, margin, ...layout } = data.frames[view().frame].layout;
    const [from, to] = layout["xaxis" + axis(at.column, at.score)].domain;
    const share = from + ((at.token + 0.5) / width()) * (to - from);
    const x = margin.l + share * (wide - margin.l - margin.r);
    const free = scroller.clientWidth;
    if (x < scroller.scrollLeft + 20 || x > scroller.scrollLeft + free - 20) scroller.scrollLeft = x - free / 2;
  }

  // A widget is told what is looked at; a report has nobody to tell.
  function tell() {
    const chosen = {
      prompts: view().label, score: scores[at.score], layer: layers[at.layer], token: view().tokens[at.token],
      part: at.column ? "attention" : "MLP",
    };
    if (parent !== window) parent.postMessage({ explorer: chosen }, "*");
  }

  // One place where everything changes: what was chosen, and whether the map has other numbers.
  function choose(changes) {
    const other = changes.view !== undefined && changes.view !== at.view;
    Object.assign(at, changes);
    at.layer = Math.min(Math.max(at.layer, 0), layers.length - 1);
    at.token = Math.min(Math.max(at.token, 0), width() - 1);
    if (other) {
      fill(select.token, view().tokens, at.token);
      drawMap();
    } else {
      Plotly.relayout(map, { shapes: outlines() });
    }
    for (const [name, node] of Object.entries(select)) node.value = at[name];
    drawCell();
    tell();
  }

  strongest();
  fillViews();
  fill(select.score, scores, at.score);
  fill(select.layer, layers, at.layer);
  fill(select.token, view().tokens, at.token);
  drawMap();
  drawCell();
  tell();
  for (const [name, node] of Object.entries(select)) {
    node.addEventListener("change", () => choose({ [name]: Number(node.value) }));
  }
  map.on("plotly_click", ({ points: [point] }) => {
    const panel = point.curveNumber;
    choose({
      column: Math.floor(panel / scores.length), score: panel % scores.length,
      layer: layers.indexOf(point.y), token: point.x,
    });
  });
  const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  map.parentElement.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    choose({ layer: at.layer + move[0], token: at.token + move[1] });
    reveal();
  });
}

addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explorer").forEach(explore));
