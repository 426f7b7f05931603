// What the pages draw with. Text is set as text, never as markup.
"use strict";

function element(name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function drawn(name, attributes, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count.toFixed(unit === 0 || count >= 100 ? 0 : 1)} ${units[unit]}`;
}

// A step of 1, 2 or 5 times a power of ten that gives about five lines.
function niceStep(span) {
  const raw = span / 5, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw * 0.999);
}

// `series`: by class of its line, points of round and value, the first drawn on top; `titles` for its dots.
function chart(svg, series, rounds, low, high, label, titles = {}) {
  const left = 62, right = 12, top = 14, bottom = 38, [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  svg.replaceChildren();
  const values = Object.values(series).flat().map((point) => point.value);
  if (values.length === 0) {
    svg.append(drawn("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty" }, "not evaluated yet"));
    return;
  }
  const most = high ?? Math.max(...values) * 1.1, step = niceStep(most - low || 1);
  const x = (round) => left + (width - left - right) * (rounds ? round / rounds : 0);
  const y = (value) => height - bottom - (height - top - bottom) * (value - low) / (most - low || 1);
  for (let tick = low; tick <= most + step / 1000; tick += step) {
    svg.append(drawn("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(drawn("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, label(tick, step)));
  }
  const every = Math.max(1, Math.ceil(rounds / 10));
  for (let round = 0; round <= rounds; round += every) {
    svg.append(drawn("text", { x: x(round), y: height - bottom + 24, "text-anchor": "middle" }, round === 0 ? "start" : round));
  }
  for (const model of Object.keys(series).reverse()) {
    const points = series[model];
    if (points.length === 0) continue;
    svg.append(drawn("polyline", { class: `line ${model}`, points: points.map((p) => `${x(p.round)},${y(p.value)}`).join(" ") }));
    for (const point of points) {
      const dot = drawn("circle", { cx: x(point.round), cy: y(point.value), r: 3.5, class: model });
      dot.append(drawn("title", {}, `${titles[model] ? `${titles[model]}, ` : ""}round ${point.round}: ${point.value.toFixed(4)}`));
      svg.append(dot);
    }
  }
  svg.setAttribute("aria-label", Object.keys(series).filter((m) => series[m].length).map((m) => `${titles[m] ?? m}: ${series[m].map((p) => p.value.toFixed(3)).join(", ")}`).join("; "));
}
