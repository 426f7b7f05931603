// Draws what runs.json tells, every two seconds. Text is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);

function cell(text, kind = "") {
  const made = document.createElement("td");
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
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
  made.append(first, cell(run.label));
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

async function follow() {
  try {
    const reply = await fetch("runs.json");
    if (!reply.ok) throw new Error(await reply.text());
    const runs = (await reply.json()).runs;
    $("none").hidden = runs.length > 0;
    // The newest first.
    $("runs").replaceChildren(...runs.reverse().flatMap(rows));
    $("contact").textContent = "live";
    $("contact").className = "";
  } catch (error) {
    $("contact").textContent = "the coordinator does not answer; trying again";
    $("contact").className = "lost";
  }
  setTimeout(follow, 2000);
}

follow();
