// Draws what runs.json tells, every two seconds, and compare.json of the runs that are ticked.
"use strict";

const $ = (id) => document.getElementById(id);
const MOST_COMPARED = 6;
// In the address, so that a comparison can be sent to somebody; in the order in which they were ticked.
let ticked = location.hash.slice(1).split(",").filter((run) => /^[0-9a-f]+$/.test(run)).slice(0, MOST_COMPARED);
const labels = {};

function cell(text, kind = "") {
  return element("td", kind ? { class: kind } : {}, text);
}

function tick(run, on) {
  ticked = ticked.filter((each) => each !== run);
  if (on) ticked.push(run);
  history.replaceState(null, "", `#${ticked.join(",")}`);
  compare();
}

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} days`;
}

// A row of its own for why a run failed or waits: on a telephone, too, it is read without scrolling.
function rows(run) {
  const made = document.createElement("tr"), facts = run.facts, running = run.state === "running";
  const link = document.createElement("a"), first = document.createElement("td");
  link.href = `run/${encodeURIComponent(run.run)}/`;
  link.textContent = run.run;
  // Before it has begun there is nothing behind it.
  first.append(run.began ? link : run.run);
  const choice = document.createElement("td");
  if (run.began) {
    const box = element("input", { type: "checkbox", "aria-label": `compare run ${run.run}` });
    box.checked = ticked.includes(run.run);
    box.disabled = !box.checked && ticked.length >= MOST_COMPARED;
    box.addEventListener("change", () => tick(run.run, box.checked));
    choice.append(box);
  }
  labels[run.run] = run.label;
  made.append(choice, first, cell(run.label));
  made.append(cell(running && facts.phase ? `running, ${facts.phase}` : run.state, run.state === "running" ? "training" : run.state));
  made.append(cell(facts.rounds ? `${facts.round} of ${facts.rounds}` : ""), cell(running ? facts.workers : "", "number"));
  made.append(cell(facts.score), cell(running && facts.seconds_left ? span(facts.seconds_left) : "", "number"));
  if (!run.reason) return [made];
  const why = document.createElement("tr"), told = document.createElement("td"), text = document.createElement("span");
  text.className = run.state === "failed" ? "trouble" : "left";
  text.textContent = run.reason;
  told.colSpan = made.children.length;
  told.append(text);
  why.append(told);
  return [made, why];
}

// Perplexity of language models, the loss where there is no accuracy (numbers), else accuracy.
function readingOf(runs) {
  const all = (value) => runs.every((run) => run.scores.every((score) => value(score) !== null));
  if (runs.every((run) => run.task === "causal-lm")) return ["perplexity", (s) => Math.exp(Math.min(s.loss, 50))];
  return all((s) => s.accuracy) && !runs.some((run) => run.task === "causal-lm") ? ["accuracy", (s) => s.accuracy] : ["loss", (s) => s.loss];
}

function drawCompared(told) {
  const [name, value] = readingOf(told.runs), shown = told.runs;
  const called = (run) => labels[run.run] ? `${labels[run.run]} (${run.run.slice(0, 6)})` : run.run;
  const series = {}, titles = {};
  shown.forEach((run, i) => {
    series[`run${i}`] = run.scores.filter((s) => value(s) !== null).map((s) => ({ round: s.round, value: value(s) }));
    titles[`run${i}`] = called(run);
  });
  const values = Object.values(series).flat().map((point) => point.value);
  const step = niceStep(Math.max(...values, 0.01) - Math.min(...values, Infinity) || 0.1);
  const low = values.length ? Math.max(0, Math.floor(Math.min(...values) / step) * step) : 0;
  const high = values.length ? Math.ceil(Math.max(...values) / step) * step || step : null;
  const plain = (at, by) => at.toFixed(Math.max(0, -Math.floor(Math.log10(by))));
  const percent = (at, by) => `${(100 * at).toFixed(by < 0.01 ? 1 : 0)} %`;
  $("compared-title").textContent = `${name[0].toUpperCase()}${name.slice(1)} by round`;
  chart($("curves"), series, Math.max(1, ...shown.map((run) => run.rounds)), low, high, name === "accuracy" ? percent : plain, titles);
  $("legend").replaceChildren(...shown.map((run, i) => element("span", { class: `run${i}` }, called(run) + (run.at_workers ? ", at the workers" : ""))));
  $("compared-head").replaceChildren(element("th"), ...shown.map((run) => element("th", {}, called(run))));
  const row = (key, cells) => { const made = document.createElement("tr"); made.append(cell(key), ...cells.map((text) => cell(text))); return made; };
  const last = (run) => run.scores.filter((s) => value(s) !== null).at(-1), written = name === "accuracy" ? (v) => `${(100 * v).toFixed(2)} %` : (v) => v.toFixed(4);
  $("compared-rows").replaceChildren(
    row(`${name}, newest`, shown.map((run) => last(run) === undefined ? "–" : `${written(value(last(run)))} after round ${last(run).round}`)),
    row("sent to workers", shown.map((run) => bytes(run.down))),
    row("received", shown.map((run) => bytes(run.up))),
    ...told.settings.map((setting) => row(setting.key, setting.values.map((text) => text || "–"))),
  );
}

async function compare() {
  $("compared").hidden = ticked.length < 2;
  if (ticked.length < 2) return;
  const reply = await fetch(`compare.json?runs=${ticked.join(",")}`);
  if (reply.ok) drawCompared(await reply.json());
}

async function follow() {
  try {
    const reply = await fetch("runs.json");
    if (!reply.ok) throw new Error(await reply.text());
    const runs = (await reply.json()).runs;
    $("none").hidden = runs.length > 0;
    $("hint").hidden = runs.filter((run) => run.began).length < 2 || ticked.length > 1;
    // The newest first.
    $("runs").replaceChildren(...runs.reverse().flatMap(rows));
    await compare();
    $("contact").textContent = "live";
    $("contact").className = "";
  } catch (error) {
    $("contact").textContent = "the coordinator does not answer; trying again";
    $("contact").className = "lost";
  }
  setTimeout(follow, 2000);
}

follow();
