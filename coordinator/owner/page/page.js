// Draws what run.json tells, once a second, until the run is over. Text is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const PRESENT = new Set(["idle", "downloading", "training", "uploading", "scoring"]);
const MODELS = ["fm", "sub_fm", "corrected", "workers"];
const TITLES = { fm: "FM", sub_fm: "sub-FM", corrected: "FM, corrected", workers: "sub-FM, at the workers" };
const SHOWN_EVENTS = 200;
let after = 0;

function seriesOf(evaluations, value) {
  return Object.fromEntries(MODELS.map((model) => [model, evaluations
    .filter((e) => e.model === model && value(e) !== null)
    .map((e) => ({ round: e.round, value: value(e) }))
    .sort((a, b) => a.round - b.round)]));
}

// Of the last round that was scored: a row for each metric, classes one by one last, a column for each model.
function showMetrics(run) {
  const last = Math.max(...run.evaluations.map((e) => e.round)), newest = run.evaluations.filter((e) => e.round === last);
  const models = MODELS.filter((model) => newest.some((e) => e.model === model));
  const of = Object.fromEntries(newest.map((e) => [e.model, e.metrics]));
  const names = [...new Set(newest.flatMap((e) => Object.keys(e.metrics)))];
  const all = Object.keys(run.metrics).filter((name) => names.includes(name)), each = names.filter((name) => name.includes(":"));
  $("metrics-section").hidden = names.length === 0;
  $("metrics-head").replaceChildren(element("th", {}, `after round ${last}`), ...models.map((m) => element("th", { class: "number" }, TITLES[m])));
  $("metrics").replaceChildren(...[...all, ...each].map((name) => {
    const row = element("tr");
    row.append(element("td", {}, run.metrics[name] ?? `F1 of ${name.slice(name.indexOf(":") + 1)}`));
    for (const model of models) row.append(element("td", { class: "number" }, of[model][name]?.toFixed(4) ?? "–"));
    return row;
  }));
}

function workerRow(worker) {
  const row = element("tr");
  row.append(element("td", {}, worker.name));
  row.append(element("td", { class: "number" }, worker.examples ? worker.examples.toLocaleString("en") : "–"));
  const does = element("td", { class: worker.activity }, worker.activity);
  row.append(does);
  const progress = element("td", { class: "progress" });
  if (!worker.trouble && ["training", "scoring"].includes(worker.activity) && worker.steps) {
    does.dataset.done = `${Math.floor(100 * worker.step / worker.steps)} %`;
    progress.append(element("progress", { max: worker.steps, value: worker.step, title: `step ${worker.step} of ${worker.steps}` }));
  }
  if (worker.trouble) progress.append(element("span", { class: "trouble" }, worker.trouble));
  row.append(progress);
  row.append(element("td", { class: "number" }, worker.loss ? worker.loss.toFixed(3) : ""));
  row.append(element("td", { class: "number" }, bytes(worker.down)));
  row.append(element("td", { class: "number" }, bytes(worker.up)));
  return row;
}

function eventRow(event) {
  const row = element("li", { class: event.level });
  const when = new Date(event.time * 1000);
  row.append(element("time", { datetime: when.toISOString() }, when.toLocaleTimeString("en-GB")));
  row.append(element("span", {}, event.text));
  return row;
}

function draw(run) {
  document.title = `FedPFT: ${run.phase}, round ${run.round} of ${run.rounds}`;
  $("run").textContent = run.run;
  $("phase").textContent = run.phase;
  $("phase-left").textContent = run.phase_left && `about ${run.phase_left} left`;
  $("rounds-left").textContent = run.rounds_left && !run.over ? `about ${run.rounds_left} to come` : "";
  $("phase").className = run.phase;
  $("steps").hidden = !run.steps;
  if (run.steps) { $("steps").max = run.steps; $("steps").value = run.step; }
  $("round").textContent = `${run.round} of ${run.rounds}`;
  $("rounds").max = run.rounds;
  $("rounds").value = run.phase === "finished" ? run.rounds : Math.max(0, run.round - 1);
  const language = run.task === "causal-lm";
  const value = language ? (e) => (e.loss === null ? null : Math.exp(Math.min(e.loss, 50))) : (e) => e.accuracy;
  const readings = seriesOf(run.evaluations, value), newest = readings.corrected.at(-1) ?? readings.fm.at(-1) ?? readings.workers.at(-1);
  const shown = seriesOf(run.evaluations, (e) => e.loss), ownersData = shown.fm.length > 0;
  for (const model of MODELS) {
    const there = shown[model].length > 0 || (shown.workers.length === 0 && ["fm", "sub_fm"].includes(model));
    for (const each of document.querySelectorAll(`.legend .${model}`)) each.hidden = !there;
  }
  const scored = run.at_workers.at(-1);
  $("at-workers").textContent = scored === undefined ? "" : `${scored.workers} workers after round ${scored.round}`;
  $("best").hidden = !run.best;
  $("best").textContent = `best: round ${run.best}`;
  $("reading-name").textContent = `${language ? "perplexity" : "accuracy"} ${ownersData || !scored ? "of the FM" : "at the workers"}`;
  $("reading").textContent = newest === undefined ? "–" : language ? newest.value.toFixed(2) : `${(100 * newest.value).toFixed(1)} %`;
  $("present").textContent = `${run.workers.filter((w) => PRESENT.has(w.activity)).length} of ${run.workers.length}`;
  $("down").textContent = bytes(run.workers.reduce((sum, w) => sum + w.down, 0));
  $("up").textContent = bytes(run.workers.reduce((sum, w) => sum + w.up, 0));
  $("privacy").hidden = !run.privacy.length;
  $("privacy").textContent = run.privacy.map((line) => `Privacy: ${line}.`).join(" ");
  $("declined").hidden = !run.declined.length;
  $("declined").replaceChildren(...run.declined.map((d) => element("li", {}, `${d.worker} declined: ${d.reason}`)));
  $("waiting").hidden = !run.waiting_for || run.over;
  $("waiting").textContent = `Waiting for ${run.waiting_for}.`;
  const where = scored === undefined ? " on the test data" : ownersData ? " on the test data and at the workers" : " at the workers";
  $("loss-title").textContent = `Loss${where} in nats, by round`;
  $("metrics-title").textContent = `Metrics${where}`;
  $("accuracy-title").textContent = `${language ? "Perplexity" : "Accuracy"}${where}, by round`;
  const plain = (tick, step) => tick.toFixed(Math.max(0, -Math.floor(Math.log10(step))));
  chart($("accuracy"), readings, run.rounds, 0, language ? null : 1, language ? plain : (tick) => `${Math.round(100 * tick)} %`);
  chart($("loss"), shown, run.rounds, 0, null, plain);
  if (run.evaluations.length) showMetrics(run);
  $("workers").replaceChildren(...run.workers.map(workerRow));
  for (const event of run.events) {
    after = Math.max(after, event.sequence);
    $("events").prepend(eventRow(event));
  }
  while ($("events").children.length > SHOWN_EVENTS) $("events").lastChild.remove();
}

async function follow() {
  let seconds = 1;
  try {
    const reply = await fetch(`run.json?after=${after}`);
    if (!reply.ok) throw new Error(await reply.text());
    const run = await reply.json();
    draw(run);
    $("contact").textContent = run.over ? `the run is ${run.phase}` : "live";
    $("contact").className = "";
    if (run.over) seconds = 5;
  } catch (error) {
    $("contact").textContent = "the coordinator does not answer; trying again";
    $("contact").className = "lost";
    seconds = 3;
  }
  setTimeout(follow, 1000 * seconds);
}

// Of a server that holds many, each run's page lies below their list.
$("all").hidden = !location.pathname.startsWith("/run/");
follow();
