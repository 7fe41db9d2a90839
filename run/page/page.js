// What moves in a report: the dial, the questions, the curves. Text becomes text nodes, and nothing else.
"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const AT_ONCE = 20; // questions
  const LONG = 360; // characters of a text that is shown at first

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const html = (name, attributes = {}, ...children) =>
    fill(document.createElement(name), attributes, children);
  const svg = (name, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, name), attributes, children);

  const number = (value, digits = 3) =>
    String(Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
      ? value.toExponential(1) : +value.toPrecision(digits)).replace("-", "−");
  const percent = (share) =>
    share === null ? "?" : share > 0 && share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(1)}%`;
  const fixed = (value, digits) => (value === null ? "?" : value.toFixed(digits).replace("-", "−"));
  const signed = (value) => (value < 0 ? "" : "+") + fixed(value, 3);

  // Charts: a plane of WIDE by HIGH within its margins, in units of a pixel of a small screen.
  const WIDE = 360, HIGH = 230, LEFT = 48, RIGHT = 12, TOP = 8, BOTTOM = 34;
  const MARKS = [ // around (0, 0), told apart without colour
    "M4.2,0A4.2,4.2 0 1 1 -4.2,0A4.2,4.2 0 1 1 4.2,0Z", "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",
    "M-4,-4H4V4H-4Z", "M0,-5L5,4H-5Z", "M-5,-4H5L0,5Z", "M-5,0H5M0,-5V5",
  ];

  /** Return round numbers from low to high, some `count` of them. */
  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((times) => times * power >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      if (found.length > 3 * count) break; // numbers so large that 1 more is the same
      found.push(i * step);
    }
    return found;
  }

  function extent(values, empty = [0, 1]) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (value === null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) return empty;
    return low < high ? [low, high] : [low - 0.5, high + 0.5];
  }

  const spread = ([low, high], part) => [low - part * (high - low), high + part * (high - low)];
  const whole = (panels) => extent(panels.flatMap((panel) => panel.lines.flatMap((line) => line.x)));

  /** Draw a panel into its figure; `range` is the part of the x-axis that is shown. */
  function draw(figure, panel, range) {
    const dots = panel.lines.some((line) => line.sizes);
    const [x0, x1] = range || spread(whole([panel]), dots ? 0.05 : 0.01);
    const seen = panel.lines.flatMap((line) => line.y.filter((_, i) => line.x[i] >= x0 && line.x[i] <= x1));
    const [y0, y1] = spread(panel.range || extent(dots ? [...seen, 0] : seen), 0.07);
    const across = (x) => LEFT + (x - x0) / (x1 - x0) * (WIDE - LEFT - RIGHT);
    const up = (y) => HIGH - BOTTOM - (y - y0) / (y1 - y0) * (HIGH - TOP - BOTTOM);
    const axes = [];
    for (const y of ticks(y0, y1, 5))
      axes.push(svg("line", {class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: up(y), y2: up(y)}),
        svg("text", {x: LEFT - 5, y: up(y) + 4, "text-anchor": "end"}, number(y, 6)));
    const foot = HIGH - BOTTOM, centred = {"text-anchor": "middle"};
    for (const x of ticks(x0, x1, 5))
      axes.push(svg("line", {class: "axis", x1: across(x), x2: across(x), y1: foot, y2: foot + 4}),
        svg("text", {class: "tick", x: across(x), y: foot + 16, ...centred}, number(x, 6)));
    axes.push(svg("text", {x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 3, ...centred}, panel.across));
    // a nested svg clips what lies outside the plane
    const plane = svg("svg", {x: LEFT, y: TOP, width: WIDE - LEFT - RIGHT, height: HIGH - TOP - BOTTOM,
      viewBox: `${LEFT} ${TOP} ${WIDE - LEFT - RIGHT} ${HIGH - TOP - BOTTOM}`});
    const rule = (y, name) => svg("line", {class: name, x1: LEFT, x2: WIDE - RIGHT, y1: up(y), y2: up(y)});
    if (panel.guide) plane.append(rule(panel.guide, "guide"));
    if (dots) plane.append(rule(0, "guide"));
    for (const line of panel.lines) plane.append(...drawn(line, across, up));
    const band = svg("rect", {class: "band", y: TOP, height: HIGH, width: 0});
    const cursor = svg("line", {class: "rule", y1: TOP, y2: HIGH, visibility: "hidden"});
    plane.append(band, cursor);
    const label = `${panel.title} against ${panel.across}, from ${number(x0)} to ${number(x1)}`;
    const about = {viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label, class: "plane"};
    const picture = svg("svg", about, ...axes, plane), readout = html("div", {class: "readout"});
    figure.replaceChildren(html("figcaption", {}, panel.title), picture, legend(panel), readout);
    const at = (pixel) => x0 + (pixel - LEFT) / (WIDE - LEFT - RIGHT) * (x1 - x0);
    return {picture, readout, band, cursor, across, at};
  }

  const look = (line) =>
    `c${line.colour % 6} d${line.dash % 4}${line.faint ? " faint" : ""}${line.thin ? " thin" : ""}`;

  const mark = (line, x, y) => svg("path", {
    class: `mark ${look(line)}${line.alone ? " hollow" : ""}`,
    d: MARKS[line.colour % 6],
    transform: `translate(${x} ${y})`,
  });

  function drawn(line, across, up) {
    const parts = [];
    let path = "", pen = "M";
    line.x.forEach((x, i) => {
      if (line.y[i] === null) return void (pen = "M");
      path += `${pen}${across(x).toFixed(1)},${up(line.y[i]).toFixed(1)}`;
      pen = "L";
    });
    if (!line.alone) parts.push(svg("path", {class: `curve ${look(line)}`, d: path}));
    if (line.sizes || line.alone || line.x.length === 1)
      line.x.forEach((x, i) => {
        if (line.y[i] === null) return;
        const point = mark(line, across(x), up(line.y[i]));
        if (line.sizes) {
          point.dataset.size = line.sizes[i];
          point.append(svg("title", {}, `${line.label}, size ${line.sizes[i]}: ${number(line.y[i])}`));
        }
        parts.push(point);
      });
    return parts;
  }

  function legend(panel) {
    const named = panel.lines.filter((line) => line.label);
    return html("ul", {class: "legend"}, ...named.map((line) => {
      const sample = svg("svg", {viewBox: "0 0 30 12", "aria-hidden": "true"});
      if (!line.alone) sample.append(svg("path", {class: `curve ${look(line)}`, d: "M0,6H30"}));
      if (line.sizes || line.alone)
        sample.append(mark(line, 15, 6));
      return html("li", {}, sample, html("bdi", {}, line.label));
    }));
  }

  // The dial
  function dial() {
    const box = place("slider");
    if (!box || !data.sizes.said.length) return;
    const stops = data.sizes.said, charts = place("dial-charts");
    for (const panel of data.dial) {
      const figure = html("figure");
      charts.append(figure);
      draw(figure, panel);
    }
    const input = html("input", {type: "range", id: "size", min: 0, max: stops.length - 1, step: 1});
    const said = html("output", {for: "size"});
    const buttons = stops.map(([size], i) => {
      const button = html("button", {type: "button"}, number(size, 5));
      button.addEventListener("click", () => { input.value = i; show(); });
      return button;
    });
    function show() {
      const [size, lines] = stops[input.value];
      const title = html("strong", {}, `Size ${number(size, 5)}: `);
      said.replaceChildren(title, ...lines.map((line) => html("span", {}, line)));
      input.setAttribute("aria-valuetext", `size ${number(size, 5)}`);
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === +input.value));
      for (const node of document.querySelectorAll("#dial [data-size]")) {
        const here = +node.dataset.size === size;
        if (node.tagName === "TR") node.setAttribute("aria-current", here);
        else node.classList.toggle("here", here);
      }
    }
    input.value = stops.findIndex(([size]) => size === data.sizes.start);
    input.addEventListener("input", show);
    const label = html("label", {for: "size"}, "Size of the adapter");
    box.append(label, input, html("div", {class: "stops"}, ...buttons), said);
    show();
  }

  // The curves, all of them over the same steps
  function curves() {
    const panels = data.curves, charts = place("curve-charts");
    if (!panels.length) return void charts.append(html("p", {}, "No step was logged yet."));
    const all = spread(whole(panels), 0.01);
    const figures = panels.map((panel) => html("figure", {class: "zoomable", tabindex: 0}));
    let range = all;
    charts.append(...figures);

    function zoom(low, high) {
      const least = (all[1] - all[0]) / 1000, width = Math.max(high - low, least);
      const from = Math.min(Math.max(low, all[0]), Math.max(all[1] - width, all[0]));
      range = [from, Math.min(from + width, all[1])];
      figures.forEach((figure, i) => follow(figure, panels[i], draw(figure, panels[i], range)));
    }
    const by = (times, shift = 0) => {
      const half = (range[1] - range[0]) / 2, middle = range[0] + half + shift * half;
      zoom(middle - half * times, middle + half * times);
    };
    const moves = new Map([
      ["+", ["Zoom in", () => by(0.5)]], ["-", ["Zoom out", () => by(2)]],
      ["ArrowLeft", ["◀ Earlier", () => by(1, -0.5)]], ["ArrowRight", ["Later ▶", () => by(1, 0.5)]],
      ["0", ["Whole run", () => zoom(...all)]],
    ]);
    const buttons = [...moves.values()].map(([name, act]) => {
      const button = html("button", {type: "button", class: "button"}, name);
      button.addEventListener("click", act);
      return button;
    });
    place("zoom").append(html("div", {class: "controls"}, ...buttons));
    charts.addEventListener("keydown", (event) => {
      const key = {"=": "+", "_": "-", Escape: "0"}[event.key] || event.key;
      if (!moves.has(key) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      moves.get(key)[1]();
    });

    /** Let a pointer read a chart's values, and drag over the steps to zoom into. */
    function follow(figure, panel, {picture, readout, band, cursor, across, at}) {
      const named = panel.lines.filter((line) => line.label || !line.faint);
      let start = null;
      const pixel = (event) => {
        const box = picture.getBoundingClientRect();
        return Math.min(Math.max((event.clientX - box.left) / box.width * WIDE, LEFT), WIDE - RIGHT);
      };
      picture.addEventListener("pointermove", (event) => {
        const here = pixel(event), x = at(here);
        const values = named.map((line) => {
          const i = nearest(line.x, x);
          return `${line.label}${line.label ? " " : ""}${number(line.y[i])}`;
        });
        const step = named[0].x[nearest(named[0].x, x)];
        readout.textContent = `step ${Math.round(step)}: ${values.join(", ")}`;
        fill(cursor, {x1: across(step), x2: across(step), visibility: "visible"}, []);
        if (start !== null) fill(band, {x: Math.min(start, here), width: Math.abs(here - start)}, []);
      });
      picture.addEventListener("pointerleave", () => {
        readout.textContent = "";
        cursor.setAttribute("visibility", "hidden");
      });
      picture.addEventListener("pointerdown", (event) => {
        if (event.pointerType !== "touch") event.preventDefault();
        figure.focus({preventScroll: true});
        start = pixel(event);
        picture.setPointerCapture(event.pointerId);
      });
      picture.addEventListener("pointerup", (event) => {
        const from = start, to = pixel(event);
        start = null;
        if (from !== null && Math.abs(to - from) > 6) zoom(...[at(from), at(to)].sort((a, b) => a - b));
      });
      picture.addEventListener("pointercancel", () => {
        start = null;
        band.setAttribute("width", 0);
      });
      picture.addEventListener("dblclick", () => zoom(...all));
    }
    zoom(...all);
  }

  function nearest(sorted, value) {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle; else high = middle;
    }
    return value - sorted[low] < sorted[high] - value ? low : high;
  }

  // The questions
  function questions() {
    const box = place("asked"), asked = data.questions;
    if (!box) return;
    const all = asked.questions.map((question, order) => {
      const texts = [question.prompt, question.category, ...question.answers.map((a) => a.text)];
      return {...question, order, words: texts.join("\n").toLowerCase()};
    });
    const keys = {
      most: (q) => -Math.abs(q.change), up: (q) => -q.change,
      down: (q) => q.change, order: (q) => q.order,
    };
    const search = html("input", {type: "search", placeholder: "words in prompts and answers"});
    const sort = html("select", {}, ...asked.sorts.map(([value, name]) => html("option", {value}, name)));
    const chips = [["all", "All", "every question"], ...asked.statuses].map(([value, name, meaning]) => {
      const count = value === "all" ? all.length : all.filter((q) => q.status === value).length;
      const input = html("input", {type: "radio", name: "status", value});
      input.checked = asked.start === value;
      const many = html("b", {}, String(count));
      return html("label", {class: "chip", title: meaning}, input, `${name} `, many);
    });
    const count = html("p", {"aria-live": "polite", id: "count", class: "note"});
    const list = html("ol", {class: "asked"});
    const more = html("button", {type: "button", class: "button"}, `Show ${AT_ONCE} more`);
    const controls = html("div", {class: "controls"},
      html("fieldset", {}, html("legend", {}, "Show"), ...chips),
      html("label", {}, "Search", search), html("label", {}, "Sort by", sort));
    box.append(controls, count, list, more);
    const meanings = Object.fromEntries(asked.statuses.map(([key, ...words]) => [key, words]));
    let found = [], shown = 0;

    function add() {
      const next = found.slice(shown, shown + AT_ONCE);
      list.append(...next.map((question) => card(question, asked.bars, meanings)));
      shown += next.length;
      more.hidden = shown >= found.length;
      const which = meanings[box.querySelector("[name=status]:checked").value];
      const meant = which ? `: ${which[1]}` : "";
      count.textContent = `${found.length} of ${all.length} questions${meant}`;
    }
    function update() {
      const status = box.querySelector("[name=status]:checked").value;
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const key = keys[sort.value], shows = (q) => status === "all" || q.status === status;
      found = all.filter((q) => shows(q) && words.every((word) => q.words.includes(word)));
      found.sort((a, b) => key(a) - key(b) || a.order - b.order);
      shown = 0;
      list.replaceChildren();
      add();
    }
    box.addEventListener("input", update);
    more.addEventListener("click", () => {
      const first = shown;
      add();
      const card = list.children[first];
      card.tabIndex = -1;
      card.focus();
    });
    update();
  }

  function card(question, bars, meanings) {
    const values = question.mc2.map((value) => fixed(value, 3));
    const said = bars.length === 2
      ? `MC2 ${values.join(" → ")} ${question.change < 0 ? "▼" : "▲"} ${signed(question.change)}`
      : `MC2 ${values.map((value, i) => `${bars[i]} ${value}`).join(", ")}`;
    const [name, meaning] = meanings[question.status];
    const badge = html("span", {class: "badge"}, html("b", {title: meaning}, name), said);
    const category = html("div", {class: "category"}, html("bdi", {}, question.category));
    return html("li", {},
      html("div", {class: "head"}, html("div", {class: "prompt"}, long(question.prompt)), badge),
      ...(question.category ? [category] : []),
      html("ul", {class: "answers"}, ...question.answers.map((answer) => answered(answer, bars))));
  }

  function answered(answer, bars) {
    const kind = answer.right ? "right" : "wrong";
    const sign = html("span", {class: "sign", role: "img", "aria-label": kind}, answer.right ? "✓" : "✗");
    const best = answer.best ? [html("span", {class: "best"}, "best")] : [];
    const drawn = bars.flatMap((label, i) => bar(label, answer.shares[i], answer.logps[i]));
    return html("li", {class: kind},
      html("div", {class: "said"}, sign, ...best, long(answer.text)),
      html("div", {class: "bars"}, ...drawn));
  }

  function bar(label, share, logp) {
    const full = html("span", {class: "fill"});
    full.style.width = `${100 * (share || 0)}%`;
    return [
      html("span", {class: "of", title: label}, html("bdi", {}, label)),
      html("span", {class: "track"}, full),
      html("span", {class: "value"}, percent(share)),
      html("span", {class: "logp", title: "log-prob, nats"}, fixed(logp, 1)),
    ];
  }

  /** Return a text, of a long one the beginning and the whole a click away. */
  function long(text) {
    if (text.length <= LONG) return html("bdi", {}, text || "(empty)");
    const start = html("bdi", {class: "start"}, `${text.slice(0, LONG)} … `);
    const more = html("span", {class: "more"}, "all of it");
    return html("details", {class: "long"}, html("summary", {}, start, more), html("bdi", {}, text));
  }

  dial();
  questions();
  curves();
  addEventListener("beforeprint", () => {
    for (const node of document.querySelectorAll("details")) node.open = true;
  });
}
